package process

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"strings"

	"github.com/caddy-usher/usher/scaler"
)

// checkDir returns a failure for good if dir is no directory that can be
// entered. An empty dir is Caddy's own.
func checkDir(dir string) *scaler.Failure {
	if dir == "" {
		return nil
	}
	info, err := os.Stat(dir)
	switch {
	case errors.Is(err, fs.ErrNotExist):
		return &scaler.Failure{
			Reason: scaler.ReasonNotFound, ForGood: true, Short: "the working directory does not exist",
			Detail: "dir " + dir + " does not exist; create it or change dir", Err: err,
		}
	case err != nil:
		return &scaler.Failure{
			Reason: scaler.ReasonForbidden, ForGood: true, Short: "the working directory cannot be entered",
			Detail: "dir " + dir + " cannot be looked at", Err: err,
		}
	case !info.IsDir():
		return &scaler.Failure{
			Reason: scaler.ReasonNotFound, ForGood: true, Short: "the working directory is not a directory",
			Detail: "dir " + dir + " is not a directory",
		}
	}
	return nil
}

// findCommand returns the path of the program that command names, or a
// failure for good. A name without a slash is looked up on path, one with a
// slash is relative to dir.
func findCommand(command, dir, path string) (string, *scaler.Failure) {
	if command == "" {
		return "", cannotExecute("the command is empty", "the placeholders in the command left nothing of it", nil)
	}
	if isPath(command) {
		full := command
		if !filepath.IsAbs(full) {
			full = filepath.Join(dir, full)
		}
		// An absolute path means the same before and after the child has
		// changed its directory.
		full, err := filepath.Abs(full)
		if err == nil {
			err = checkExecutable(full)
		}
		if err != nil {
			f := commandFailure(full, err)
			if hint := quotesHint(command); hint != "" && errors.Is(err, fs.ErrNotExist) {
				f.Detail += "; " + hint
			}
			return "", f
		}
		return full, nil
	}
	var unusable *scaler.Failure
	for _, entry := range filepath.SplitList(path) {
		// As in os/exec: the current directory is no place to find programs.
		if !filepath.IsAbs(entry) {
			continue
		}
		full := filepath.Join(entry, command)
		err := checkExecutable(full)
		if err == nil {
			return full, nil
		}
		// A directory that may not be searched says nothing about the command.
		if _, statErr := os.Stat(full); statErr == nil && unusable == nil && !errors.Is(err, errIsDirectory) {
			unusable = commandFailure(full, err)
		}
	}
	if unusable != nil {
		return "", unusable
	}
	detail := fmt.Sprintf("%s is in no directory of the instance's PATH (%s); give an absolute path or set env PATH", command, path)
	if hint := quotesHint(command); hint != "" {
		detail = fmt.Sprintf("'%s' is in no directory of the instance's PATH (%s); %s", command, path, hint)
	}
	return "", cannotExecute("the command does not exist", detail, fs.ErrNotExist)
}

// quotesHint is for a command that looks like a whole command line.
func quotesHint(command string) string {
	program, _, more := strings.Cut(strings.TrimSpace(command), " ")
	if !more {
		return ""
	}
	return fmt.Sprintf("the quotes make one word of it: leave them out, so that '%s' is the command and the rest are its arguments", program)
}

// isPath tells that a command is not to be looked up.
func isPath(command string) bool {
	return strings.ContainsRune(command, '/') || filepath.Base(command) != command
}

// commandFailure puts into words why a program cannot be run.
func commandFailure(path string, err error) *scaler.Failure {
	switch {
	case errors.Is(err, fs.ErrNotExist):
		return cannotExecute("the command does not exist", path+" does not exist", err)
	case errors.Is(err, errIsDirectory):
		return cannotExecute("the command is a directory", path+" is a directory; name the program in it", err)
	case errors.Is(err, fs.ErrPermission):
		return cannotExecute("the command is not executable",
			path+" may not be executed by Caddy; check its mode (chmod +x) and those of the directories above it", err)
	}
	return cannotExecute("the command cannot be executed", path, err)
}

func cannotExecute(short, detail string, err error) *scaler.Failure {
	return &scaler.Failure{Reason: scaler.ReasonExec, ForGood: true, Short: short, Detail: detail, Err: err}
}

var errIsDirectory = errors.New("is a directory")
