package backendtest

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"reflect"
	"regexp"
	"runtime"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/caddy-usher/usher/scaler"
)

// watch takes the reports of a Scaler, and looks at each for what must be true
// of all.
type watch struct {
	t        testing.TB
	secrets  []string
	patience time.Duration
	inside   atomic.Int32

	mu      sync.Mutex
	reports []delivered
	changed chan struct{}
	seen    map[string]bool // ids of the report before
	gone    map[string]bool // ids that have ended or were left out
	ends    map[string]int  // how often an id was reported with PhaseEnded
	owned   bool
	silent  bool // no report may come any more
	broken  []string
}

// delivered is a report as it was delivered, and what the Scaler holds of it.
type delivered struct {
	scaler.Report
	theirs []scaler.Instance
}

func newWatch(t testing.TB, secrets []string, patience time.Duration) *watch {
	return &watch{
		t: t, secrets: secrets, patience: patience, changed: make(chan struct{}),
		seen: make(map[string]bool), gone: make(map[string]bool), ends: make(map[string]int),
	}
}

// report is Env.Report.
func (w *watch) report(r scaler.Report) {
	if w.inside.Add(1) > 1 {
		w.complain("two reports are delivered at the same time")
	}
	defer w.inside.Add(-1)
	for range 3 {
		runtime.Gosched() // gives a second report the chance to come
	}
	w.mu.Lock()
	defer w.mu.Unlock()
	if w.silent {
		w.complainLocked("a report comes after Close has returned: %+v", r)
	}
	w.look(r)
	copied := r
	copied.Instances = slices.Clone(r.Instances)
	w.reports = append(w.reports, delivered{copied, r.Instances})
	close(w.changed)
	w.changed = make(chan struct{})
}

var urlSafe = regexp.MustCompile(`^[A-Za-z0-9._~-]+$`)

// look says what is wrong with a report. The lock is held.
func (w *watch) look(r scaler.Report) {
	now := make(map[string]bool, len(r.Instances))
	for _, i := range r.Instances {
		if !urlSafe.MatchString(i.ID) {
			w.complainLocked("the id %q is not URL-safe", i.ID)
		}
		if now[i.ID] {
			w.complainLocked("the id %s is in one report twice", i.ID)
		}
		if w.gone[i.ID] {
			w.complainLocked("the id %s comes again after it was gone", i.ID)
		}
		now[i.ID] = true
		if i.Phase == scaler.PhaseEnded {
			w.ends[i.ID]++
			w.gone[i.ID] = true
		}
		if i.Since.IsZero() {
			w.complainLocked("instance %s does not say since when it exists", i.ID)
		}
		w.lookAtAddress(i)
		w.lookAtFailure("the failure of instance "+i.ID, i.Failure)
		w.lookAtFailure("the delay of instance "+i.ID, i.Delay)
		if i.Completed && (i.Phase != scaler.PhaseEnded || i.Failure != nil) {
			w.complainLocked("instance %s has completed, but is in phase %d with failure %v", i.ID, i.Phase, i.Failure)
		}
		if i.Slots < 0 {
			w.complainLocked("instance %s has %d slots", i.ID, i.Slots)
		}
	}
	for id := range w.seen {
		if !now[id] {
			w.gone[id] = true
		}
	}
	w.seen = now
	if r.Desired < 0 || r.Remains < 0 {
		w.complainLocked("a report has Desired %d and Remains %d", r.Desired, r.Remains)
	}
	if n := len(living(r)); w.owned && r.Desired != n {
		w.complainLocked("the instances belong to this Caddy, and of the %d that do not stop the report says that it works towards %d", n, r.Desired)
	}
	w.lookAtFailure("the trouble of the platform", r.Trouble)
	if r.Hold != nil {
		w.lookAtFailure("the failure of a hold", r.Hold.Failure)
	}
}

func (w *watch) lookAtAddress(i scaler.Instance) {
	switch i.Network {
	case "":
		if i.Address != "" {
			w.complainLocked("instance %s has the address %q and no network", i.ID, i.Address)
		}
	case "tcp":
		if _, _, err := net.SplitHostPort(i.Address); err != nil {
			w.complainLocked("the address of instance %s: %v", i.ID, err)
		}
	case "unix":
		if i.Address == "" {
			w.complainLocked("instance %s has a network and no address", i.ID)
		}
	default:
		w.complainLocked("the network of instance %s is %q: it is tcp or unix", i.ID, i.Network)
	}
}

var reasons = []scaler.Reason{
	scaler.ReasonNotFound, scaler.ReasonForbidden, scaler.ReasonExec, scaler.ReasonExit, scaler.ReasonTimeout,
	scaler.ReasonImage, scaler.ReasonCrashLoop, scaler.ReasonUnschedulable, scaler.ReasonQuota, scaler.ReasonConflict,
	scaler.ReasonPlatform,
}

// lookAtFailure says what is wrong with a failure. The lock is held.
func (w *watch) lookAtFailure(what string, f *scaler.Failure) {
	if f == nil {
		return
	}
	if !slices.Contains(reasons, f.Reason) {
		w.complainLocked("%s has the reason %q, which is not in the list", what, f.Reason)
	}
	if f.Short == "" {
		w.complainLocked("%s has no short text for clients: %v", what, f)
	}
	for _, secret := range w.secrets {
		if strings.Contains(f.Short, secret) {
			w.complainLocked("%s shows a secret to clients: %q", what, f.Short)
		}
	}
}

// checkError looks at an error of Scale.
func (w *watch) checkError(err error) {
	w.mu.Lock()
	defer w.mu.Unlock()
	f, ok := errors.AsType[*scaler.Failure](err)
	switch {
	case ok:
		w.lookAtFailure("the failure of an order", f)
	case errors.Is(err, scaler.ErrLater), errors.Is(err, context.Canceled), errors.Is(err, context.DeadlineExceeded):
	default:
		w.complainLocked("Scale returns %v: it is a *scaler.Failure, ErrLater, or the error of the context", err)
	}
}

func (w *watch) complain(format string, args ...any) {
	w.mu.Lock()
	defer w.mu.Unlock()
	w.complainLocked(format, args...)
}

func (w *watch) complainLocked(format string, args ...any) {
	if text := fmt.Sprintf(format, args...); !slices.Contains(w.broken, text) {
		w.broken = append(w.broken, text)
	}
}

// owns says that the instances belong to this Caddy.
func (w *watch) owns(owned bool) {
	w.mu.Lock()
	defer w.mu.Unlock()
	w.owned = owned
	if n := len(w.reports); n > 0 {
		w.look(w.reports[n-1].Report)
	}
}

// closed says that Close has returned.
func (w *watch) closed() {
	w.mu.Lock()
	defer w.mu.Unlock()
	w.silent = true
}

// verify tells the test what is wrong.
func (w *watch) verify() {
	w.t.Helper()
	w.mu.Lock()
	defer w.mu.Unlock()
	for _, r := range w.reports {
		if !reflect.DeepEqual(r.Instances, slices.Clone(r.theirs)) {
			w.complainLocked("a report was changed after it was delivered: its list is the loop's")
		}
	}
	for id, n := range w.ends {
		if n > 1 {
			w.complainLocked("the end of instance %s is reported %d times", id, n)
		}
	}
	for _, text := range w.broken {
		w.t.Error(text)
	}
}

// latest returns the last report.
func (w *watch) latest() (scaler.Report, bool) {
	w.mu.Lock()
	defer w.mu.Unlock()
	if len(w.reports) == 0 {
		return scaler.Report{}, false
	}
	return w.reports[len(w.reports)-1].Report, true
}

// since returns the reports from the one with this number on.
func (w *watch) since(n int) []scaler.Report {
	w.mu.Lock()
	defer w.mu.Unlock()
	var all []scaler.Report
	for _, r := range w.reports[n:] {
		all = append(all, r.Report)
	}
	return all
}

func (w *watch) count() int {
	w.mu.Lock()
	defer w.mu.Unlock()
	return len(w.reports)
}

// await waits until the latest report is as wanted. What a report does not
// tell, the condition may ask the platform: it is looked at again and again.
func (w *watch) await(what string, ok func(scaler.Report) bool, more ...any) scaler.Report {
	w.t.Helper()
	deadline := time.NewTimer(w.patience)
	defer deadline.Stop()
	for {
		w.mu.Lock()
		changed := w.changed
		w.mu.Unlock()
		r, has := w.latest()
		if has && ok(r) {
			return r
		}
		again := time.NewTimer(lookAgain)
		select {
		case <-changed:
		case <-again.C:
		case <-deadline.C:
			again.Stop()
			w.verify()
			w.t.Fatalf("not within %v: %s %v; the last report is %+v, trouble %v", w.patience, what, more, r, r.Trouble)
		}
		again.Stop()
	}
}

// awaitEnd waits for the report in which an instance has ended or is missing,
// among those from the given number on.
func (w *watch) awaitEnd(id string, from int) (ended scaler.Instance, told bool) {
	w.t.Helper()
	w.await("the end of "+id, func(scaler.Report) bool {
		for _, r := range w.since(from) {
			k := slices.IndexFunc(r.Instances, func(i scaler.Instance) bool { return i.ID == id })
			if k < 0 {
				return true
			}
			if r.Instances[k].Phase == scaler.PhaseEnded {
				ended, told = r.Instances[k], true
				return true
			}
		}
		return false
	})
	return ended, told
}

// lookAgain is the pause between two looks at what no report tells.
const lookAgain = 5 * time.Millisecond

// pause lets a moment pass, and returns false if ctx has ended.
func pause(ctx context.Context) bool {
	t := time.NewTimer(lookAgain)
	defer t.Stop()
	select {
	case <-t.C:
		return true
	case <-ctx.Done():
		return false
	}
}

// living returns the instances that neither stop nor have ended.
func living(r scaler.Report) []scaler.Instance {
	return slices.DeleteFunc(slices.Clone(r.Instances), func(i scaler.Instance) bool {
		return i.Phase == scaler.PhaseStopping || i.Phase == scaler.PhaseEnded
	})
}

func idsOf(all []scaler.Instance) []string {
	ids := make([]string, 0, len(all))
	for _, i := range all {
		ids = append(ids, i.ID)
	}
	slices.Sort(ids)
	return ids
}

func sortByStopRank(all []scaler.Instance) {
	slices.SortStableFunc(all, func(a, b scaler.Instance) int { return cmp.Compare(b.StopRank, a.StopRank) })
}

func quiet() *slog.Logger { return slog.New(slog.DiscardHandler) }
