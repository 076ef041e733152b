package kubernetes

import (
	"strings"

	"github.com/caddy-usher/usher/scaler"
)

// TakesParam implements scaler.ParamTaker: the name of the workload and its
// namespace. The kind of the workload, and how the cluster is reached, are the
// operator's.
func (b *Backend) TakesParam(path ...string) bool {
	if len(path) != 1 {
		return false
	}
	switch path[0] {
	case "resource":
		kind, _, ok := strings.Cut(b.Resource, "/")
		return ok && !scaler.ParamPlaceholder(kind)
	case "namespace":
		return true
	}
	return false
}

// Interface guard.
var _ scaler.ParamTaker = (*Backend)(nil)
