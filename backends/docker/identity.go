package docker

import (
	"context"
	"crypto/rand"
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"

	"github.com/moby/moby/client"

	"github.com/caddy-usher/usher/scaler"
)

// processToken names this process on labels.
var processToken = strings.ToLower(rand.Text()[:6])

// identity is who this Caddy is to an engine: the containers with one of its ids
// are its own. Ids are files in the data directory. A running Caddy holds those
// that are its, and a Caddy that starts takes those that no other holds.
type identity struct {
	own string   // for what is made from now on
	all []string // own, and those of Caddys that are gone

	dir   string
	files map[string]*os.File // held as long as this process runs
	noted []access            // engines with containers of these ids
	err   error               // why the ids outlive nothing
}

// identities are those of this process, by data directory.
var identities = struct {
	sync.Mutex
	byDir map[string]*identity
}{byDir: make(map[string]*identity)}

// identity returns who this Caddy is.
func (r *runner) identity() *identity {
	id := identify(r.env.DataDir)
	id.note(r.engine.access)
	return id
}

// identify returns the identity that belongs to a data directory. If it cannot
// be written, the identity ends with the process.
func identify(dataDir string) *identity {
	identities.Lock()
	defer identities.Unlock()
	dir := filepath.Join(dataDir, "docker")
	if id := identities.byDir[dir]; id != nil {
		return id
	}
	id := &identity{dir: dir, files: make(map[string]*os.File)}
	if id.err = id.take(); id.err != nil || id.own == "" {
		id.own = strings.ToLower(rand.Text()[:16])
		id.all = append(id.all, id.own)
	}
	identities.byDir[dir] = id
	return id
}

// take takes the ids of Caddys that are gone, or makes one.
func (id *identity) take() error {
	if err := os.MkdirAll(id.dir, 0o700); err != nil {
		return err
	}
	names, err := filepath.Glob(filepath.Join(id.dir, "*.id"))
	if err != nil {
		return err
	}
	for _, name := range names {
		if err := id.hold(name); err != nil {
			return err
		}
	}
	if len(id.all) == 0 {
		if err := id.hold(filepath.Join(id.dir, strings.ToLower(rand.Text()[:16])+".id")); err != nil {
			return err
		}
	}
	if len(id.all) > 0 {
		id.own = id.all[0]
	}
	return nil
}

// hold takes the id of a file, unless another process has it.
func (id *identity) hold(name string) error {
	f, err := os.OpenFile(name, os.O_RDWR|os.O_CREATE, 0o600)
	if err != nil {
		return err
	}
	free, err := lock(f)
	if err != nil || !free {
		f.Close()
		return err
	}
	text, err := io.ReadAll(f)
	if err != nil {
		f.Close()
		return err
	}
	// A file that was cut short by a crash says nothing, and does no harm.
	var noted []access
	_ = json.Unmarshal(text, &noted)
	for _, a := range noted {
		if !slices.Contains(id.noted, a) {
			id.noted = append(id.noted, a)
		}
	}
	own := strings.TrimSuffix(filepath.Base(name), ".id")
	id.files[own] = f
	id.all = append(id.all, own)
	return nil
}

// note writes down that there are containers on an engine. It holds the names of
// files, and no secret.
func (id *identity) note(a access) {
	identities.Lock()
	defer identities.Unlock()
	if slices.Contains(id.noted, a) {
		return
	}
	id.noted = append(id.noted, a)
	f := id.files[id.own]
	if f == nil {
		return
	}
	text, err := json.Marshal(id.noted)
	if err == nil {
		_, err = f.WriteAt(text, 0)
	}
	if err == nil {
		err = f.Truncate(int64(len(text)))
	}
	if err != nil {
		id.err = err
	}
}

// revisionOf names a description on labels.
func revisionOf(p *plan) string {
	sum := sha256.Sum256([]byte(p.fingerprint()))
	return hex.EncodeToString(sum[:8])
}

// made says whether labels are those of a container that r has made, or that an
// earlier Caddy has made for the same service and description. The lock is held.
func (r *runner) made(labels map[string]string) bool {
	if labels[labelService] != r.env.Service || labels[labelRevision] != revisionOf(r.plan) {
		return false
	}
	if run := labels[labelRun]; strings.HasPrefix(run, processToken+"-") {
		return run == r.token
	}
	return slices.Contains(identify(r.env.DataDir).all, labels[labelCaddy])
}

// Recover removes the containers that earlier Caddys with the same data
// directory have made and that no service wants any more.
func (*Backend) Recover(ctx context.Context, left scaler.Recovery) {
	if !exists(filepath.Join(left.DataDir, "docker")) {
		return // none was ever made
	}
	id := identify(left.DataDir)
	identities.Lock()
	all, problem := slices.Clone(id.noted), id.err
	identities.Unlock()
	for _, b := range left.Backends {
		if d, ok := b.(*Backend); ok && d.plan != nil && !slices.Contains(all, d.plan.access) {
			all = append(all, d.plan.access)
		}
	}
	if problem != nil {
		left.Logger.Warn("containers that Usher makes of images cannot be found again after a crash", slog.Any("error", problem))
	}
	for _, a := range all {
		if err := recoverAt(ctx, a, id, left.Logger); err != nil && ctx.Err() == nil {
			left.Logger.Warn("what earlier Caddys have left on a container engine cannot be removed now; the next start of Caddy tries again",
				slog.String("host", a.Host), slog.Any("error", err))
		}
	}
}

func exists(path string) bool {
	_, err := os.Stat(path)
	return err == nil
}

// recoverAt removes what was left on one engine.
func recoverAt(ctx context.Context, a access, id *identity, log *slog.Logger) error {
	e := acquire(a)
	defer e.release()
	wait, cancel := context.WithTimeout(ctx, recoverWait)
	defer cancel()
	if f := e.ready(wait); f != nil {
		return f
	}
	c, err := e.api()
	if err != nil {
		return err
	}
	res, err := c.ContainerList(wait, client.ContainerListOptions{All: true, Filters: make(client.Filters).Add("label", labelCaddy)})
	if err != nil {
		return callFailure(err)
	}
	var failed error
	for _, item := range res.Items {
		if !slices.Contains(id.all, item.Labels[labelCaddy]) || e.wanted(item.ID, item.Labels) {
			continue
		}
		if err := discard(ctx, c, item.ID); err != nil && !isNotFound(err) {
			failed = errors.Join(failed, fmt.Errorf("container %s of service %s: %w", short(item.ID), item.Labels[labelService], callFailure(err)))
			continue
		}
		log.Info("removed a container that an earlier Caddy has left", slog.String("container", short(item.ID)), slog.String("service", item.Labels[labelService]))
	}
	return failed
}

// recoverWait is how long an engine is waited for.
const recoverWait = callTimeout

// wanted says whether a container is one that a runner has made or adopts.
func (e *engine) wanted(id string, labels map[string]string) bool {
	if strings.HasPrefix(labels[labelRun], processToken+"-") {
		return true
	}
	e.mu.Lock()
	defer e.mu.Unlock()
	return e.concerns(id, "", labels)
}

// discard stops a container and removes it.
func discard(ctx context.Context, c *client.Client, id string) error {
	seconds := int(pausedStopTimeout.Seconds())
	stop, cancel := context.WithTimeout(ctx, pausedStopTimeout+callTimeout)
	defer cancel()
	// One that is paused or has ended is removed all the same.
	_, _ = c.ContainerStop(stop, id, client.ContainerStopOptions{Timeout: &seconds})
	_, err := c.ContainerRemove(stop, id, client.ContainerRemoveOptions{Force: true, RemoveVolumes: true})
	return err
}

// Interface guard.
var _ scaler.Recoverer = (*Backend)(nil)
