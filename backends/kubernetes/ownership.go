package kubernetes

import (
	"context"
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"log/slog"
	"os"
	"path/filepath"
	"time"

	"github.com/caddy-usher/usher/scaler"
)

// ownerKey is the annotation on a workload that names the Usher that scales it.
// Each change of the number renews it. It keeps two Ushers from fighting over
// the workload, but it is no lock.
const ownerKey = "usher.caddyserver.com/scaled-by"

// ownershipLife is how long the annotation of an Usher counts that has not
// removed it. An Usher that was killed and returns under another name waits
// that long.
const ownershipLife = 2 * time.Minute

// ownership names the Usher that scaled a workload last, and when it did.
type ownership struct {
	By   string    `json:"by"`
	Time time.Time `json:"time"`
}

func readOwnership(annotations map[string]string) ownership {
	var o ownership
	// An annotation of another form names no owner.
	_ = json.Unmarshal([]byte(annotations[ownerKey]), &o)
	return o
}

// String returns the value of the annotation.
func (o ownership) String() string {
	text, err := json.Marshal(o)
	if err != nil {
		return ""
	}
	return string(text)
}

func (o ownership) expiry() time.Time { return o.Time.Add(ownershipLife) }

// foreign tells whether an Usher other than self scales the workload. A time far
// in the future comes from a wrong clock and is ignored.
func (o ownership) foreign(self string) bool {
	left := time.Until(o.expiry())
	return o.By != "" && o.By != self && left > 0 && left <= 2*ownershipLife
}

// identity names this Caddy, or all Caddys of its cluster: one of them leads, and
// the next one has to go on at once. The name stays the same after a restart.
// Another Caddy on the same machine has another name if it has its own data
// directory.
func identity(h *scaler.Host) string {
	if name := h.ClusterName(); name != "" {
		return "cluster " + name
	}
	dataDir := h.DataDir
	host, err := os.Hostname()
	if err != nil {
		host = "unknown"
	}
	if abs, err := filepath.Abs(dataDir); err == nil {
		dataDir = abs
	}
	sum := sha256.Sum256([]byte(dataDir))
	return host + "/" + hex.EncodeToString(sum[:4])
}

// giveUpOwnership removes the annotation, so that the next owner need not wait.
// In a cluster it stays, because the other Caddys go on.
func (r *runner) giveUpOwnership(ctx context.Context) {
	if r.env.ClusterName() != "" {
		return
	}
	r.mu.Lock()
	ours := r.scale.ownership.By == r.self && r.trouble == nil
	r.mu.Unlock()
	if !ours {
		return
	}
	ctx, cancel := context.WithTimeout(ctx, giveUpOwnershipTimeout)
	defer cancel()
	_, err := r.patch(ctx, r.plan.workload.gvr, r.plan.workload.name, map[string]any{
		"metadata": map[string]any{"annotations": map[string]any{ownerKey: nil}},
	})
	if err != nil {
		r.env.Logger().Debug("the ownership annotation on the workload stays until it expires", slog.String("workload", r.describe()), slog.Any("error", err))
	}
}

// giveUpOwnershipTimeout limits how long an exiting Caddy waits for the API server.
const giveUpOwnershipTimeout = 2 * time.Second

// ownershipFails warns once that another Usher cannot see this one.
func (r *runner) ownershipFails(err error) {
	r.cluster.once("ownership "+r.scaling(), func() {
		r.env.Logger().Warn("the ownership annotation cannot be written on the workload: if another Usher scales it too, the two will not see each other",
			slog.String("workload", r.describe()), slog.Any("error", apiFailure(err, "patch", r.plan.workload.String())))
	})
}
