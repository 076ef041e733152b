package discovery_test

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"strings"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"go.uber.org/goleak"

	"github.com/caddy-usher/usher/scaler"
	"github.com/caddy-usher/usher/scaler/discovery"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

// platform is what a test lets a watch see.
type platform struct {
	mu      sync.Mutex // what a test changes, the watch sees later
	objects []string
	err     error
	partial bool // with err: what is known is returned all the same
	looks   int
	reports []string
	start   time.Time
	ended   int
}

func (p *platform) watch(every time.Duration) *discovery.Watch {
	p.start = time.Now()
	return discovery.Start(p.report, p.look, every, func() { p.change(func() { p.ended++ }) })
}

// change changes what the watch sees, or what it has told.
func (p *platform) change(f func()) {
	p.mu.Lock()
	defer p.mu.Unlock()
	f()
}

func (p *platform) look(context.Context) ([]scaler.Found, error) {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.looks++
	if p.err != nil && !p.partial {
		return nil, p.err
	}
	var all []scaler.Found
	for _, o := range p.objects {
		all = append(all, scaler.Found{Object: o, Labels: map[string]string{}})
	}
	return all, p.err
}

func (p *platform) report(found []scaler.Found, err error) {
	p.mu.Lock()
	defer p.mu.Unlock()
	words := make([]string, len(found))
	for i, f := range found {
		words[i] = f.Object
	}
	text := strings.Join(words, " ")
	if err != nil {
		text = err.Error()
	}
	p.reports = append(p.reports, fmt.Sprintf("%s %s", time.Since(p.start), text))
}

func (p *platform) expect(t *testing.T, want ...string) {
	t.Helper()
	synctest.Wait()
	if !slices.Equal(p.reports, want) {
		t.Errorf("reported was %q, not %q", p.reports, want)
	}
	p.change(func() { p.reports = nil })
}

func TestChangesThatFollowEachOtherAreOneReport(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		p := &platform{objects: []string{"b", "a"}}
		w := p.watch(0)
		defer w.Close()
		for range 5 {
			w.Poke()
			time.Sleep(90 * time.Millisecond)
		}
		time.Sleep(time.Second)
		p.expect(t, "460ms a b")

		// A platform that never rests is reported all the same.
		for i := range 30 {
			p.change(func() { p.objects = append(p.objects, fmt.Sprint(i)) })
			w.Poke()
			time.Sleep(50 * time.Millisecond)
		}
		synctest.Wait()
		if len(p.reports) != 1 || !strings.HasPrefix(p.reports[0], "2.45s ") {
			t.Errorf("within 1.5s of steady changes was reported %q", p.reports)
		}
	})
}

func TestWhatIsAsBeforeIsNotReported(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		p := &platform{}
		w := p.watch(10 * time.Second)
		defer w.Close()
		time.Sleep(time.Minute)
		p.expect(t) // nothing is known before the first poke
		w.Poke()
		time.Sleep(time.Minute)
		p.expect(t, "1m0.1s ") // an empty list is a list
		if p.looks != 6 {
			t.Errorf("it was looked %d times within a minute, not each 10s", p.looks)
		}
		p.change(func() { p.objects = []string{"a"} }) // no poke: the event was lost
		time.Sleep(10 * time.Second)
		p.expect(t, "2m0.1s a")
	})
}

func TestAPlatformThatIsAwayIsReportedOnce(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		p := &platform{objects: []string{"a"}}
		w := p.watch(0)
		defer w.Close()
		w.Poke()
		time.Sleep(time.Second)
		p.expect(t, "100ms a")

		// A single failure is no outage.
		p.change(func() { p.err = &scaler.Failure{Reason: scaler.ReasonPlatform, Short: "away"} })
		w.Poke()
		time.Sleep(110 * time.Millisecond)
		p.change(func() { p.err = nil })
		time.Sleep(time.Second)
		p.expect(t)

		before := p.looks
		p.change(func() {
			p.err = &scaler.Failure{Reason: scaler.ReasonPlatform, Short: "away", Err: errors.New("port 1")}
		})
		w.Poke()
		time.Sleep(time.Minute)
		synctest.Wait()
		if len(p.reports) != 1 || !strings.HasSuffix(p.reports[0], " away: port 1") {
			t.Errorf("reported was %q", p.reports)
		}
		if n := p.looks - before; n < 10 || n > 40 {
			t.Errorf("a platform that is away for a minute was asked %d times", n)
		}
		p.change(func() { p.reports = nil })
		p.change(func() { p.err = &scaler.Failure{Reason: scaler.ReasonForbidden, Short: "forbidden"} })
		time.Sleep(10 * time.Second)
		synctest.Wait()
		if len(p.reports) != 1 || !strings.HasSuffix(p.reports[0], " forbidden") {
			t.Errorf("of another reason was reported %q", p.reports)
		}
		p.change(func() { p.reports, p.err = nil, nil })
		time.Sleep(10 * time.Second)
		synctest.Wait()
		// The same list is news after an outage.
		if len(p.reports) != 1 || !strings.HasSuffix(p.reports[0], " a") {
			t.Errorf("of the return was reported %q", p.reports)
		}
	})
}

func TestAPartThatIsAwayHoldsUpNoOther(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		p := &platform{objects: []string{"a"}, err: &scaler.Failure{Short: "forbidden"}, partial: true}
		w := p.watch(0)
		defer w.Close()
		w.Poke()
		time.Sleep(time.Minute)
		synctest.Wait()
		if len(p.reports) != 2 || p.reports[0] != "100ms a" || !strings.HasSuffix(p.reports[1], " forbidden") {
			t.Errorf("reported was %q", p.reports)
		}
		p.change(func() { p.reports, p.objects = nil, []string{"a", "b"} })
		w.Poke()
		time.Sleep(time.Minute)
		p.expect(t, "1m0.1s a b")
		p.change(func() { p.err = nil })
		time.Sleep(10 * time.Second)
		synctest.Wait()
		if len(p.reports) != 1 || !strings.HasSuffix(p.reports[0], " a b") {
			t.Errorf("of the end of the trouble was reported %q", p.reports)
		}
	})
}

func TestWhatIsNotKnownYetIsNotReported(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		p := &platform{err: discovery.ErrUnknown}
		w := p.watch(0)
		defer w.Close()
		w.Poke()
		time.Sleep(time.Minute)
		p.expect(t)
		if p.looks != 1 {
			t.Errorf("it was looked %d times", p.looks)
		}
	})
}

func TestNothingIsReportedAfterClose(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		p := &platform{objects: []string{"a"}}
		w := p.watch(time.Second)
		w.Poke()
		time.Sleep(50 * time.Millisecond)
		w.Close()
		w.Close()
		w.Poke()
		time.Sleep(time.Minute)
		p.expect(t)
		if p.ended != 1 || p.looks != 0 {
			t.Errorf("ended %d times, looked %d times", p.ended, p.looks)
		}
	})
}
