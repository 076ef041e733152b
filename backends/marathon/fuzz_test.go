package marathon

import (
	"bufio"
	"context"
	"encoding/json"
	"net"
	"net/http"
	"strconv"
	"strings"
	"testing"
	"time"

	gomarathon "github.com/gambol99/go-marathon"

	"github.com/caddy-usher/usher/scaler"
)

// FuzzAnswersOfMarathon hands two readings of an app, with the launch queue,
// to what keeps its state. Whatever Marathon says, what is reported of it is
// sound, and the step that is planned is one.
func FuzzAnswersOfMarathon(f *testing.F) {
	const host = `{"id":"/web","instances":2,"version":"2024-01-02T03:04:05Z","versionInfo":{"lastScalingAt":"2024-01-02T03:04:05Z","lastConfigChangeAt":"2024-01-02T03:04:05Z"},
		"networks":[{"mode":"host"}],"portDefinitions":[{"name":"default"}],"deployments":[{"id":"d1"}],
		"tasks":[{"id":"t1","host":"10.0.0.1","ports":[31000],"state":"TASK_RUNNING","stagedAt":"2024-01-02T03:04:06Z","startedAt":"2024-01-02T03:04:07Z","version":"2024-01-02T03:04:05Z",
		"healthCheckResults":[{"alive":false,"lastSuccess":"2024-01-02T03:04:07Z"},null]},{"id":"t2","state":"TASK_STAGING"}],
		"healthChecks":[{}],"lastTaskFailure":{"taskId":"t0","state":"TASK_FAILED","message":"Command exited with status 1","host":"h","timestamp":"2024-01-02T03:04:05Z"}}`
	const bridge = `{"id":"/web","instances":1,"container":{"docker":{"network":"BRIDGE","portMappings":[{"containerPort":80,"hostPort":0,"name":"http"}]}},
		"tasks":[{"id":"t1","host":"a.example","ports":[31000,0],"state":"TASK_RUNNING","ipAddresses":[{"ipAddress":"10.0.0.9"}]},{"id":"t2","state":"TASK_LOST"},{"id":"t3","state":"TASK_KILLING"}]}`
	const container = `{"id":"/web","instances":0,"ipAddress":{"discovery":{"ports":[{"number":80,"name":"http"}]}},
		"tasks":[{"id":"t1","state":"TASK_RUNNING","ipAddresses":[{"ipAddress":"{http.request.host}"}]},{"id":"t2","state":"TASK_FAILED"},null]}`
	const queue = `{"queue":[{"count":1,"delay":{"timeLeftSeconds":10,"overdue":true},"since":"2024-01-02T03:04:05Z","processedOffersSummary":{"processedOffersCount":2,"unusedOffersCount":2,
		"rejectSummaryLastOffers":[{"reason":"InsufficientCpus","declined":2,"processed":2}]},"app":{"id":"/web"}}]}`
	for _, first := range []string{host, bridge, container} {
		for _, second := range []string{host, bridge, container} {
			f.Add(first, second, queue, "http", 0)
			f.Add(first, second, `{}`, "", 1)
		}
	}
	f.Fuzz(func(t *testing.T, first, second, queue, name string, index int) {
		p := port{index: max(0, index), name: name}
		if name != "" {
			p.index = 0
		}
		a := fuzzedApp(t, p)
		for _, text := range []string{first, second, first} {
			doc := new(appJSON)
			var waits queueJSON
			if json.Unmarshal([]byte(text), doc) != nil {
				continue
			}
			known := json.Unmarshal([]byte(queue), &waits) == nil
			var item *queueItemJSON
			if len(waits.Queue) > 0 {
				item = &waits.Queue[0]
			}
			active(doc)
			a.mu.Lock()
			if !a.take(doc, item, known) {
				a.report()
			}
			a.clearable(item)
			var ids []string
			for id := range a.tasks {
				ids = append(ids, id)
			}
			for n := range 3 {
				s, refused := a.plan(a.runners[0], scaler.Order{Instances: n, Stop: ids[:min(n, len(ids))]})
				if refused == nil && (s.kind == setNumber && s.number < 0 || s.after() < 0) {
					t.Errorf("a step to %d instances: %+v", s.after(), s)
				}
			}
			a.mu.Unlock()
		}
		a.mu.Lock()
		defer a.mu.Unlock()
		a.missing = time.Now()
		a.gone(time.Now())
		a.report()
	})
}

// fuzzedApp is the watch over an app without a reader.
func fuzzedApp(t *testing.T, p port) *app {
	c := &cluster{apps: make(map[*app]bool)}
	c.ctx, c.cancel = context.WithCancel(t.Context())
	a := &app{
		id: "/web", cluster: c, kicks: make(chan struct{}, 1), ordering: make(chan struct{}, 1), told: make(chan struct{}),
		tasks: make(map[string]*task), seen: make(map[string]time.Time), own: make(map[string]direction),
	}
	a.ctx, a.cancel = context.WithCancel(t.Context())
	c.attach(a)
	a.join(&runner{port: p, env: scaler.Env{Service: "web", Logger: quiet, Report: func(r scaler.Report) { sound(t, r) }}})
	return a
}

// sound checks a report: nothing in it may lead a request astray.
func sound(t *testing.T, rep scaler.Report) {
	if rep.Desired < 0 {
		t.Errorf("it works towards %d instances", rep.Desired)
	}
	failures := []*scaler.Failure{rep.Trouble}
	ids := make(map[string]bool)
	for _, in := range rep.Instances {
		failures = append(failures, in.Failure)
		if in.ID == "" || ids[in.ID] {
			t.Errorf("an id that is no name of one instance: %q", in.ID)
		}
		ids[in.ID] = true
		if (in.Network == "") != (in.Address == "") {
			t.Errorf("half an address: %+v", in)
		}
		if in.Address == "" {
			continue
		}
		host, port, err := net.SplitHostPort(in.Address)
		if n, atoi := strconv.Atoi(port); err != nil || atoi != nil || n < 1 || n > 65535 || host == "" || strings.ContainsAny(host, "{}/@ \r\n") {
			t.Errorf("%q is no address of a task", in.Address)
		}
	}
	for _, f := range failures {
		if f != nil && (f.Short == "" || f.Reason == "") {
			t.Errorf("a failure without a word: %#v", f)
		}
	}
}

// FuzzEvents reads any stream as events. None of them stops the reading or
// makes it hold more than the longest event that is looked into.
func FuzzEvents(f *testing.F) {
	for _, seed := range []string{
		"event: status_update_event\r\ndata: {\"appId\":\"/web\"}\r\n\r\n", "data: {\"plan\":{\"steps\":[{\"actions\":[{\"app\":\"/web\"}]}]},\"currentStep\":{\"actions\":[{\"app\":\"/a\"}]}}\n",
		"\r\n\r\n:\ndata:\ndata", "data: [1]\ndata: null\ndata: {\"runSpecId\":\"/x\",\"appId\":7}\n", "data: \xff\x00\n",
	} {
		f.Add([]byte(seed))
	}
	f.Fuzz(func(t *testing.T, stream []byte) {
		r := bufio.NewReaderSize(strings.NewReader(string(stream)), 16)
		read, alive := 0, 0
		for {
			line, err := readLine(r, func() { alive++ })
			if err != nil {
				break
			}
			read++
			if strings.Contains(line, "\n") || len(line) > longestEvent {
				t.Fatalf("%q is no line", line)
			}
			if data, ok := strings.CutPrefix(line, "data:"); ok {
				for k, id := range concerned(data) {
					if id == "" && k > 0 {
						t.Fatalf("%q names an app without a name", data)
					}
				}
			}
		}
		if want := strings.Count(string(stream), "\n"); read != want || alive < read {
			t.Fatalf("%d lines were read of %d, %d signs of life", read, want, alive)
		}
	})
}

// FuzzFailures puts into words whatever Marathon says of the end of a task,
// and of an order that it refuses.
func FuzzFailures(f *testing.F) {
	f.Add(`{"taskId":"t","state":"TASK_FAILED","message":"Container exited with status 137","host":"h"}`, 409, `{"message":"App is locked","deployments":[{"id":"d"}]}`)
	f.Add(`{"taskId":"t","state":"TASK_FAILED","message":"Command terminated with signal Killed"}`, 422, `{"message":"Object is not valid","details":[{"path":"/","errors":["x"]}]}`)
	f.Add(`{"taskId":"t","state":"TASK_KILLED","message":"health check"}`, 403, `running deployments`)
	f.Add(`{"taskId":"t","state":"TASK_LOST"}`, 502, `<html>`)
	f.Fuzz(func(t *testing.T, text string, status int, body string) {
		var last *gomarathon.LastTaskFailure
		if json.Unmarshal([]byte(text), &last) == nil && last != nil {
			if w := taskFailure(last, last.TaskID); w != nil && (w.Short == "" || w.Reason == "") {
				t.Errorf("a failure without a word: %#v", w)
			}
		}
		if status < 300 || status > 599 {
			return
		}
		err := newStatusError("http://m", &http.Response{StatusCode: status}, []byte(body))
		w := asFailure(err)
		if w.Short == "" || w.Reason == "" || err.Error() == "" {
			t.Errorf("a failure without a word: %#v", w)
		}
		unsent(err)
		elsewhere(err)
	})
}
