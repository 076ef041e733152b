package kubernetes

import (
	"cmp"
	"context"
	"log/slog"
	"maps"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"time"

	"k8s.io/apimachinery/pkg/labels"

	"github.com/caddy-usher/usher/scaler"
)

// The pauses between attempts to read the scale, where no event tells.
const (
	firstRetry = 250 * time.Millisecond
	lastRetry  = 15 * time.Second
)

// runner is the Scaler: it scales one workload for one revision of a service.
// It has a goroutine only while there is something to look at.
type runner struct {
	plan    *plan
	env     scaler.Env
	cluster *cluster
	ns      *namespace
	self    string    // this Usher, for the ownership annotation
	entered time.Time // guarded by the cluster's mu

	selector atomic.Pointer[labels.Selector] // nil until the scale was read

	// wake is a leaf: nothing is locked under it.
	wake struct {
		sync.Mutex
		active bool
		look   bool // there is something to report
		read   bool // the scale is to be read
		again  *time.Timer
		closed bool
	}
	life sync.WaitGroup

	// orders is held while an order is carried out, and taken before mu.
	orders sync.Mutex

	// mu is held while reports are delivered, which keeps them in order.
	mu            sync.Mutex
	scale         scale
	changes       int             // of the scale that were ours; a read in between is void
	trouble       *scaler.Failure // of reading the scale
	refusal       *scaler.Failure // of the making of pods, from events
	reading       time.Duration   // the pause before the next attempt
	looked        time.Duration   // the pause before the next look at events
	reported      map[string]string
	finished      map[string]bool
	leaving       map[string]bool // by uid, the pods that were on their way out then
	wanted        int             // the sum of the ReplicaSets' numbers then
	came          bool            // pods, since the number was last held against them
	went          bool
	ordering      bool              // an order is under way: its effects can be seen before its answer
	supersededIDs map[string]string // the ids that pods had before another revision took over, by uid
	suffix        string            // of ids
	taken         int               // how often another revision took over
	last          scaler.Report
	full          bool // a complete report was delivered
	news          chan struct{}
	closed        bool

	ctx    context.Context
	cancel context.CancelFunc
}

// open connects a runner. It makes no call itself: its goroutine does.
func open(p *plan, env scaler.Env) (*runner, error) {
	cl, err := joinCluster(p.connection, env.Logger())
	if err != nil {
		return nil, err
	}
	space := p.namespace
	if space == "" {
		space = cl.space
	}
	r := &runner{
		plan: p, env: env, cluster: cl, ns: cl.join(space), self: identity(env.Host),
		finished: make(map[string]bool), reported: make(map[string]string), supersededIDs: make(map[string]string),
		news: make(chan struct{}),
	}
	r.ctx, r.cancel = context.WithCancel(context.Background())
	cl.enter(r)
	r.mu.Lock()
	if cl.contested(r) {
		// Until the one before is closed both list the same pods.
		r.suffix = "." + env.Revision
	}
	r.mu.Unlock()
	r.ns.subscribe(r)
	r.poke(true)
	return r, nil
}

// poke lets the runner look at what there is, and read the scale if told to.
// It never blocks.
func (r *runner) poke(read bool) {
	w := &r.wake
	w.Lock()
	defer w.Unlock()
	if w.closed {
		return
	}
	w.look = true
	w.read = w.read || read
	if !w.active {
		w.active = true
		r.life.Go(r.work)
	}
}

// pokeIn pokes after a pause, in place of what was to come later.
func (r *runner) pokeIn(pause time.Duration) {
	w := &r.wake
	w.Lock()
	defer w.Unlock()
	if w.closed {
		return
	}
	if w.again != nil {
		w.again.Stop()
	}
	w.again = time.AfterFunc(pause, func() { r.poke(true) })
}

// work looks until nothing is new.
func (r *runner) work() {
	w := &r.wake
	for {
		w.Lock()
		if !w.look || w.closed {
			w.active = false
			w.Unlock()
			return
		}
		read := w.read
		w.look, w.read = false, false
		w.Unlock()
		if read {
			r.read(r.ctx)
		}
		if r.report() {
			r.poke(true)
		}
		r.lookForRefusals()
	}
}

// read reads the scale, and tries again later if that fails.
func (r *runner) read(ctx context.Context) {
	ctx, cancel := context.WithTimeout(ctx, callTimeout)
	defer cancel()
	r.mu.Lock()
	before := r.changes
	r.mu.Unlock()
	s, f := r.readScale(ctx)
	if ctx.Err() != nil && r.ctx.Err() != nil {
		return
	}
	r.mu.Lock()
	defer r.mu.Unlock()
	r.trouble = f
	if f != nil {
		if r.scale.known {
			r.cluster.mayPass(f)
		}
		if f.Reason == scaler.ReasonNotFound {
			// No controller acts on the number. Remaining pods are still reported.
			r.scale.replicas = 0
		}
		r.reading = min(max(2*r.reading, firstRetry), lastRetry)
		r.pokeIn(r.reading)
		return
	}
	r.reading = 0
	if before != r.changes {
		// It was read before the latest order: what came of that is newer.
		r.poke(true)
		return
	}
	r.scale = s
	r.selector.Store(&s.selector)
	switch {
	case s.ownership.foreign(r.self):
		r.pokeIn(time.Until(s.ownership.expiry()) + 10*time.Millisecond)
	case s.autoscaler != "" && s.replicas > 0:
		// No event tells that it was deleted.
		r.pokeIn(autoscaledLife + time.Second)
	}
}

// report tells what there is. It returns whether the scale does not fit what
// is seen and has to be read again.
func (r *runner) report() (doubtful bool) {
	r.mu.Lock()
	defer r.mu.Unlock()
	if r.closed {
		return false
	}
	v := r.ns.see(r)
	trouble := r.trouble
	if v.trouble != nil && (trouble == nil || passing(trouble)) {
		trouble = v.trouble
	}
	if !v.synced || !r.scale.known {
		if trouble != nil {
			r.last.Trouble = trouble
			r.tell()
		}
		return false
	}
	mine, sets := r.own(v)
	rep := scaler.Report{Desired: r.scale.replicas, Trouble: trouble}
	superseded, _ := r.cluster.place(r)
	if superseded {
		r.giveUp()
		rep.Desired = 0
	}
	rep.Instances = r.list(mine, superseded)
	if !superseded {
		rep.Hold = r.hold(mine)
		live, wanted := countLive(mine), 0
		for _, s := range sets {
			wanted += s.replicas
		}
		if !r.ordering {
			// What follows from our own orders is no news.
			doubtful = r.came && live > rep.Desired || r.went && live < rep.Desired ||
				sets != nil && wanted != rep.Desired && wanted != r.wanted
			r.came, r.went, r.wanted = false, false, wanted
		}
		if live >= rep.Desired {
			r.refusal, r.looked = nil, 0
		} else if rep.Trouble == nil {
			if rep.Trouble = shutOut(sets); rep.Trouble == nil {
				rep.Trouble = r.refusal
			}
		}
	}
	r.last, r.full = rep, true
	r.tell()
	return doubtful
}

// tell delivers the report, and wakes the goroutines that wait for one. The lock is held.
func (r *runner) tell() {
	rep := r.last
	rep.Instances = slices.Clone(rep.Instances)
	r.env.Report(rep)
	r.last.Instances = slices.DeleteFunc(r.last.Instances, func(in scaler.Instance) bool { return in.Phase == scaler.PhaseEnded })
	close(r.news)
	r.news = make(chan struct{})
}

// own returns the pods of the workload and its ReplicaSets. The lock is held.
func (r *runner) own(v view) (mine []*pod, sets []*replicaSet) {
	w := r.plan.workload
	owners := make(map[string]bool)
	for _, s := range v.sets {
		if w.gvr == deployments && s.owner.uid == r.scale.uid || w.gvr == replicaSets && s.uid == r.scale.uid {
			owners[s.uid] = true
			sets = append(sets, s)
		}
	}
	if w.gvr == statefulSets {
		owners[r.scale.uid] = true
	}
	closed := w.needsReplicaSets() || w.gvr == statefulSets
	for _, p := range v.pods {
		if r.scale.selector.Matches(p.labels) && (!closed || owners[p.owner.uid]) {
			mine = append(mine, p)
		}
	}
	slices.SortFunc(mine, func(a, b *pod) int {
		return cmp.Or(a.created.Compare(b.created), strings.Compare(a.name, b.name))
	})
	return mine, sets
}

// list describes the pods, and the ends of those that are no more. It takes
// note of pods that came and of those that began to go. The lock is held.
func (r *runner) list(mine []*pod, superseded bool) (all []scaler.Instance) {
	reported := make(map[string]string, len(mine))
	supersededIDs := make(map[string]string)
	finished := make(map[string]bool)
	leaving := make(map[string]bool)
	for _, p := range mine {
		if id := r.supersededIDs[p.uid]; id != "" {
			supersededIDs[p.uid] = id
			all = append(all, scaler.Instance{ID: id, Since: p.created, Phase: scaler.PhaseStopping})
		}
		if superseded {
			continue
		}
		before := r.reported[p.uid]
		n, end, _ := p.run(r.plan.port)
		if p.finished() && !p.deleting {
			finished[p.uid] = true
			if before == "" {
				before = p.id(n, r.suffix)
			}
			if r.full && !r.finished[p.uid] {
				all = append(all, scaler.Instance{ID: before, Since: p.created, Phase: scaler.PhaseEnded, Failure: p.exit(end)})
				r.went = true
			}
			continue
		}
		in := p.instance(r.plan.port, r.suffix)
		if before != "" && p.deleting {
			// That its containers end is no new run.
			in.ID = before
		}
		if before != "" && before != in.ID {
			all = append(all, scaler.Instance{ID: before, Since: p.created, Phase: scaler.PhaseEnded, Failure: p.exit(end)})
		}
		r.came = r.came || before == "" && !p.deleting
		leaving[p.uid] = p.deleting
		reported[p.uid] = in.ID
		all = append(all, in)
	}
	for uid := range r.reported {
		r.went = r.went || reported[uid] == ""
	}
	for uid, going := range leaving {
		r.went = r.went || going && !r.leaving[uid]
	}
	r.reported, r.supersededIDs, r.finished, r.leaving = reported, supersededIDs, finished, leaving
	return all
}

// Traits implements scaler.Scaler: the controller of a workload removes the
// pods that are too many.
func (r *runner) Traits() scaler.Traits {
	return scaler.Traits{Trims: true, Platform: "kubernetes " + r.plan.key()}
}

// giveUp leaves the pods to a later revision: to this one they are on their
// way out, and get no request. The lock is held.
func (r *runner) giveUp() {
	if len(r.reported) == 0 {
		return
	}
	maps.Copy(r.supersededIDs, r.reported)
	r.reported = make(map[string]string)
}

// takeBack makes r the one that scales again, after a later revision of the
// same was given up. What runs gets new ids: those of before were given away.
// An order that crossed with the opening of that revision says nothing, so it
// returns false if that was not a while ago.
func (r *runner) takeBack(ctx context.Context) bool {
	if wait := takenAfter - time.Since(r.cluster.supersededAt(r)); wait > 0 {
		select {
		case <-ctx.Done():
		case <-time.After(wait):
		}
		return false
	}
	r.cluster.enter(r)
	r.mu.Lock()
	r.taken++
	r.suffix = "." + r.env.Revision + string(rune('a'+r.taken%26))
	r.mu.Unlock()
	r.report()
	return true
}

// takenAfter is how long after the opening of a later revision an order to an
// earlier one is meant.
const takenAfter = time.Second

// hold tells what else controls the number of pods. The lock is held.
func (r *runner) hold(mine []*pod) *scaler.Hold {
	if f := r.foreigner(); f != nil {
		return &scaler.Hold{Fewer: true, More: true, None: true, Failure: f}
	}
	if name := r.scale.autoscaler; name != "" {
		return &scaler.Hold{Fewer: true, More: true, Failure: &scaler.Failure{
			Reason: scaler.ReasonConflict, Short: "a HorizontalPodAutoscaler scales it too",
			Detail: r.describe() + ": HorizontalPodAutoscaler " + name + " decides between 1 and its maximum, Usher only from zero and to zero; delete it to let Usher decide",
		}}
	}
	if r.plan.workload.gvr == deployments {
		owner := ""
		for _, p := range mine {
			if p.live() && owner != "" && p.owner.uid != owner {
				// A rollout: fewer than it works with would end it.
				return &scaler.Hold{Fewer: true}
			}
			if p.live() {
				owner = p.owner.uid
			}
		}
	}
	return nil
}

// foreigner names the other Usher that scales the workload, if this one must
// leave it alone. The lock is held.
func (r *runner) foreigner() *scaler.Failure {
	f := &scaler.Failure{Reason: scaler.ReasonConflict, ForGood: true}
	if _, behind := r.cluster.place(r); behind != "" {
		f.Short = "service " + behind + " scales it too"
		f.Detail = r.describe() + " is scaled by service " + behind + " of the same Caddy; this service sends requests to its pods and leaves their number alone"
		return f
	}
	if m := r.scale.ownership; m.foreign(r.self) {
		f.Short = "another Usher scales it"
		f.Detail = r.describe() + " was scaled by " + m.By + " at " + m.Time.Format(time.RFC3339) + "; this Caddy sends requests to its pods and leaves their number alone while that is less than " + ownershipLife.String() + " ago"
		return f
	}
	return nil
}

// describe names the workload in messages.
func (r *runner) describe() string {
	return r.plan.workload.String() + " in namespace " + r.ns.name
}

func countLive(all []*pod) int {
	n := 0
	for _, p := range all {
		if p.live() {
			n++
		}
	}
	return n
}

// Close ends the watching. The pods are left as they are.
func (r *runner) Close(ctx context.Context, _ time.Duration) error {
	r.wake.Lock()
	first := !r.wake.closed
	r.wake.closed = true
	if r.wake.again != nil {
		r.wake.again.Stop()
	}
	r.wake.Unlock()
	if !first {
		return nil
	}
	r.cancel()
	r.orders.Lock()
	defer r.orders.Unlock()
	r.mu.Lock()
	r.closed = true
	r.mu.Unlock()
	r.ns.unsubscribe(r)
	if r.cluster.exit(r) {
		r.giveUpOwnership(ctx)
	}
	r.life.Wait()
	r.ns.leave()
	r.cluster.leave()
	r.env.Logger().Debug("left the workload as it is", slog.String("workload", r.describe()))
	return nil
}

// Interface guards.
var (
	_ scaler.Scaler    = (*runner)(nil)
	_ scaler.Restarter = (*runner)(nil)
)
