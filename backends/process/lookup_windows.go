package process

import (
	"os"
	"os/exec"
)

// checkExecutable tells whether path is a program, with one of the extensions
// of PATHEXT if it has none.
func checkExecutable(path string) error {
	if info, err := os.Stat(path); err == nil && info.IsDir() {
		return errIsDirectory
	}
	_, err := exec.LookPath(path)
	return err
}
