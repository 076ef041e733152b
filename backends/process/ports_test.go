package process

import (
	"errors"
	"strings"
	"testing"
	"time"

	"github.com/caddy-usher/usher/scaler"
)

func TestWhereAllFreePortsRestTheOneThatRestedLongestIsTaken(t *testing.T) {
	now := time.Now()
	p := newPortPool(func() time.Time { return now })
	free := func(int) error { return nil }
	var order []int
	for range 3 {
		port, f := p.take(100, 102, free)
		if f != nil {
			t.Fatal(f)
		}
		order = append(order, port)
	}
	// They begin to rest in another order than the one of their numbers.
	order[0], order[2] = order[2], order[0]
	for _, port := range order {
		now = now.Add(time.Second)
		p.give(onLoopback(port), true)
	}
	now = now.Add(time.Second)
	for _, want := range order {
		port, f := p.take(100, 102, free)
		if f != nil || port != want {
			t.Fatalf("took %d, want %d: %v", port, want, f)
		}
	}
	_, f := p.take(100, 102, free)
	if f == nil || f.Reason != scaler.ReasonQuota || f.ForGood || !strings.Contains(f.Detail, "3 are used by instances") {
		t.Fatalf("all are used: %+v", f)
	}

	// One that another program has taken meanwhile is passed over.
	p.give(onLoopback(order[1]), true)
	now = now.Add(time.Second)
	p.give(onLoopback(order[0]), true)
	foreign := func(port int) error {
		if port == order[1] {
			return errors.New("address already in use")
		}
		return nil
	}
	if port, f := p.take(100, 102, foreign); f != nil || port != order[0] {
		t.Fatalf("took %d, want %d: %v", port, order[0], f)
	}
	_, f = p.take(100, 102, foreign)
	if f == nil || !strings.Contains(f.Detail, "2 are used by instances and 1 are held by other programs") || f.Err == nil {
		t.Fatalf("%+v", f)
	}
}

func TestARestingPortThatIsTakenAgainRestsAnew(t *testing.T) {
	now := time.Now()
	p := newPortPool(func() time.Time { return now })
	free := func(int) error { return nil }
	for range 2 {
		port, f := p.take(100, 100, free)
		if f != nil {
			t.Fatal(f)
		}
		now = now.Add(time.Second)
		p.give(onLoopback(port), true)
		if got := p.resting[port]; !got.Equal(now) {
			t.Fatalf("it rests since %s, want %s", got, now)
		}
	}
	// One that no instance had does not rest.
	now = now.Add(portRest)
	port, _ := p.take(100, 100, free)
	p.give(onLoopback(port), false)
	if len(p.resting) != 0 || len(p.used) != 0 {
		t.Fatalf("left: %v, %v", p.resting, p.used)
	}
}

// isUsed tells whether an instance has the port.
func (p *portPool) isUsed(port int) bool {
	p.mu.Lock()
	defer p.mu.Unlock()
	return p.used[onLoopback(port)]
}
