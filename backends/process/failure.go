package process

import (
	"errors"
	"fmt"
	"io/fs"
	"syscall"

	"github.com/caddy-usher/usher/scaler"
)

// cleanExit is how an end without an error is put into words.
const cleanExit = "exit status 0"

// exitFailure puts into words that an instance ended unasked. What went wrong
// is in what it wrote last.
func exitFailure(words, lastLines string) *scaler.Failure {
	f := &scaler.Failure{Reason: scaler.ReasonExit, Short: words, Detail: lastLines}
	if words == cleanExit {
		// This is no crash, so its output will hardly say what is wrong.
		f.Short = "the program ended by itself without an error (" + cleanExit + ")"
		if f.Detail != "" {
			f.Detail += "\n"
		}
		f.Detail += "(a server has to run on; if the program goes to the background, make it stay in the foreground)"
	}
	return f
}

// startFailure puts into words why a process could not be started. The system
// names one error for several steps, so what may have been the cause is looked
// at again.
func startFailure(err error, l launch, service, instance string) *scaler.Failure {
	what := fmt.Sprintf("service %s, instance %s: starting %s", service, instance, l.path)
	if f := quotaFailure(err); f != nil {
		f.Detail = what + ": " + f.Detail
		return f
	}
	f := &scaler.Failure{Reason: scaler.ReasonExec, ForGood: true, Err: err}
	if d := checkDir(l.dir); d != nil {
		return d
	}
	switch {
	case errors.Is(err, fs.ErrNotExist):
		if checkExecutable(l.path) == nil {
			f.Short = "the command's interpreter does not exist"
			f.Detail = what + ": the file is there, but the interpreter named in its first line, or the loader it was linked for, is not"
		} else {
			f.Short = "the command does not exist"
			f.Detail = what + ": it was there when it was looked up, and is gone"
		}
	case errors.Is(err, syscall.EPERM) && l.account != nil && !l.account.Own:
		f.Reason = scaler.ReasonForbidden
		f.Short = "switching to the user is not permitted"
		f.Detail = fmt.Sprintf("%s as user %s: run Caddy as root, or give it CAP_SETUID, CAP_SETGID and CAP_KILL", what, l.account.Name)
	case errors.Is(err, fs.ErrPermission):
		f.Short = "the command is not executable"
		f.Detail = what + ": permission denied for the command, its interpreter, or a directory above them or of the service"
		if l.account != nil {
			f.Detail += "; it is user " + l.account.Name + " who needs the permission"
		}
		f.Detail += "; a file system that is mounted noexec has the same effect"
	case isNoExec(err):
		f.Short = "the command is no program of this machine"
		f.Detail = what + ": exec format error: it was built for another machine, or is a script whose first line does not begin with #!"
	case isBusy(err):
		f.ForGood = false
		f.Short = "the command is being written"
		f.Detail = what + ": a process has the file open for writing; the next start will find it complete"
	default:
		// What is not known may pass.
		f.ForGood = false
		f.Short = "the command cannot be executed"
		f.Detail = what
	}
	return f
}
