//go:build !linux

package process

import (
	"context"

	"github.com/caddy-usher/usher/scaler"
)

// Recover has nothing to do: without a name for processes beyond their pid,
// nothing can be found safely.
func (*Backend) Recover(context.Context, scaler.Recovery) {}
