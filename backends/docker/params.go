package docker

import (
	"strconv"
	"strings"

	"github.com/caddy-usher/usher/scaler"
)

// TakesParam implements scaler.ParamTaker: which container that exists, and of
// an image the arguments behind the first word of the command and the values of
// variables. The first word can be the program. The image, volumes, the user
// and the engine are the operator's.
func (b *Backend) TakesParam(path ...string) bool {
	switch {
	case len(path) == 1:
		switch form(path[0]) {
		case formContainer, formCompose:
			return true
		case formLabel:
			key, _, ok := strings.Cut(b.Label, "=")
			return ok && !scaler.ParamPlaceholder(key)
		}
	case len(path) == 2 && path[0] == "command":
		i, err := strconv.Atoi(path[1])
		return err == nil && scaler.ParamArg(b.Command, i)
	case len(path) == 2 && path[0] == "env":
		return scaler.ParamVariable(path[1])
	}
	return false
}

// Interface guard.
var _ scaler.ParamTaker = (*Backend)(nil)
