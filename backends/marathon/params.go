package marathon

import "github.com/caddy-usher/usher/scaler"

// TakesParam implements scaler.ParamTaker: the id of the app, or a part of it.
// The cluster and its credentials are the operator's.
func (b *Backend) TakesParam(path ...string) bool {
	return len(path) == 1 && path[0] == "app"
}

// Interface guard.
var _ scaler.ParamTaker = (*Backend)(nil)
