//go:build linux && amd64

package cluster

import (
	"os"
	"testing"
	"time"

	"github.com/caddy-usher/usher/test/harness"
)

// A member, and the leader, whose wall clock is an hour off, before and behind,
// and jumps by hours while it runs: slots are shared as ever. Where a clock
// jumps ahead its lease is over, until the next word of the leader.
func TestG14AWallClockThatIsWrong(t *testing.T) {
	w := newTown(t, 3, short, "instances 2 2", "concurrency 2", "scale queue", "max_waiting 2000")
	set := func(k int, ahead string) {
		// At once as a whole: it is read all the time.
		name := w.caddys[k].Path("clock")
		if err := os.WriteFile(name+".new", []byte(ahead), 0o600); err != nil {
			t.Fatal(err)
		}
		if err := os.Rename(name+".new", name); err != nil {
			t.Fatal(err)
		}
	}
	for k, ahead := range []string{"1h", "-1h", "0s"} {
		w.caddys[k].Program(harness.OtherClock(t))
		w.caddys[k].Setenv("OTHERCLOCK", w.caddys[k].Path("clock"))
		set(k, ahead)
	}
	w.start()
	wantAllOK(t, w.each("/"))
	w.awaitAll(w.everyone()...)
	for k, want := range []time.Duration{time.Hour, -time.Hour, 0} {
		log := w.caddys[k].Log()
		ts, _ := log[len(log)-1].Fields["ts"].(float64)
		if got := time.Until(time.Unix(int64(ts), 0)); (got - want).Abs() > time.Minute {
			t.Fatalf("the clock of Caddy %d is %s ahead, and not %s: the test tests nothing", k, got, want)
		}
	}

	c, d := w.crowd(w.everyone(), 6, 7, "web"), new(done)
	for _, k := range []int{w.leader(), w.member()} {
		for _, ahead := range []string{"3h", "-3h", "0s", "1h"} {
			time.Sleep(400 * time.Millisecond)
			jump := span{what: "the clock jumped to " + ahead, caddy: k, from: time.Now()}
			set(k, ahead)
			time.Sleep(100 * time.Millisecond)
			jump.to = time.Now()
			d.jumps = append(d.jumps, jump)
		}
	}
	w.awaitAll(w.everyone()...)
	time.Sleep(time.Second)
	w.check(c.stop(), d, 2)
	w.checkNothingIsLeft(2)
}
