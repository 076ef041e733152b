package process

import (
	"log/slog"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
)

// shells replace variables in what they are given.
var shells = []string{"sh", "bash", "dash", "ash", "ksh", "mksh", "zsh", "fish", "busybox", "cmd", "cmd.exe", "powershell", "pwsh"}

var (
	// shellVariable matches a variable of Usher's as a shell would read it.
	shellVariable = regexp.MustCompile(`\$(?:(PORT0?|HOST|USHER_INSTANCE|USHER_SERVICE)\b|\{(PORT0?|HOST|USHER_INSTANCE|USHER_SERVICE)\})`)
	// shellScript matches the option that makes the next argument a script.
	shellScript = regexp.MustCompile(`^-[a-zA-Z]*c$`)
)

// warnAtLoad tells of what is most likely a mistake, and is none for certain.
// The logger is made when there is something to tell.
func (b *Backend) warnAtLoad(logger func() *slog.Logger) {
	for _, w := range b.unreplaced() {
		logger().Warn("process: a variable in an argument is not replaced, because no shell is involved: use the placeholder",
			slog.String("command", b.Command), slog.String("variable", w.variable), slog.String("use", w.instead))
	}
	p := b.state.plan
	if fixed, ok := p.env["PORT"].constant(); ok && fixed != "" && p.listen == listenTCP && !p.fixed.IsValid() && !p.tellsPort() {
		logger().Warn("process: env PORT overrides the port that Usher gives to each instance, and nothing else tells the instances their port: leave it out, or write env PORT {usher.port}",
			slog.String("command", b.Command))
	}
}

// unreplacedVariable is a variable that reaches the program as it is written,
// and the placeholder that means the same.
type unreplacedVariable struct{ variable, instead string }

// unreplaced finds variables of Usher's in the command line that no shell will
// replace.
func (b *Backend) unreplaced() []unreplacedVariable {
	if slices.Contains(shells, strings.ToLower(filepath.Base(b.Command))) {
		return nil
	}
	var found []unreplacedVariable
	for k, arg := range append([]string{b.Command}, b.Args...) {
		if k > 1 && shellScript.MatchString(b.Args[k-2]) {
			continue
		}
		for _, m := range shellVariable.FindAllStringSubmatch(arg, -1) {
			w := unreplacedVariable{m[0], b.placeholderFor(m[1] + m[2])}
			if !slices.Contains(found, w) {
				found = append(found, w)
			}
		}
	}
	return found
}

// placeholderFor is the placeholder with the value of a variable of Usher's.
func (b *Backend) placeholderFor(variable string) string {
	key := keyPort
	switch {
	case variable == "USHER_INSTANCE":
		key = keyInstance
	case variable == "USHER_SERVICE":
		key = keyService
	case b.state.plan.listen == listenUnix:
		key = keySocket
	case variable == "HOST":
		host := loopback
		if fixed := b.state.plan.fixed; fixed.IsValid() {
			host = fixed.Addr().String()
		}
		return host + ", or {" + keyAddress + "} for host and port"
	}
	return "{" + key + "}"
}
