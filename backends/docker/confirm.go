package docker

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"os"
	"strings"
	"syscall"
	"time"

	"github.com/moby/moby/api/pkg/stdcopy"
	"github.com/moby/moby/client"

	"github.com/caddy-usher/usher/scaler"
)

// current returns the container of an instance that is to serve, and the
// instance's address.
func (r *runner) current(id string) (m *member, started, address string) {
	r.engine.mu.Lock()
	defer r.engine.mu.Unlock()
	for _, m := range r.members {
		if i := m.instance; i != nil && i.id == id && i.runs() {
			return m, i.started, i.address
		}
	}
	return nil, "", ""
}

var errGone = errors.New("the container runs no more; what answered is not it")

// Confirm tells whether the probe reached the instance: the engine, asked after
// it, says that the container still runs; and behind a published port something
// listens, because the engine's proxy accepts connections for a container that
// does not.
func (r *runner) Confirm(ctx context.Context, id string) error {
	m, started, address := r.current(id)
	if m == nil {
		return errGone
	}
	v, err := r.engine.inspect(ctx, m.id)
	switch {
	case err != nil:
		return callFailure(err)
	case !v.active() || v.started != started:
		return errGone
	case v.isPublished(address):
		return heldOpen(ctx, address)
	}
	return nil
}

// Verify tells whether an instance that has served is still there: an address
// that a container has left is given to the next one at once. While the engine
// cannot be asked it starts nothing that could have it.
func (r *runner) Verify(ctx context.Context, id string) error {
	m, started, address := r.current(id)
	if m == nil {
		return errGone
	}
	v, err := r.engine.inspect(ctx, m.id)
	switch {
	case err != nil:
		return nil //nolint:nilerr // the last known truth holds
	case !v.active() || v.started != started:
		return errGone
	}
	r.engine.mu.Lock()
	defer r.engine.mu.Unlock()
	if now, f := r.engine.route(v, r.plan); f != nil || now != address {
		return errors.New("the container has another address now")
	}
	return nil
}

// proxyCloses is how long the engine's proxy takes to close a connection that
// the container has refused.
const proxyCloses = 15 * time.Millisecond

// heldOpen tells whether a connection to a published port stays open.
func heldOpen(ctx context.Context, address string) error {
	var d net.Dialer
	conn, err := d.DialContext(ctx, "tcp", address)
	if err != nil {
		return err
	}
	defer conn.Close()
	if err := conn.SetReadDeadline(time.Now().Add(proxyCloses)); err != nil {
		return err
	}
	// A server that speaks first is as good as one that waits.
	if _, err = conn.Read(make([]byte, 1)); err == nil || errors.Is(err, os.ErrDeadlineExceeded) {
		return nil
	}
	return fmt.Errorf("the engine's proxy accepts connections, but the container does not: %w", syscall.ECONNREFUSED)
}

// Diagnose looks at an instance that is not ready yet: what it has written, and
// what its health check says.
func (r *runner) Diagnose(ctx context.Context, id string) scaler.Diagnosis {
	m, _, address := r.current(id)
	if m == nil {
		return scaler.Diagnosis{}
	}
	r.engine.mu.Lock()
	v := m.view
	r.engine.mu.Unlock()
	if v == nil {
		return scaler.Diagnosis{}
	}
	d := scaler.Diagnosis{Output: r.lastOutput(ctx, v)}
	if address != "" {
		_, port, _ := net.SplitHostPort(address)
		d.Short = "nothing listens on port " + port + " of the container"
		d.Detail = "container " + v.name + " runs, and is expected at " + address + ": the program has to listen there on all addresses (0.0.0.0), not on 127.0.0.1 of the container; `port` names another port"
		if v.isPublished(address) {
			d.Short = "nothing listens behind the published port"
		}
	}
	if h := v.health; h != nil && len(h.Log) > 0 && h.Log[len(h.Log)-1] != nil {
		if text := strings.TrimSpace(h.Log[len(h.Log)-1].Output); text != "" {
			d.Detail += "; its health check says: " + text
		}
	}
	return d
}

// lastOutput returns the last lines that a container has written, if the engine
// keeps them.
func (r *runner) lastOutput(ctx context.Context, v *view) string {
	c, err := r.engine.api()
	if err != nil {
		return ""
	}
	ctx, cancel := context.WithTimeout(ctx, outputWait)
	defer cancel()
	opts := client.ContainerLogsOptions{ShowStdout: true, ShowStderr: true, Tail: "20"}
	if v.started != "" {
		// A program can write before the engine has noted when it was started.
		opts.Since = v.since().Add(-logsBefore).Format(time.RFC3339Nano)
	}
	logs, err := c.ContainerLogs(ctx, v.id, opts)
	if err != nil {
		return ""
	}
	defer logs.Close()
	raw, _ := io.ReadAll(io.LimitReader(logs, outputMost)) // what was read is enough
	if v.raw != nil && v.raw.Config != nil && v.raw.Config.Tty {
		return strings.TrimRight(string(raw), "\n")
	}
	var text bytes.Buffer
	_, _ = stdcopy.StdCopy(&text, &text, bytes.NewReader(raw)) // the last frame may be cut
	return strings.TrimRight(text.String(), "\n")
}

const (
	outputWait = time.Second
	logsBefore = 2 * time.Second
	outputMost = 16 << 10
)
