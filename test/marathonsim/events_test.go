package marathonsim_test

import (
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/url"
	"slices"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/caddy-usher/usher/test/marathonsim"
)

func TestEventsAreWrittenAsMarathonWritesThem(t *testing.T) {
	cfg := quick()
	cfg.Heartbeat = 10 * time.Millisecond
	s := start(t, cfg)
	st := s.listen(s.leader(), "")
	for k, v := range map[string]string{"Content-Type": "text/event-stream;charset=utf-8", "Connection": "close", "Transfer-Encoding": "", "Content-Length": ""} {
		if st.header.Get(k) != v {
			t.Errorf("%s is %q, want %q", k, st.header.Get(k), v)
		}
	}
	s.createCmd("/prod/web", "exec sleep 1000", 1, "")
	s.settled("/prod/web", 1)
	eventually(t, "all is told, in whatever order", func() bool {
		return len(st.of("deployment_success")) == 1 && len(st.of("instance_changed_event")) == 4 && len(st.of("status_update_event")) == 2 &&
			len(st.of("deployment_step_success")) == 2
	})
	for kind, n := range map[string]int{
		"event_stream_attached": 1, "api_post_event": 1, "group_change_success": 1, "deployment_info": 2,
		"deployment_step_success": 2, "deployment_success": 1, "status_update_event": 2, "instance_changed_event": 4,
	} {
		if got := st.of(kind); len(got) != n {
			t.Errorf("%d of %s, want %d", len(got), kind, n)
		}
	}
	var conditions []string
	for _, e := range st.of("instance_changed_event") {
		conditions = append(conditions, e["condition"].(string))
		if _, host := e["host"]; e["condition"] == "Scheduled" && host {
			t.Error("a scheduled instance has a host")
		}
		if e["runSpecId"] != "/prod/web" || e["runSpecVersion"] == nil || e["instanceId"] == nil {
			t.Errorf("%v", e)
		}
	}
	slices.Sort(conditions)
	if want := []string{"Provisioned", "Running", "Scheduled", "Starting"}; !slices.Equal(conditions, want) {
		t.Errorf("conditions: %v", conditions)
	}
	for _, e := range st.of("status_update_event") {
		for _, name := range []string{"slaveId", "taskId", "taskStatus", "message", "appId", "host", "ipAddresses", "ports", "version", "timestamp"} {
			if _, ok := e[name]; !ok {
				t.Errorf("%s is missing: %v", name, e)
			}
		}
	}
	if e := st.of("group_change_success")[0]; e["groupId"] != "/prod" {
		t.Errorf("%v", e)
	}
	if e := st.of("api_post_event")[0]; at(e, "uri") != "/v2/apps" || at(e, "appDefinition.id") != "/prod/web" || e["clientIp"] == nil {
		t.Errorf("%v", e)
	}

	eventually(t, "heartbeats", func() bool { return strings.Contains(st.text(), "\r\n\r\n\r\n\r\n") })
	for line := range strings.SplitAfterSeq(st.text(), "\n") {
		if line != "" && !strings.HasSuffix(line, "\r\n") {
			t.Errorf("a line does not end in CRLF: %q", line)
		}
		name, _, _ := strings.Cut(strings.TrimSpace(line), ":")
		if !slices.Contains([]string{"", "event", "data"}, name) {
			t.Errorf("a line: %q", line)
		}
	}
}

func TestAScaleDownTellsOfTheGoalFirst(t *testing.T) {
	s := start(t, quick())
	s.createCmd("/a", "exec sleep 1000", 1, "")
	s.settled("/a", 1)
	st := s.listen(s.leader(), "?event_type=instance_changed_event&event_type=status_update_event&event_type=app_terminated_event&event_type=deployment_success")
	s.want(200, "PATCH", "/v2/apps/a", `{"instances":0}`)
	s.settled("/a", 0)
	eventually(t, "all is told", func() bool {
		return len(st.of("instance_changed_event")) == 2 && len(st.of("status_update_event")) == 1 && len(st.of("deployment_success")) == 1
	})
	var conditions []any
	for _, e := range st.of("instance_changed_event") {
		conditions = append(conditions, e["condition"])
	}
	if !slices.Contains(conditions, any("Running")) || !slices.Contains(conditions, any("Killed")) {
		t.Errorf("conditions: %v", conditions)
	}
	e := st.of("status_update_event")[0]
	if ports, _ := e["ports"].([]any); e["taskStatus"] != "TASK_KILLED" || len(ports) != 1 {
		t.Errorf("the last word of the task: %v", e)
	}
	if len(st.of("app_terminated_event")) != 0 {
		t.Error("an app at nothing is called terminated")
	}
	if len(st.of("event_stream_attached")) != 0 {
		t.Error("the filter lets others through")
	}
}

func TestTheFeatureTaskKillingIsSeen(t *testing.T) {
	cfg := quick()
	cfg.TaskKilling = true
	s := start(t, cfg)
	s.stubborn("/a", 1, "0.5")
	task := running(s.settled("/a", 1))[0]
	serves(t, endpoint(task))
	s.want(200, "PATCH", "/v2/apps/a", `{"instances":0}`)
	eventually(t, "the task is seen as being killed", func() bool {
		return s.get("/v2/apps/a").str("app.tasks.0.state") == "TASK_KILLING"
	})
	if f := s.get("/v2/info").str("marathon_config.features.0"); f != "task_killing" {
		t.Errorf("the feature: %q", f)
	}
}

func TestEventsWantAnExactAccept(t *testing.T) {
	s := start(t, quick())
	for accept, status := range map[string]int{"*/*": 405, "text/event-stream, */*": 405, "": 405} {
		a, err := s.try(s.leader(), "GET", "/v2/events", "", "Accept", accept)
		if err != nil || a.status != status {
			t.Errorf("Accept %q: %d %v", accept, a.status, err)
		}
	}
}

func TestStandbysSendConsumersOfEventsToTheLeader(t *testing.T) {
	s := start(t, quick())
	lead := s.leader()
	st := s.listen((lead+1)%3, "?event_type=status_update_event")
	if want := s.URLs()[lead] + "/v2/events?event_type=status_update_event"; st.status != http.StatusFound || st.header.Get("Location") != want {
		t.Errorf("%d %v, want 302 to %s", st.status, st.header, want)
	}
}

func TestRedirectsOfEventsCanLeadAstray(t *testing.T) {
	s := start(t, quick())
	standby := (s.leader() + 1) % 3
	s.Inject(marathonsim.Fault{Kind: marathonsim.FaultLoop, Times: 1})
	if st := s.listen(standby, ""); st.header.Get("Location") != s.URLs()[standby]+"/v2/events" {
		t.Errorf("a circle: %v", st.header)
	}
	s.Inject(marathonsim.Fault{Kind: marathonsim.FaultDeadEnd, Times: 1})
	st := s.listen(standby, "")
	to, err := url.Parse(st.header.Get("Location"))
	if err != nil || !refuses(to.Host) {
		t.Errorf("a dead end: %v", st.header)
	}
}

func TestAConsumerThatDoesNotReadIsDisconnected(t *testing.T) {
	s := start(t, quick())
	lead := strings.TrimPrefix(s.URLs()[s.leader()], "http://")
	conn, err := net.Dial("tcp", lead)
	if err != nil {
		t.Fatal(err)
	}
	defer conn.Close()
	fmt.Fprintf(conn, "GET /v2/events HTTP/1.1\r\nHost: %s\r\nAccept: text/event-stream\r\n\r\n", lead)
	one := make([]byte, 1)
	if _, err := conn.Read(one); err != nil {
		t.Fatal(err)
	}
	line := `"` + strings.Repeat("x", 64<<10) + `"`
	eventually(t, "the consumer is disconnected", func() bool {
		s.SendEvent("noise", line)
		for _, e := range s.Journal(0) {
			if e.Text == "a consumer is too slow and is disconnected" {
				return true
			}
		}
		return false
	})
	if _, err := io.Copy(io.Discard, conn); err != nil && !errors.Is(err, syscall.ECONNRESET) {
		t.Errorf("the end of the stream: %v", err)
	}
}

func TestOldStandbysProxyEvents(t *testing.T) {
	cfg := quick()
	cfg.Profile = "1.6"
	s := start(t, cfg)
	st := s.listen((s.leader()+1)%3, "")
	if st.status != 200 || st.header.Get("X-Marathon-Via") == "" {
		t.Fatalf("%d %v", st.status, st.header)
	}
	s.createCmd("/a", "exec sleep 1000", 1, "")
	task := running(s.settled("/a", 1))[0]
	eventually(t, "events come through", func() bool { return len(st.of("deployment_success")) == 1 })
	if at(st.of("deployment_success")[0], "plan.target.apps.0.id") != "/a" {
		t.Error("the plan is not heavy")
	}
	if id := task["id"].(string); strings.Contains(id, "instance-") || !strings.HasPrefix(id, "a.") {
		t.Errorf("task id %s", id)
	}
	light := s.listen(s.leader(), "?plan-format=light")
	s.want(200, "PATCH", "/v2/apps/a", `{"instances":0}`)
	eventually(t, "events come", func() bool { return len(light.of("deployment_success")) == 1 })
	if at(light.of("deployment_success")[0], "plan.target") != nil {
		t.Error("the plan is not light")
	}
}

func TestEventsAreLostDoubledUnknownAndHuge(t *testing.T) {
	s := start(t, quick())
	st := s.listen(s.leader(), "")
	eventually(t, "the stream is attached", func() bool { return len(st.of("event_stream_attached")) == 1 })
	lost := s.Inject(marathonsim.Fault{Kind: marathonsim.FaultEventLost})
	s.createCmd("/a", "true", 0, "")
	s.settled("/a", 0)
	lost()
	s.Inject(marathonsim.Fault{Kind: marathonsim.FaultEventTwice})
	s.Inject(marathonsim.Fault{Kind: marathonsim.FaultUnknownEvent, Times: 1})
	s.Inject(marathonsim.Fault{Kind: marathonsim.FaultHugeEvent, Times: 1})
	s.createCmd("/b", "true", 0, "")
	s.settled("/b", 0)
	eventually(t, "each comes twice", func() bool { return len(st.of("deployment_success")) == 2 })
	for _, e := range st.of("deployment_success") {
		if at(e, "plan.steps.0.actions.0.app") == "/a" {
			t.Error("an event that is lost has come")
		}
	}
	eventually(t, "the odd ones come", func() bool {
		return len(st.of("moon_phase_event")) == 1 && len(st.text()) > 1<<20
	})
	s.SendEvent("pod_created_event", `{"eventType":"pod_created_event"}`)
	eventually(t, "what a test sends comes", func() bool { return len(st.of("pod_created_event")) == 1 })

	s.SilenceStreams()
	s.ClearFaults()
	other := s.listen(s.leader(), "")
	eventually(t, "another stream hears of itself", func() bool { return len(other.of("event_stream_attached")) == 1 })
	if len(st.of("event_stream_attached")) != 1 || st.isEnded() {
		t.Error("the silent stream is not silent, or not open")
	}
	s.DropStreams()
	eventually(t, "the streams end", func() bool { return st.isEnded() && other.isEnded() })
}
