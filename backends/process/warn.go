package process

import (
	"log/slog"
	"os"
	"path/filepath"
	"runtime"
	"strconv"
	"sync"

	"github.com/caddy-usher/usher/scaler"
)

// Said once in the life of Caddy.
var saidSystemd, saidReduced, saidBase sync.Once

// warnAtOpen says what about this machine may surprise.
func warnAtOpen(env scaler.Env) {
	keep := env.Local().Keep
	if underSystemd() {
		saidSystemd.Do(func() { warnSystemd(env.Logger(), keep) })
	}
	if runtime.GOOS != "linux" {
		saidReduced.Do(func() {
			env.Logger().Warn("on this system processes do not end by themselves when Caddy is killed, what they fork away is not found, and connections to them are not checked",
				slog.String("system", runtime.GOOS))
		})
	}
}

// warnBase says that the sockets are not where they are expected.
func warnBase(env scaler.Env, socket string, why error) {
	saidBase.Do(func() {
		env.Logger().Warn("the sockets of instances are in a directory with a random name, because another user has taken the usual one",
			slog.String("dir", filepath.Dir(filepath.Dir(socket))), slog.Any("error", why))
	})
}

// underSystemd tells whether Caddy is the main process of a service. The
// variables alone do not tell: everything in a desktop session inherits them.
func underSystemd() bool {
	if os.Getenv("INVOCATION_ID") == "" {
		return false
	}
	if pid := os.Getenv("SYSTEMD_EXEC_PID"); pid != "" {
		return pid == strconv.Itoa(os.Getpid())
	}
	return os.Getppid() == 1
}

// warnSystemd says what to set. How the unit is set up cannot be seen from
// inside, so this is said even if all is well.
func warnSystemd(logger *slog.Logger, keep bool) {
	if keep {
		logger.Warn("on_exit keep under systemd: unless the unit of Caddy has KillMode=process, systemd ends all instances when it stops Caddy")
		return
	}
	logger.Warn("running under systemd: unless the unit of Caddy has KillMode=mixed and a TimeoutStopSec longer than every stop_timeout, systemd ends the instances itself when it stops Caddy")
}
