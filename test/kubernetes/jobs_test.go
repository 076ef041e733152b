//go:build linux

package kubernetes

import (
	"encoding/json"
	"fmt"
	"net/http"
	"strings"
	"testing"
	"time"

	"github.com/caddy-usher/usher/test/harness"
	"github.com/caddy-usher/usher/test/kubernetes/kube"
)

// A job is what the tests want to know of a Job.
type job struct {
	Metadata struct{ Name string }
	Status   struct {
		Succeeded, Failed int
		Conditions        []kube.Condition
	}
}

// over returns the condition that says how the Job has ended, if it has.
func (j job) over() (c kube.Condition) {
	for _, c := range j.Status.Conditions {
		if (c.Type == "Complete" || c.Type == "Failed") && c.Status == "True" {
			return c
		}
	}
	return c
}

// A task is what clients see of one.
type task struct {
	State, Reason string
	Attempts      int
	URL, Result   string
}

// jobsSpace is a namespace in which Usher has the rights of rights.yaml and
// job-rights.yaml, and nothing more, and in which there is the template `work`.
func jobsSpace(t *testing.T) *space {
	t.Helper()
	s := &space{Caddy: harness.New(t), t: t, name: makeNamespace(t, "")}
	grant(t, s.name, "rights.yaml", "job-rights.yaml")
	s.pods = watchPods(t, s.name)
	pod := strings.Replace(s.podSpec(workload{}), "terminationGracePeriodSeconds: 30", "terminationGracePeriodSeconds: 2", 1)
	apply(t, fmt.Sprintf(`
apiVersion: batch/v1
kind: CronJob
metadata: {name: work, namespace: %s}
spec:
  schedule: "0 0 1 1 *"
  suspend: true
  jobTemplate:
    spec:
      template:
        spec:
          restartPolicy: Never
%s`, s.name, indent(pod, 10)))
	return s
}

// in is s for a subtest, in which no Job is left from the one before.
func (s *space) in(t *testing.T) *space {
	t.Helper()
	sub := *s
	sub.t = t
	sub.noPods()
	return &sub
}

// jobs are the Jobs that there are.
func (s *space) jobs() []job {
	s.t.Helper()
	var list struct{ Items []job }
	if err := cluster.Get("/apis/batch/v1/namespaces/"+s.name+"/jobs", &list); err != nil {
		s.t.Fatal(err)
	}
	return list.Items
}

// store hands a request in.
func (s *space) store(path string) (accepted task) {
	s.t.Helper()
	r := s.Do(harness.Request{Path: path, Header: http.Header{"Prefer": {"respond-async"}}})
	if r.Err != nil || r.Status != http.StatusAccepted {
		s.t.Fatalf("status %d, error %v, body %q; want 202", r.Status, r.Err, r.Body)
	}
	if err := json.Unmarshal([]byte(r.Body), &accepted); err != nil {
		s.t.Fatalf("%v: %s", err, r.Body)
	}
	return accepted
}

// ends waits until a task has ended in that state.
func (s *space) ends(url, state string) (ended task) {
	s.t.Helper()
	harness.Eventually(s.t, soon, func() bool {
		r := s.Get(url + "?wait=5")
		if err := json.Unmarshal([]byte(r.Body), &ended); r.Err != nil || err != nil {
			s.t.Fatalf("status %d, errors %v, %v: %s", r.Status, r.Err, err, r.Body)
		}
		return ended.State == state
	}, "task %s is %s, it is %+v", url, state, &ended)
	return ended
}

// doneBy waits until a task is done, and returns it and the pod whose answer its
// result is.
func (s *space) doneBy(url string) (done task, by string) {
	s.t.Helper()
	done = s.ends(url, "done")
	r := s.Get(done.Result)
	wantOK(s.t, r)
	return done, pod(r)
}

// since waits until n requests have entered an instance after the journal had that
// many, and returns the name of the latest one's pod.
func (s *space) since(before, n int) string {
	s.t.Helper()
	s.inside(before + n)
	return s.Journal().Of("begin")[before+n-1].Instance
}

func (s *space) begun() int { return len(s.Journal().Of("begin")) }

// TestJobs executes stored requests, each in the pod of a Job of its own.
func TestJobs(t *testing.T) {
	s := jobsSpace(t)
	limited := strings.Replace(s.usher("limited", "job/work", "instances 0 1", "concurrency 1", "idle_timeout 1s", fast, "async {\nattempts 1\n}"),
		"port 8080", "port 8080\ndeadline 5s", 1)
	web := s.usher("web", "job/work", "instances 0 4", "concurrency 1", "idle_timeout 1s", fast, "async {\nbackoff 100ms 200ms\n}")
	s.Start(harness.Config{Global: "metrics", Site: "log\nhandle_path /limited/* {\n" + limited + "\n}\nhandle {\n" + web + "\n}"})

	t.Run("each task has a pod of its own", func(t *testing.T) {
		s := s.in(t)
		const tasks = 6
		start := time.Now()
		urls := make([]string, 0, tasks)
		for k := range tasks {
			// Every other pod ends by itself when it has answered.
			urls = append(urls, s.store([]string{"/", "/last"}[k%2]).URL)
		}
		by := make(map[string]bool)
		for _, url := range urls {
			done, name := s.doneBy(url)
			if done.Attempts != 1 {
				t.Errorf("the task is %+v", done)
			}
			by[name] = true
		}
		took := time.Since(start)
		s.noPods()
		// More Jobs than tasks may be made: one that is done is followed by another as
		// long as the number of instances has not gone down.
		jobs, requests := make(map[string]bool), make(map[string]int)
		for _, l := range s.pods.all() {
			jobs[l.Metadata.Labels["batch.kubernetes.io/job-name"]] = true
		}
		for _, e := range s.Journal().Of("begin") {
			requests[e.Instance]++
		}
		if len(by) != tasks || len(requests) != tasks || s.begun() != tasks || len(jobs) != len(s.pods.all()) {
			t.Errorf("%d pods have answered %d tasks, these requests have entered %v; %d pods of %d Jobs", len(by), tasks, requests, len(s.pods.all()), len(jobs))
		}
		for _, j := range s.jobs() {
			if c := j.over(); c.Type != "Complete" {
				t.Errorf("Job %s is left, and is %+v", j.Metadata.Name, j.Status)
			}
		}
		if failures := s.Metrics("caddy_usher_start_failures_total"); len(failures) > 0 || s.Service("web").LastError != nil {
			t.Errorf("the ends of pods were failures: %v, %v", failures, s.Service("web").LastError)
		}
		figure(t, "%d tasks, 4 at a time, each in a pod of its own: %s ms", tasks, ms(took))
	})

	t.Run("a pod that fails", func(t *testing.T) {
		s := s.in(t)
		before := s.begun()
		s.Open("once")
		start := time.Now()
		done, by := s.doneBy(s.store("/crash-once?once=" + s.Path("once")).URL)
		entered := s.Journal().Of("begin")[before:]
		if done.Attempts != 2 || len(entered) != 2 || entered[0].Instance == by || entered[1].Instance != by {
			t.Errorf("the task is %+v, of pod %s; these requests have entered: %v", done, by, entered)
		}
		figure(t, "the pod failed, and the task was done in another one: %s ms", ms(time.Since(start)))
	})

	t.Run("a pod that is deleted", func(t *testing.T) {
		s := s.in(t)
		before := s.begun()
		stored := s.store(s.hold("deleted"))
		first := s.since(before, 1)
		start := time.Now()
		s.kubectl("delete", "pod", first, "--wait=false")
		second := s.since(before, 2)
		figure(t, "the pod was deleted, and the task was in another one: %s ms", ms(time.Since(start)))
		s.Open("deleted")
		done, by := s.doneBy(stored.URL)
		if done.Attempts != 2 || by != second || by == first {
			t.Errorf("the task is %+v, of pod %s after %s", done, by, first)
		}
	})

	t.Run("a task beyond the deadline of its Job", func(t *testing.T) {
		s := s.in(t)
		before := s.begun()
		start := time.Now()
		stored := s.store("/limited" + s.hold("never"))
		name := s.pods.of(s.since(before, 1)).Metadata.Labels["batch.kubernetes.io/job-name"]
		dead := s.ends(stored.URL, "dead")
		figure(t, "dead %s ms after it was stored, with a deadline of 5 s: %s", ms(time.Since(start)), dead.Reason)
		if dead.Attempts != 1 {
			t.Errorf("the task is %+v", dead)
		}
		harness.Eventually(t, soon, func() bool {
			for _, j := range s.jobs() {
				if j.Metadata.Name == name {
					return j.over().Reason == "DeadlineExceeded"
				}
			}
			return false
		}, "Job %s is beyond its deadline", name)
	})

	t.Run("a task that is cancelled", func(t *testing.T) {
		s := s.in(t)
		before := s.begun()
		stored := s.store(s.hold("never"))
		name := s.pods.of(s.since(before, 1)).Metadata.Labels["batch.kubernetes.io/job-name"]
		start := time.Now()
		if r := s.Do(harness.Request{Method: http.MethodDelete, Path: stored.URL}); r.Status != http.StatusAccepted {
			t.Errorf("status %d, %s", r.Status, r.Body)
		}
		s.ends(stored.URL, "cancelled")
		harness.Eventually(t, soon, func() bool {
			for _, j := range s.jobs() {
				if j.Metadata.Name == name {
					return false
				}
			}
			return true
		}, "Job %s has disappeared", name)
		s.noPods()
		figure(t, "cancelled, and its Job and its pod are gone: %s ms", ms(time.Since(start)))
	})

	calls := cluster.Calls(s.name)
	if count(calls, "create", "jobs") == 0 {
		t.Error("the API server has noted no call that makes a Job")
	}
	for _, c := range calls {
		if c.ResponseStatus.Code == http.StatusForbidden {
			t.Errorf("Usher has not the right to %s %s/%s", c.Verb, c.ObjectRef.Resource, c.ObjectRef.Subresource)
		}
	}
}
