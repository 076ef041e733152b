package process

import (
	"log/slog"
	"path/filepath"
	"strings"

	"github.com/caddy-usher/usher/scaler"
)

// A right is a capability of Caddy's that an option needs, and what happens
// without it.
type right struct{ name, without string }

// needs lists the rights that the plan needs beyond those without which it is
// not loaded.
func (p *plan) needs(keep bool) (needs []right) {
	if p.account == nil || p.account.Own {
		return nil
	}
	without := "what an instance has put into a session of its own cannot be seen to be the instance's, and survives a stop"
	if keep {
		without += ", and of kept instances only the main process and its session are known after a restart of Caddy"
	}
	needs = append(needs, right{"CAP_SYS_PTRACE", without})
	if p.listen == listenUnix {
		needs = append(needs,
			right{"CAP_CHOWN", "the directory of a socket cannot be given to the user, and listen unix does not work"},
			right{"CAP_DAC_OVERRIDE", "Caddy can connect only to sockets that the instance itself makes writable for Caddy's group, and cannot remove the directory of a socket"})
	}
	return needs
}

// warnRights says which rights are missing that the plan needs, and what a
// program does not get that has rights of its own.
func (p *plan) warnRights(env scaler.Env) {
	keep := env.Local().Keep
	var missing []string
	for _, n := range p.needs(keep) {
		if !hasRight(n.name) {
			missing = append(missing, n.name+": without it, "+n.without)
		}
	}
	if len(missing) > 0 {
		env.Logger().Warn("user: Caddy lacks capabilities; run it as root, or add them to its unit or container",
			slog.String("user", p.account.Name), slog.String("missing", strings.Join(missing, "; ")))
	}
	if command, ok := p.knownCommand(); ok && !keep && outlivesCaddy(command) {
		env.Logger().Warn("the program is setuid, setgid or has file capabilities, so the kernel does not end it when Caddy is killed; the next start of Caddy ends it",
			slog.String("command", command))
	}
}

// knownCommand returns the program that all instances run, if it is the same
// for all and can be found.
func (p *plan) knownCommand() (string, bool) {
	dir, dirKnown := p.dir.constant()
	command, commandKnown := p.command.constant()
	path, pathKnown := p.searchPath()
	if !commandKnown || !dirKnown && !filepath.IsAbs(command) || !pathKnown && !isPath(command) {
		return "", false
	}
	found, f := findCommand(command, dir, path)
	return found, f == nil
}
