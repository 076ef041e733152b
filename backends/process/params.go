package process

import (
	"strconv"

	"github.com/caddy-usher/usher/scaler"
)

// TakesParam implements scaler.ParamTaker: arguments and the values of
// variables. The command, its directory, its user and files are the operator's,
// and so is everything that a shell would read as code.
func (b *Backend) TakesParam(path ...string) bool {
	if len(path) != 2 {
		return false
	}
	switch path[0] {
	case "args":
		i, err := strconv.Atoi(path[1])
		return err == nil && scaler.ParamArg(append([]string{b.Command}, b.Args...), i+1)
	case "env":
		return scaler.ParamVariable(path[1])
	}
	return false
}

// Interface guard.
var _ scaler.ParamTaker = (*Backend)(nil)
