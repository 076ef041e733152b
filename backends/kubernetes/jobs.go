package kubernetes

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"log/slog"
	"slices"
	"sort"
	"strings"
	"sync"
	"time"

	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/apis/meta/v1/unstructured"
	"k8s.io/apimachinery/pkg/types"

	"github.com/caddy-usher/usher/kubeaccess"
	"github.com/caddy-usher/usher/scaler"
)

// jobs is the Scaler for instances that are the pods of Jobs, one each. A Job is
// made for every start, from a template that lies in the cluster, and nothing
// replaces it. Its pod is done once it has ended well.
//
// A Job is of the one that made it: a Usher, a service, a revision. After a restart
// of Caddy the Jobs of the same Usher, service and description are gone on with.
type jobs struct {
	plan    *plan
	env     scaler.Env
	cluster *cluster
	ns      *namespace
	labels  map[string]string // of all Jobs that are made
	eye     eye

	// orders is held while an order is carried out, and taken before mu.
	orders sync.Mutex

	mu       sync.Mutex
	closed   bool
	full     bool            // a complete report was delivered
	ended    map[string]bool // by uid, the Jobs whose end was reported
	stopping map[string]bool // by uid, those that were deleted
	begun    map[string]bool // by uid, those that had a pod
	number   int             // the highest number of a Job
	trouble  *scaler.Failure // of the latest order, as long as the API cannot be asked
	asking   time.Duration   // the pause before it is asked again
	last     scaler.Report
	news     chan struct{}

	ctx    context.Context
	cancel context.CancelFunc
}

// The labels of Jobs and their pods.
const (
	serviceKey     = "usher.caddyserver.com/service"     // whose they are: see mark
	descriptionKey = "usher.caddyserver.com/description" // what shapes them
	revisionKey    = "usher.caddyserver.com/revision"    // that of the service in the Caddy that made them
	numberKey      = "usher.caddyserver.com/number"
)

func openJobs(b *Backend, env scaler.Env) (scaler.Scaler, error) {
	cl, err := joinCluster(b.plan.connection, env.Logger())
	if err != nil {
		return nil, err
	}
	space := b.plan.namespace
	if space == "" {
		space = cl.space
	}
	j := &jobs{
		plan: b.plan, env: env, cluster: cl, ns: cl.join(space),
		labels: map[string]string{
			serviceKey: mark(identity(env.Host), env.Service), descriptionKey: mark(b.plan.workload.name, b.plan.port, b.plan.deadline.String(), b.plan.ttl.String()), revisionKey: mark(identity(env.Host), env.Revision),
		},
		ended: make(map[string]bool), stopping: make(map[string]bool), begun: make(map[string]bool), news: make(chan struct{}),
	}
	j.ctx, j.cancel = context.WithCancel(context.Background())
	j.eye.look = func() {
		j.askAgain()
		j.report()
	}
	j.ns.subscribeJobs(j)
	j.eye.poke()
	return j, nil
}

// concerns reports whether an object with these labels may be of j.
func (j *jobs) concerns(labels map[string]string) bool {
	return labels[serviceKey] == j.labels[serviceKey]
}

// own returns the Jobs of j, the oldest first: those that it has made, and those
// of its description that no other one in this process has made. The lock is held.
func (j *jobs) own(all []*job) (mine []*job) {
	for _, one := range all {
		switch {
		case !j.concerns(one.labels) || one.labels[descriptionKey] != j.labels[descriptionKey]:
		case one.labels[revisionKey] == j.labels[revisionKey], !j.ns.isJobRevision(one.labels[revisionKey]):
			mine = append(mine, one)
		}
	}
	slices.SortFunc(mine, func(a, b *job) int { return cmp.Or(a.created.Compare(b.created), strings.Compare(a.name, b.name)) })
	return mine
}

// report tells what there is.
func (j *jobs) report() {
	j.mu.Lock()
	defer j.mu.Unlock()
	if j.closed {
		return
	}
	all, synced, trouble := j.ns.jobs.all()
	pods, podsSynced, podsTrouble := j.ns.pods.all()
	if trouble == nil {
		trouble = podsTrouble
	}
	if j.trouble != nil && (trouble == nil || passing(trouble)) {
		trouble = j.trouble
	}
	if !synced || !podsSynced {
		if trouble != nil {
			j.last.Trouble = trouble
			j.tell()
		}
		return
	}
	byJob := make(map[string]*pod)
	for _, p := range pods {
		if p.owner.kind != "Job" || !j.concerns(p.labels) {
			continue
		}
		if before := byJob[p.owner.uid]; before == nil || p.created.After(before.created) {
			byJob[p.owner.uid] = p
		}
	}
	rep := scaler.Report{Trouble: trouble}
	ended, stopping, begun := make(map[string]bool), make(map[string]bool), make(map[string]bool)
	for _, one := range j.own(all) {
		j.number = max(j.number, one.number)
		in := j.instance(one, byJob[one.uid])
		begun[one.uid] = j.begun[one.uid] || byJob[one.uid] != nil
		switch in.Phase {
		case scaler.PhaseEnded:
			ended[one.uid] = true
			if j.ended[one.uid] || !j.full {
				continue // it was told, or ended before it was looked at
			}
		case scaler.PhaseStopping:
			if j.stopping[one.uid] {
				stopping[one.uid] = true
			}
		default:
			rep.Desired++
		}
		rep.Instances = append(rep.Instances, in)
	}
	j.ended, j.stopping, j.begun = ended, stopping, begun
	j.last, j.full = rep, true
	j.tell()
}

// askAgain asks the API after an order has failed because it could not be asked.
func (j *jobs) askAgain() {
	j.mu.Lock()
	trouble := j.trouble
	j.mu.Unlock()
	if trouble == nil {
		return
	}
	ctx, cancel := context.WithTimeout(j.ctx, callTimeout)
	defer cancel()
	_, f := j.readTemplate(ctx)
	j.mu.Lock()
	defer j.mu.Unlock()
	if j.trouble != trouble {
		return // there was an order meanwhile
	}
	if passing(f) {
		j.asking = min(2*j.asking, lastRetry)
		j.eye.pokeIn(j.asking)
		return
	}
	j.trouble = nil
}

// tell delivers the report. The lock is held.
func (j *jobs) tell() {
	rep := j.last
	rep.Instances = slices.Clone(rep.Instances)
	j.env.Report(rep)
	j.last.Instances = slices.DeleteFunc(j.last.Instances, func(in scaler.Instance) bool { return in.Phase == scaler.PhaseEnded })
	close(j.news)
	j.news = make(chan struct{})
}

// instance describes a Job, with its pod if there is one. The lock is held.
func (j *jobs) instance(one *job, p *pod) scaler.Instance {
	in := scaler.Instance{ID: one.id(), Since: one.created}
	var end *termination
	if p != nil {
		_, end, _ = p.run(j.plan.port)
	}
	switch {
	case one.deleting || j.stopping[one.uid]:
		in.Phase = scaler.PhaseStopping
		return in
	case one.complete, p != nil && p.phase == "Succeeded":
		in.Phase, in.Completed = scaler.PhaseEnded, true
		return in
	case one.failed != nil && one.failed.reason != "BackoffLimitExceeded":
		// Its deadline, for example: that says more than an exit status.
		in.Phase = scaler.PhaseEnded
		in.Failure = &scaler.Failure{Reason: scaler.ReasonExit, Short: one.failed.reason, Detail: "Job " + one.name + ": " + one.failed.message}
		return in
	case p != nil && p.phase == "Failed":
		in.Phase, in.Failure = scaler.PhaseEnded, p.exit(end)
		return in
	case one.failed != nil && p != nil && p.deleting && end != nil:
		in.Phase, in.Failure = scaler.PhaseEnded, p.exit(end)
		return in
	case one.failed != nil && (p == nil || p.deleting): // else the pod says more, in a moment
		in.Phase = scaler.PhaseEnded
		in.Failure = &scaler.Failure{
			Reason: scaler.ReasonExit, Short: "its pod has failed or was deleted",
			Detail: fmt.Sprintf("Job %s: %s (%s). How its pod has ended is not known, because the pod is gone; `kubectl -n %s describe job %s` has the events",
				one.name, one.failed.message, one.failed.reason, j.ns.name, one.name),
		}
		return in
	case p == nil && j.ended[one.uid]:
		in.Phase = scaler.PhaseEnded // the Job says so in a moment
		return in
	case p != nil && p.deleting, p == nil && j.begun[one.uid]:
		in.Phase = scaler.PhaseStopping // the Job gets no other pod, and will say that it has failed
		return in
	case p == nil:
		in.Delay = &scaler.Failure{
			Reason: scaler.ReasonQuota, Short: "its Job has no pod",
			Detail: fmt.Sprintf("Job %s: the cluster has made no pod of it yet; `kubectl -n %s describe job %s` says why", one.name, j.ns.name, one.name),
		}
		return in
	}
	of := p.instance(j.plan.port, "")
	of.ID, of.Since = in.ID, in.Since
	return of
}

// Traits implements scaler.Scaler.
func (j *jobs) Traits() scaler.Traits { return scaler.Traits{Platform: "kubernetes " + j.plan.key()} }

// Scale makes the Jobs that are missing, and deletes those that are named.
func (j *jobs) Scale(ctx context.Context, order scaler.Order) error {
	j.orders.Lock()
	defer j.orders.Unlock()
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	defer context.AfterFunc(j.ctx, cancel)()
	if f := j.awaitList(ctx); f != nil {
		return f
	}
	err := j.carryOut(ctx, order)
	j.mu.Lock()
	j.trouble = nil
	if f, ok := errors.AsType[*scaler.Failure](err); ok && f.Reason == scaler.ReasonPlatform && ctx.Err() == nil {
		j.trouble, j.asking = f, firstRetry // a watch that hears nothing cannot tell silence from peace
		j.eye.pokeIn(j.asking)
	}
	j.mu.Unlock()
	j.report()
	return err
}

// awaitList waits until it is known what there is.
func (j *jobs) awaitList(ctx context.Context) *scaler.Failure {
	for {
		j.mu.Lock()
		full, trouble, news := j.full, j.last.Trouble, j.news
		j.mu.Unlock()
		switch {
		case full:
			return nil
		case trouble != nil:
			return trouble
		}
		select {
		case <-news:
		case <-ctx.Done():
			return apiFailure(ctx.Err(), "list", "jobs")
		}
	}
}

func (j *jobs) carryOut(ctx context.Context, order scaler.Order) error {
	j.mu.Lock()
	number := j.number // what is live, and what comes next, are of one moment
	live := slices.DeleteFunc(slices.Clone(j.last.Instances), func(in scaler.Instance) bool { return in.Phase == scaler.PhaseStopping })
	j.mu.Unlock()
	victims := slices.Clone(order.Stop)
	rest := slices.DeleteFunc(live, func(in scaler.Instance) bool { return contains(order.Stop, in.ID) })
	// What is too much beyond those: first what does not serve yet, the youngest first.
	sort.SliceStable(rest, func(i, k int) bool {
		a, b := &rest[i], &rest[k]
		return cmp.Or(cmp.Compare(a.Phase, b.Phase), b.Since.Compare(a.Since)) < 0
	})
	for len(rest) > order.Instances {
		victims, rest = append(victims, rest[0].ID), rest[1:]
	}
	if err := j.delete(ctx, victims); err != nil {
		return err
	}
	missing := order.Instances - len(rest)
	if missing <= 0 {
		return nil
	}
	from, f := j.readTemplate(ctx)
	if f != nil {
		return f
	}
	for k := range missing {
		if err := j.start(ctx, from, number+1+k); err != nil {
			return err
		}
	}
	return nil
}

// start makes the Job of a number. One of that name that is there already is of this very
// service: the answer to an earlier call was lost, or another Caddy of the cluster
// has made it. It counts as made now.
func (j *jobs) start(ctx context.Context, from *template, number int) error {
	wanted := from.job(j, number)
	var made *unstructured.Unstructured
	err := j.cluster.do(ctx, func(ctx context.Context, c *kubeaccess.Client) (err error) {
		made, err = c.Objects(jobsResource, j.ns.name).Create(ctx, wanted)
		return err
	})
	if apierrors.IsAlreadyExists(err) {
		err = j.cluster.do(ctx, func(ctx context.Context, c *kubeaccess.Client) (err error) {
			made, err = c.Objects(jobsResource, j.ns.name).Get(ctx, wanted.GetName())
			return err
		})
		if err == nil && !j.concerns(made.GetLabels()) {
			return &scaler.Failure{
				Reason: scaler.ReasonConflict, ForGood: true, Short: "there is another Job of that name",
				Detail: fmt.Sprintf("Job %s in namespace %s was not made for service %s: delete it, or give the service another name", wanted.GetName(), j.ns.name, j.env.Service),
			}
		}
	}
	if err != nil {
		return apiFailure(err, "create", "jobs")
	}
	j.mu.Lock()
	j.number = max(j.number, number)
	j.mu.Unlock()
	j.ns.jobs.update(made) // the watch says the same later
	return nil
}

// delete deletes Jobs, with their pods.
func (j *jobs) delete(ctx context.Context, ids []string) error {
	all, _, _ := j.ns.jobs.all()
	var failed error
	for _, one := range all {
		if !contains(ids, one.id()) {
			continue
		}
		uid, background := types.UID(one.uid), metav1.DeletePropagationBackground
		err := j.cluster.do(ctx, func(ctx context.Context, c *kubeaccess.Client) error {
			return c.Objects(jobsResource, j.ns.name).Delete(ctx, one.name, metav1.DeleteOptions{
				Preconditions: &metav1.Preconditions{UID: &uid}, PropagationPolicy: &background,
			})
		})
		if err != nil && !apierrors.IsNotFound(err) && !apierrors.IsConflict(err) {
			failed = apiFailure(err, "delete", "jobs")
			continue
		}
		j.mu.Lock()
		j.stopping[one.uid] = true
		j.mu.Unlock()
	}
	if failed != nil {
		return fmt.Errorf("stopping Jobs of service %s in namespace %s: %w", j.env.Service, j.ns.name, failed)
	}
	return nil
}

// Close ends the watching. The Jobs are left as they are: another Caddy of the
// cluster, or the next one here, goes on with them.
func (j *jobs) Close(context.Context, time.Duration) error {
	j.mu.Lock()
	first := !j.closed
	j.closed = true
	j.mu.Unlock()
	if !first {
		return nil
	}
	j.cancel()
	j.orders.Lock()
	defer j.orders.Unlock()
	j.ns.unsubscribeJobs(j)
	j.eye.close()
	j.ns.leave()
	j.cluster.leave()
	j.env.Logger().Debug("left the Jobs as they are", slog.String("template", j.plan.workload.String()), slog.String("namespace", j.ns.name))
	return nil
}

var _ scaler.Scaler = (*jobs)(nil)
