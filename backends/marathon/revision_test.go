package marathon

import (
	"context"
	"testing"
	"time"

	"github.com/caddy-usher/usher/scaler"
)

func TestServicesOnAClusterShareOneSetOfConnections(t *testing.T) {
	m := newMasters(t, 1)
	a, b := at(t, m), at(t, m)
	if a.r.app != b.r.app || a.r.app.cluster != b.r.app.cluster {
		t.Error("two watches over one app")
	}
	m.awaitStream(1)
	other := start(t, &Backend{URLs: m.urls(), App: "/other"})
	if other.r.app == a.r.app || other.r.app.cluster != a.r.app.cluster {
		t.Error("another app on the same cluster")
	}
	a.close()
	b.close()
	m.awaitStream(1)
	other.close()
	m.awaitStream(0)
	clusters.Lock()
	defer clusters.Unlock()
	apps.Lock()
	defer apps.Unlock()
	if len(clusters.byKey) > 0 || len(apps.all) > 0 {
		t.Errorf("%d clusters and %d apps are left over", len(clusters.byKey), len(apps.all))
	}
}

func TestTwoRevisionsOnOneAppShareItWithoutFighting(t *testing.T) {
	t.Parallel()
	m := newMasters(t, 1)
	m.instances, m.tasks = 2, []string{running("a", 31001), running("b", 31002)}
	old := at(t, m)
	next := start(t, &Backend{URLs: m.urls(), PortName: "default"})
	r := next.await("a report", func(scaler.Report) bool { return true })
	if len(r.Instances) != 0 || r.Desired != 0 {
		t.Errorf("what ran before is the earlier revision's: %+v", r)
	}
	// The new one starts one of its own, beside those.
	next.scale(1)
	m.set(func() { m.tasks = append(m.tasks, running("c", 31003)) })
	m.awaitStream(1)
	m.event("/web")
	next.await("its task", func(r scaler.Report) bool { return phase("c", scaler.PhaseReady)(r) && r.Desired == 1 })
	old.await("nothing new", func(r scaler.Report) bool { return len(r.Instances) == 2 && r.Desired == 2 })
	// The earlier one gives back what it has, one after the other.
	old.scale(1, id("a"))
	m.set(func() { m.tasks = m.tasks[1:] })
	m.event("/web")
	old.await("the end of its first", func(r scaler.Report) bool { return gone("a")(r) && r.Desired == 1 })
	old.scale(0, id("b"))
	m.set(func() { m.tasks = m.tasks[1:] })
	m.event("/web")
	old.await("the end of its second", func(r scaler.Report) bool { return gone("b")(r) && r.Desired == 0 })
	next.await("its task, still", func(r scaler.Report) bool { return phase("c", scaler.PhaseReady)(r) && r.Desired == 1 })
	wantChanges(t, m, `PATCH /v2/apps/web {"instances":3}`,
		`POST /v2/tasks/delete?scale=true {"ids":["`+id("a")+`"]}`, `POST /v2/tasks/delete?scale=true {"ids":["`+id("b")+`"]}`)
}

func TestWhatAnEarlierServiceLeavesIsTakenOver(t *testing.T) {
	t.Parallel()
	m := newMasters(t, 1)
	m.instances, m.tasks = 1, []string{running("a", 31001)}
	old, next := at(t, m), at(t, m)
	next.await("nothing yet", func(r scaler.Report) bool { return len(r.Instances) == 0 })
	old.close()
	next.await("the task", func(r scaler.Report) bool { return phase("a", scaler.PhaseReady)(r) && r.Desired == 1 })
	wantChanges(t, m)
}

func TestOtherAccessToTheSameAppIsNoNewRevision(t *testing.T) {
	t.Parallel()
	m := newMasters(t, 2)
	b := at(t, m)
	same := provisioned(t, &Backend{URLs: m.urls()[1:], BasicAuth: &BasicAuth{User: "u", Password: "p"}})
	if !b.r.Update(same) {
		t.Fatal("another password is another revision")
	}
	b.scale(1)
	m.mu.Lock()
	last := m.calls[len(m.calls)-1]
	m.mu.Unlock()
	if last.node != 1 || last.header.Get("Authorization") == "" {
		t.Errorf("%v at node %d with %v", last, last.node, last.header)
	}
	for _, other := range []*Backend{
		{URLs: m.urls(), PortIndex: 1}, {URLs: m.urls(), App: "/other"}, {URLs: []string{"http://elsewhere:8080"}},
	} {
		if b.r.Update(provisioned(t, other)) {
			t.Errorf("%+v is taken for the same", other.plan)
		}
	}
}

func TestARestartIsMarathons(t *testing.T) {
	t.Parallel()
	m := newMasters(t, 1)
	b := at(t, m)
	if err := b.r.Restart(t.Context()); err != nil {
		t.Fatal(err)
	}
	wantChanges(t, m, `POST /v2/apps/web/restart {}`)
	m.set(func() { m.missing = true })
	wantFailure(t, b.r.Restart(t.Context()), scaler.ReasonNotFound, true)
}

func TestClosingDoesNotWaitForAPlatformThatHangs(t *testing.T) {
	t.Parallel()
	m := newMasters(t, 1)
	b := at(t, m)
	m.rule(hang)
	b.r.app.kick()
	eventually(t, func() bool {
		b.r.app.mu.Lock()
		defer b.r.app.mu.Unlock()
		return b.r.app.begun > b.r.app.ended
	}, "a read is under way")
	ctx, cancel := context.WithTimeout(t.Context(), time.Second)
	defer cancel()
	if err := b.r.Close(ctx, time.Second); err != nil {
		t.Error(err)
	}
	b.closed = true
}

func TestAnUnprovisionedBackendDoesNotOpen(t *testing.T) {
	t.Parallel()
	if _, err := new(Backend).Open(scaler.Env{Service: "web", Logger: quiet}); err == nil {
		t.Error("opened")
	}
}
