//go:build unix

package process

import (
	"errors"
	"fmt"
	"syscall"

	"golang.org/x/sys/unix"

	"github.com/caddy-usher/usher/scaler"
)

func isNoExec(err error) bool { return errors.Is(err, syscall.ENOEXEC) }
func isBusy(err error) bool   { return errors.Is(err, syscall.ETXTBSY) }

// quotaFailure names the limit that an error of the system stands for, or
// returns nil.
func quotaFailure(err error) *scaler.Failure {
	f := &scaler.Failure{Reason: scaler.ReasonQuota, Err: err}
	switch {
	case errors.Is(err, syscall.EAGAIN):
		f.Short = "no more processes can be started"
		f.Detail = "the limit on processes is reached: " + limitOf("ulimit -u", rlimitProcesses) + processGroupLimit() +
			"; raise LimitNPROC and TasksMax of Caddy's service, or the container's pids limit"
	case errors.Is(err, syscall.EMFILE):
		f.Short = "no more files can be opened"
		f.Detail = "the limit on open files is reached: " + limitOf("ulimit -n", unix.RLIMIT_NOFILE) + "; raise LimitNOFILE of Caddy's service"
	case errors.Is(err, syscall.ENFILE):
		f.Short = "no more files can be opened"
		f.Detail = "the limit of the whole machine on open files is reached; raise fs.file-max"
	case errors.Is(err, syscall.ENOMEM):
		f.Short = "out of memory"
		f.Detail = "the machine, or the memory limit of Caddy's service, has no memory left for a further process"
	case errors.Is(err, syscall.ENOSPC):
		f.Short = "no space left"
		f.Detail = "the file system is full, or fs.inotify.max_user_watches is reached"
	case errors.Is(err, syscall.E2BIG):
		f.ForGood = true
		f.Reason = scaler.ReasonExec
		f.Short = "the command line is too long"
		f.Detail = "arguments and environment together are larger than the system allows"
	default:
		return nil
	}
	return f
}

// limitOf names a limit with its value.
func limitOf(name string, resource int) string {
	var limit unix.Rlimit
	if err := unix.Getrlimit(resource, &limit); err != nil || limit.Cur > 1<<40 {
		return name
	}
	return fmt.Sprintf("%s is %d", name, limit.Cur)
}
