package kubernetes

import (
	"context"
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"os"
	"path/filepath"
	"time"

	"go.uber.org/zap"
)

// markKey is the annotation on a workload that says which Usher scales it. It
// is renewed with each change of the number. It keeps two from fighting; it is
// no lock.
const markKey = "usher.caddyserver.com/scaled-by"

// markLife is how long a mark speaks for somebody who has not taken it back.
// An Usher that was killed and comes back under another name waits that long.
const markLife = 2 * time.Minute

// A mark says who scaled a workload last, and when.
type mark struct {
	By   string    `json:"by"`
	Time time.Time `json:"time"`
}

func readMark(annotations map[string]string) mark {
	var m mark
	// What is not a mark is nobody's.
	_ = json.Unmarshal([]byte(annotations[markKey]), &m)
	return m
}

// String returns the mark as it is written.
func (m mark) String() string {
	text, err := json.Marshal(m)
	if err != nil {
		return ""
	}
	return string(text)
}

func (m mark) expiry() time.Time { return m.Time.Add(markLife) }

// foreign tells whether somebody other than self scales the workload. A time
// far in the future is a clock that is wrong, not a claim.
func (m mark) foreign(self string) bool {
	left := time.Until(m.expiry())
	return m.By != "" && m.By != self && left > 0 && left <= 2*markLife
}

// identity names this Caddy: the same after a restart, another for another
// Caddy on the same machine, as long as it has its own data directory.
func identity(dataDir string) string {
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

// unmark takes the mark back, so that the next one need not wait.
func (r *runner) unmark(ctx context.Context) {
	r.mu.Lock()
	ours := r.scale.mark.By == r.self && r.trouble == nil
	r.mu.Unlock()
	if !ours {
		return
	}
	ctx, cancel := context.WithTimeout(ctx, unmarkTimeout)
	defer cancel()
	_, err := r.patch(ctx, r.plan.workload.gvr, r.plan.workload.name, map[string]any{
		"metadata": map[string]any{"annotations": map[string]any{markKey: nil}},
	})
	if err != nil {
		r.env.Logger().Debug("the mark on the workload stays until it expires", zap.String("workload", r.describe()), zap.Error(err))
	}
}

// unmarkTimeout bounds how long the end of Caddy waits for the API server.
const unmarkTimeout = 2 * time.Second

// markFails says, once, that another Usher cannot see this one.
func (r *runner) markFails(err error) {
	r.cluster.once("mark "+r.scaling(), func() {
		r.env.Logger().Warn("the workload cannot be marked as scaled by this Caddy: if another Usher scales it too, they will not see each other",
			zap.String("workload", r.describe()), zap.Error(apiFailure(err, "patch", r.plan.workload.String())))
	})
}
