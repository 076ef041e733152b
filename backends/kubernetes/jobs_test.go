package kubernetes

import (
	"errors"
	"fmt"
	"maps"
	"net/http"
	"slices"
	"strings"
	"testing"

	"github.com/caddyserver/caddy/v2"
	"github.com/caddyserver/caddy/v2/caddyconfig/caddyfile"

	"github.com/caddy-usher/usher/reserver"
	"github.com/caddy-usher/usher/scaler"
	"github.com/caddy-usher/usher/scaler/control"
)

// withJobs is a server with the template of Jobs `work`, whose pods are ready at
// once.
func withJobs(t *testing.T, spec object) *apiServer {
	t.Helper()
	s := newAPIServer(t)
	s.controllers(running("10.0.0.1", true))
	s.cronJob("work", spec)
	return s
}

func (s *apiServer) jobs() (all []object) {
	s.mu.Lock()
	defer s.mu.Unlock()
	for _, name := range s.names("jobs") {
		all = append(all, s.objects["jobs"][name])
	}
	return all
}

func TestEachInstanceIsThePodOfAJobThatIsMadeFromTheTemplate(t *testing.T) {
	s := withJobs(t, object{
		"parallelism": float64(5), "backoffLimit": float64(6), "suspend": true, "activeDeadlineSeconds": float64(90),
		// What it ignores would be followed by another pod.
		"podFailurePolicy": object{"rules": []any{object{"action": "Ignore", "onPodConditions": []any{object{"type": "DisruptionTarget"}}}}},
	})
	x := serve(t, s, "job/work", nil)
	x.inside().Release(reserver.Answered)
	jobs := s.jobs()
	if len(jobs) != 1 {
		t.Fatalf("%d Jobs", len(jobs))
	}
	spec := child(jobs[0], "spec")
	for field, want := range map[string]int64{"parallelism": 1, "completions": 1, "backoffLimit": 0, "ttlSecondsAfterFinished": 3600, "activeDeadlineSeconds": 90} {
		if got := number(spec, field); got != want {
			t.Errorf("%s is %d, want %d", field, got, want)
		}
	}
	if spec["suspend"] != nil || text(child(child(spec, "template"), "spec"), "restartPolicy") != "Never" || spec["podFailurePolicy"] != nil {
		t.Errorf("%v", spec)
	}
	meta := jobs[0]["metadata"].(object)
	if !strings.HasPrefix(nameOf(jobs[0]), "usher-web-") || text(child(meta, "labels"), "of") != "work" {
		t.Errorf("%v", meta)
	}
}

// What a Job does is done once it has served its request: another one comes for the
// next. That it ends well by itself is no failed start.
func TestAJobThatIsDoneIsFollowedByAnother(t *testing.T) {
	s := withJobs(t, nil)
	x := serve(t, s, "job/work", func(c *control.Settings) { c.Max = 1 })
	for k := range 3 {
		r := x.inside()
		name, _, _ := strings.Cut(r.Instance().ID, ".")
		s.change("pods", name+"-x", func(o object) { merge(o, object{"status": object{"phase": "Succeeded"}}) })
		r.Release(reserver.Neutral)
		eventually(t, fmt.Sprint("Job ", k+1, " is complete"), func() bool { return x.Status().Ready == 0 })
	}
	if n := len(s.jobs()); n != 3 {
		t.Errorf("%d Jobs", n)
	}
	if st := x.Status(); st.Start.Failed != 0 || st.LastError != nil {
		t.Errorf("%+v", st)
	}
}

func TestAJobThatFailsIsAFailureWithItsReason(t *testing.T) {
	for name, c := range map[string]struct {
		end  func(s *apiServer, job string)
		want string
	}{
		"its pod": {func(s *apiServer, job string) {
			s.change("pods", job+"-x", func(o object) {
				merge(o, object{"status": object{"phase": "Failed"}})
				containerIs(object{"state": object{"terminated": object{"exitCode": float64(7), "reason": "Error"}}})(o)
			})
		}, "exit status 7"},
		"its deadline": {func(s *apiServer, job string) {
			s.do(func() {
				s.endJob(job, object{"type": "Failed", "status": "True", "reason": "DeadlineExceeded", "message": "Job was active longer than specified deadline"})
			})
		}, "DeadlineExceeded"},
	} {
		t.Run(name, func(t *testing.T) {
			s := newAPIServer(t)
			s.controllers(running("10.0.0.1", false)) // never ready
			s.cronJob("work", nil)
			x := serve(t, s, "job/work", nil)
			x.Wake()
			eventually(t, "the pod of a Job is known", func() bool {
				all := x.Instances()
				return len(all) == 1 && all[0].Address != ""
			})
			c.end(s, nameOf(s.jobs()[0]))
			eventually(t, "the failure is told", func() bool {
				f := x.Status().LastError
				return f != nil && f.Short == c.want
			})
		})
	}
}

// withoutPod removes a pod, and returns what is reported when b knows of it.
func (b *bench) withoutPod(name string) scaler.Report {
	b.t.Helper()
	b.server.do(func() { b.server.remove("pods", name) })
	j := b.scaler.(*jobs)
	eventually(b.t, name+" has gone", func() bool {
		all, _, _ := j.ns.pods.all()
		return !slices.ContainsFunc(all, func(p *pod) bool { return p.name == name })
	})
	j.report()
	all := b.history()
	return all[len(all)-1]
}

// A Job gets no other pod: one whose pod is being deleted, or has gone, does not
// start, also before the Job says that it has failed.
func TestAJobWhosePodIsDeletedIsStopping(t *testing.T) {
	s := withJobs(t, nil)
	b := openOn(t, s, "job/work")
	b.scale(1)
	b.has(1, 1)
	name := nameOf(s.jobs()[0])
	late := func(v any) func(object) {
		return func(o object) { merge(o, object{"metadata": object{"annotations": object{"test/late": v}}}) }
	}
	s.change("jobs", name, late("yes"))
	stops := func(r scaler.Report) bool {
		return r.Desired == 0 && len(r.Instances) == 1 && r.Instances[0].Phase == scaler.PhaseStopping
	}
	s.change("pods", name+"-x", func(o object) {
		merge(o, object{"metadata": object{"annotations": object{"test/lingers": "yes"}, "deletionTimestamp": "2026-01-01T00:00:00Z"}})
	})
	b.settled("while its pod is being deleted", stops)
	if rep := b.withoutPod(name + "-x"); !stops(rep) {
		t.Errorf("after its pod has gone: %+v", rep)
	}
	s.change("jobs", name, late(nil))
	rep := b.passed("after it has failed", func(r scaler.Report) bool { return len(r.Instances) == 1 && r.Instances[0].Phase == scaler.PhaseEnded })
	// The pod cannot say why any more: the words say where to look.
	if f := rep.Instances[0].Failure; f == nil || !strings.Contains(f.Error(), "describe job "+name) || !strings.Contains(f.Error(), "it has failed") {
		t.Errorf("the failure is %v", f)
	}
}

// The Job can say that it has failed before the pod is seen to have failed. What
// its container has said counts, if it is known.
func TestAJobThatFailsBeforeItsPodIsSeenToSaysWhy(t *testing.T) {
	s := withJobs(t, nil)
	b := openOn(t, s, "job/work")
	b.scale(1)
	b.has(1, 1)
	name := nameOf(s.jobs()[0])
	s.change("jobs", name, func(o object) { merge(o, object{"metadata": object{"annotations": object{"test/late": "yes"}}}) })
	s.change("pods", name+"-x", func(o object) {
		merge(o, object{
			"metadata": object{"annotations": object{"test/lingers": "yes"}, "deletionTimestamp": "2026-01-01T00:00:00Z"},
			"status": object{"containerStatuses": []any{object{
				"name": "app", "state": object{"terminated": object{"exitCode": float64(137), "reason": "OOMKilled", "message": "out of memory"}},
			}}},
		})
	})
	// Pods and Jobs are watched apart from each other.
	b.settled("what the pod says is known", func(r scaler.Report) bool {
		return len(r.Instances) == 1 && r.Instances[0].Phase == scaler.PhaseStopping
	})
	s.do(func() {
		s.endJob(name, object{"type": "Failed", "status": "True", "reason": "BackoffLimitExceeded", "message": "it has failed"})
	})
	rep := b.passed("after it has failed", func(r scaler.Report) bool { return len(r.Instances) == 1 && r.Instances[0].Phase == scaler.PhaseEnded })
	if f := rep.Instances[0].Failure; f == nil || !strings.Contains(f.Error(), "OOMKilled") || !strings.Contains(f.Error(), "out of memory") {
		t.Errorf("the failure is %v", f)
	}
}

// What has ended stays so when its pod goes before the Job says how it has ended.
func TestAJobThatHasEndedDoesNotStartAgainWhenItsPodGoes(t *testing.T) {
	s := withJobs(t, nil)
	b := openOn(t, s, "job/work")
	b.scale(1)
	b.has(1, 1)
	name := nameOf(s.jobs()[0])
	s.change("jobs", name, func(o object) { merge(o, object{"metadata": object{"annotations": object{"test/late": "yes"}}}) })
	s.change("pods", name+"-x", func(o object) { merge(o, object{"status": object{"phase": "Succeeded"}}) })
	b.has(0, 0)
	if rep := b.withoutPod(name + "-x"); rep.Desired != 0 || len(rep.Instances) != 0 {
		t.Errorf("after its pod has gone: %+v", rep)
	}
}

// An answer that is lost makes no second Job: the name is taken again.
func TestAJobWhoseAnswerWasLostIsNotMadeTwice(t *testing.T) {
	s := withJobs(t, nil)
	lost := false
	s.do(func() {
		s.refuse = func(c call) (int, string) {
			if c.verb == "post" && !lost {
				lost = true
				s.mu.Lock()
				s.create(c)
				s.settle()
				s.mu.Unlock()
				return http.StatusInternalServerError, "the answer is lost"
			}
			return 0, ""
		}
	})
	b := openOn(t, s, "job/work")
	if err := b.order(1); err == nil {
		t.Fatal("it has an answer")
	}
	b.scale(1)
	if n := len(s.jobs()); n != 1 {
		t.Errorf("%d Jobs", n)
	}
	b.has(1, 1)
}

// The next Caddy with the same name goes on with what runs; another service leaves
// it alone.
func TestJobsAreGoneOnWithByTheSameServiceAlone(t *testing.T) {
	s := withJobs(t, nil)
	first := openOn(t, s, "job/work")
	first.scale(2)
	first.close()
	if n := len(s.jobs()); n != 2 {
		t.Fatalf("%d Jobs after the end of Caddy", n)
	}
	second := openOn(t, s, "job/work", func(o *options) { o.revision = "r7" })
	ids := alive(second.has(2, 2))
	other := openOn(t, s, "job/work", func(o *options) { o.service = "another" })
	other.has(0, 0)
	second.scale(1, ids[0].ID)
	second.has(1, 1)
	if n := len(s.jobs()); n != 1 {
		t.Errorf("%d Jobs", n)
	}
	// While both are open, each has its own.
	third := openOn(t, s, "job/work", func(o *options) { o.revision = "r8" })
	third.scale(1)
	third.has(1, 1)
	second.has(1, 1)
}

func TestAPodTemplateWillDoAndNoTemplateIsToldWithWords(t *testing.T) {
	s := newAPIServer(t)
	s.controllers(running("10.0.0.1", true))
	b := openOn(t, s, "job/work")
	err := b.order(1)
	if f, ok := errors.AsType[*scaler.Failure](err); !ok || f.Reason != scaler.ReasonNotFound || !strings.Contains(f.Error(), "cronjob/work or podtemplate/work does not exist") {
		t.Fatalf("%v", err)
	}
	pt := newObject("PodTemplate", "work")
	pt["apiVersion"] = "v1"
	pt["template"] = object{"spec": object{"containers": []any{object{"name": "app", "ports": []any{object{"containerPort": float64(80)}}}}}}
	s.do(func() { s.store("podtemplates", pt) })
	b.scale(1)
	if len(s.jobs()) != 1 {
		t.Error("no Job was made")
	}
}

func TestOptionsOfJobs(t *testing.T) {
	for input, want := range map[string]string{
		"kubernetes job/work {\ndeadline 10m\nttl 5m\n}":       "",
		"kubernetes deployment/web {\ndeadline 10m\n}":         "deadline is for job/<name> alone",
		"kubernetes job/work {\nttl soon\n}":                   "no duration of at least 1s",
		"kubernetes job/work {\ndeadline 10m\ndeadline 10m\n}": "given twice",
		"kubernetes job/work {\nttl 10ms\n}":                   "no duration of at least 1s",
		"kubernetes jobs.v1.batch/work":                        "",
	} {
		b := new(Backend)
		err := b.UnmarshalCaddyfile(caddyfile.NewTestDispenser(input))
		if err == nil {
			err = b.Provision(caddy.Context{})
		}
		switch {
		case want == "" && err != nil, want != "" && (err == nil || !strings.Contains(err.Error(), want)):
			t.Errorf("%s: %v", input, err)
		}
		if want == "" && (b.DefaultMaxRequests() == 1) != strings.Contains(input, "job/work") {
			t.Errorf("%s: %d requests", input, b.DefaultMaxRequests())
		}
	}
}

func TestTheManifestForJobsGrantsExactlyTheRightsThatAreUsed(t *testing.T) {
	extra := rightsOf(t, "job-rights.yaml")
	allowed := rightsOf(t, "rights.yaml")
	maps.Copy(allowed, extra)
	used := make(map[string]bool)
	for _, kind := range []string{"cronjobs", "podtemplates"} {
		s := newAPIServer(t)
		s.controllers(running("10.0.0.1", true))
		if kind == "cronjobs" {
			s.cronJob("work", nil)
		} else {
			pt := newObject("PodTemplate", "work")
			pt["template"] = object{"spec": object{"containers": []any{object{"name": "app", "ports": []any{object{"containerPort": float64(80)}}}}}}
			s.do(func() { s.store("podtemplates", pt) })
		}
		lost := false
		s.refuse = func(c call) (int, string) {
			verb := map[string]string{"post": "create"}[c.verb]
			if verb == "" {
				verb = c.verb
			}
			if right := verb + " " + c.resource; !allowed[right] {
				return http.StatusForbidden, "the Role does not say: " + right
			} else if extra[right] {
				s.mu.Lock()
				used[right] = true
				s.mu.Unlock()
			}
			if c.verb == "post" && !lost { // so that it asks what it has made
				lost = true
				s.mu.Lock()
				told := len(s.history)
				s.create(c)
				s.history = s.history[:told] // the watch does not tell of it before it is asked for
				s.mu.Unlock()
				return http.StatusInternalServerError, "the answer is lost"
			}
			return 0, ""
		}
		b := openOn(t, s, "job/work")
		_ = b.order(1)
		b.scale(1)
		b.scale(2)
		b.scale(1)
		b.has(1, 1)
		b.close()
	}
	for right := range extra {
		if !used[right] {
			t.Errorf("granted and not used: %s", right)
		}
	}
}
