package control

import (
	"errors"
	"strings"
	"testing"
	"time"

	"github.com/caddy-usher/usher/reserver"
	"github.com/caddy-usher/usher/scaler"
)

// needy is a platform that needs something of the machine.
type needy struct {
	*platform
	missing    *scaler.Failure
	refreshErr error
	refreshed  int
}

func (n *needy) Check() *scaler.Failure { return n.missing }

func (n *needy) Refresh() error {
	if n.refreshErr == nil {
		n.refreshed++
	}
	return n.refreshErr
}

// opens lets the platform be opened from now on.
func (p *platform) opens() {
	p.set(func() { p.openErr = nil })
}

func noCommand() *scaler.Failure {
	return &scaler.Failure{Reason: scaler.ReasonExec, ForGood: true, Short: "the command does not exist"}
}

func TestAServiceWhoseCommandIsMissingIsFailingAtOnceAndRecoversByItself(t *testing.T) {
	bubble(t, func(t *testing.T) {
		n := &needy{platform: &platform{local: true, fail: noCommand()}, missing: noCommand()}
		b := bareBench(t, defaults(), n.platform, nil)
		if err := b.SetBackendAnyway(n); err != nil {
			t.Fatal(err)
		}
		b.is(Failing)
		if f := b.Status().LastError; f == nil || f.Short != "the command does not exist" {
			t.Fatalf("last error %+v", f)
		}
		if _, err := b.request(); err == nil {
			t.Fatal("a request waits for nothing")
		}
		// The refused request is the reason for one more start, which fails.
		time.Sleep(2 * time.Second)
		b.is(Failing)
		n.do(func() {
			if len(n.orders) != 1 {
				t.Fatalf("%d orders", len(n.orders))
			}
			n.fail = nil
		})
		n.missing = nil
		time.Sleep(time.Minute)
		b.granted(b.waits())
		b.is(Awake)
	})
}

func TestABackendThatCannotBeOpenedAtBootIsOpenedByALaterStart(t *testing.T) {
	for _, local := range []bool{true, false} {
		bubble(t, func(t *testing.T) {
			p := &platform{local: local, openErr: errors.New("no kubeconfig")}
			b := bareBench(t, defaults(), p, nil)
			if err := b.SetBackendAnyway(p); err != nil {
				t.Fatal(err)
			}
			b.is(Failing)
			if _, err := b.request(); err == nil || !strings.Contains(err.Error(), "no kubeconfig") {
				t.Fatalf("a request gets %v", err)
			}
			time.Sleep(time.Hour)
			b.is(Failing)
			if n := b.Status().LastError; n == nil {
				t.Fatal("the reason is gone")
			}
			p.opens()
			b.granted(b.waits())
			b.is(Awake)
			if got := b.Status(); got.LastError != nil && len(b.revisions) != 1 {
				t.Fatalf("%+v", got)
			}
		})
	}
}

func TestWhatRunsWhereABackendIsOpenedLateIsNotStopped(t *testing.T) {
	bubble(t, func(t *testing.T) {
		p := &platform{openErr: errors.New("no kubeconfig"), want: 3}
		b := bareBench(t, with(func(s *Settings) { s.Max = 5 }), p, nil)
		if err := b.SetBackendAnyway(p); err != nil {
			t.Fatal(err)
		}
		time.Sleep(time.Minute)
		p.opens()
		b.granted(b.waits())
		b.runs(3)
		p.do(func() {
			if len(p.orders) != 0 {
				t.Fatalf("ordered %+v", p.orders)
			}
		})
	})
}

func TestAMinimumIsKeptOnceALateBackendCanBeOpened(t *testing.T) {
	bubble(t, func(t *testing.T) {
		p := &platform{local: true, openErr: errors.New("no such user")}
		b := bareBench(t, with(func(s *Settings) { s.Min, s.Max = 2, 2 }), p, nil)
		if err := b.SetBackendAnyway(p); err != nil {
			t.Fatal(err)
		}
		time.Sleep(10 * time.Minute)
		b.is(Failing)
		p.opens()
		time.Sleep(2 * time.Minute)
		b.runs(2)
		b.is(Awake)
	})
}

func TestALoopWhoseBackendWasNeverOpenedCanBeClosedAndReplaced(t *testing.T) {
	bubble(t, func(t *testing.T) {
		bad := &platform{local: true, openErr: errors.New("no such user")}
		b := bareBench(t, defaults(), bad, nil)
		if err := b.SetBackendAnyway(bad); err != nil {
			t.Fatal(err)
		}
		// The same again changes nothing, and a better one takes its place.
		if err := b.SetBackend(bad); err != nil {
			t.Fatal(err)
		}
		good := &platform{local: true}
		if err := b.SetBackend(good); err != nil {
			t.Fatal(err)
		}
		b.granted(b.waits())
		time.Sleep(time.Second)
		waitIdle()
		if len(b.revisions) != 1 {
			t.Fatalf("%d revisions", len(b.revisions))
		}
	})
}

func TestARestartReadsFilesAnewAndKeepsWhatRunsIfSomethingIsMissing(t *testing.T) {
	bubble(t, func(t *testing.T) {
		n := &needy{platform: &platform{local: true}}
		b := bareBench(t, defaults(), n.platform, nil)
		if err := b.SetBackend(n); err != nil {
			t.Fatal(err)
		}
		r := b.inside()
		defer r.Release(reserver.Answered)
		before := b.revisions[0]
		n.refreshErr = errors.New("the file of the secret is gone")
		if err := b.Restart(); err == nil || !strings.Contains(err.Error(), "service web") || !strings.Contains(err.Error(), "secret") {
			t.Fatalf("restart: %v", err)
		}
		n.refreshErr, n.missing = nil, noCommand()
		if err := b.Restart(); err == nil || !strings.Contains(err.Error(), "the command does not exist") {
			t.Fatalf("restart: %v", err)
		}
		b.is(Awake)
		if len(b.revisions) != 1 || b.revisions[0] != before {
			t.Fatal("a revision was made")
		}
		n.missing, n.refreshed = nil, 0
		if err := b.Restart(); err != nil || n.refreshed != 1 {
			t.Fatalf("restart: %v, read %d times", err, n.refreshed)
		}
	})
}
