package hub

import (
	"testing"

	"github.com/caddy-usher/usher/scaler/control"
)

func TestAReaderOfTheActivityGoesOnWhereItWas(t *testing.T) {
	t.Parallel()
	var a Activity
	a.add(Entry{Service: "one"})
	entries, more := a.After(0)
	if len(entries) != 1 || entries[0].Number != 1 || a.Last() != 1 {
		t.Fatalf("%+v", entries)
	}
	select {
	case <-more:
		t.Error("there is more, and nothing has happened")
	default:
	}
	a.add(Entry{Service: "two"})
	<-more
	if entries, more = a.After(1); len(entries) != 1 || entries[0].Service != "two" || entries[0].Number != 2 {
		t.Errorf("%+v", entries)
	}
	a.changed.end()
	<-more
	if entries, more = a.After(1); len(entries) != 1 || more != nil {
		t.Error("an activity that has ended goes on")
	}
}

func TestTheActivityIsBoundedAndAReaderSeesWhatItHasMissed(t *testing.T) {
	t.Parallel()
	var a Activity
	for n := range 4 * activityRecent {
		a.add(Entry{Event: control.StateChange{}})
		if len(a.entries) > 2*activityRecent || cap(a.entries) > 4*activityRecent {
			t.Fatalf("%d entries are kept", len(a.entries))
		}
		from := max(0, n+1-activityRecent)
		recent, _ := a.After(uint64(from))
		if recent[0].Number != uint64(from+1) || len(recent) != n+1-from {
			t.Fatalf("after %d come %d, from %d", from, len(recent), recent[0].Number)
		}
	}
	if missed, _ := a.After(1); missed[0].Number == 2 {
		t.Error("the reader cannot tell that it was too slow")
	}
}

func TestDecisionsAndStartsStayWhateverElseHappens(t *testing.T) {
	t.Parallel()
	var a Activity
	for n := range 2 * ActivityKept {
		a.add(Entry{Event: control.Decision{To: n}})
	}
	for range 10 * activityRecent {
		a.add(Entry{Event: control.InstanceStatus{}})
	}
	var kept []int
	last := uint64(0)
	entries, _ := a.After(0)
	for _, e := range entries {
		if e.Number <= last {
			t.Fatalf("entry %d comes after %d", e.Number, last)
		}
		last = e.Number
		if d, ok := e.Event.(control.Decision); ok {
			kept = append(kept, d.To)
		}
	}
	if len(kept) != ActivityKept || kept[0] != ActivityKept || kept[ActivityKept-1] != 2*ActivityKept-1 {
		t.Errorf("%v", kept)
	}
}
