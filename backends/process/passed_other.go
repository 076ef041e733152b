//go:build !linux

package process

import (
	"errors"
	"os"
)

// canPassListener tells that `listen fd` does not work on this system.
const canPassListener = false

// passedListener does not exist here: Provision refuses `listen fd`.
type passedListener struct{ file *os.File }

func listenOn(int) (*passedListener, error) { return nil, errors.ErrUnsupported }

func (*passedListener) close()          {}
func (*passedListener) accepted() error { return errors.ErrUnsupported }

// errEnded answers questions about an instance that is gone.
var errEnded = errors.New("the instance has ended")

const passShell = ""

func passArgs(_ string, argv []string) []string { return argv }
func passVariables(string) map[string]string    { return nil }
