package tasks

import (
	"strconv"
	"strings"
	"testing"
	"time"

	"github.com/caddy-usher/usher/test/harness"
)

// The jobs of these tests: two of a group, one that may be executed once, one that is
// cancelled, and a plain one. Their tasks are called a, b, c, d and e.
var few = []job{{seq: 0, group: 1}, {seq: 1, group: 1}, {seq: 2, once: true}, {seq: 3, cancel: true}, {seq: 4}}

func fewPromises() (all []promise) {
	for _, name := range "abcde" {
		all = append(all, promise{url: "/" + string(name)})
	}
	all[3].cancelled = 204
	return all
}

// script reads lines such as "begin 7 a 1": the process, the task and the attempt.
func script(lines ...string) *books {
	b := newBooks(few, fewPromises())
	for n, line := range lines {
		f := append(strings.Fields(line), "", "", "")
		e := harness.Entry{Event: f[0], Time: int64(n) * int64(time.Millisecond)}
		e.PID, _ = strconv.Atoi(f[1])
		switch f[0] {
		case "begin", "end":
			e.Task, e.Seq = f[2], strconv.Itoa(int(f[2][0]-'a'))
			e.Attempt, _ = strconv.Atoi(f[3])
		case cancelled:
			e.Task = f[2]
		default:
			e.Mark = f[2]
		}
		b.read(e)
	}
	return b
}

func TestTheBooksTellWhatIsWrong(t *testing.T) {
	for name, c := range map[string]struct {
		lines []string
		want  string // in the only finding; empty: there is none
	}{
		"all is well": {[]string{"start 7 x", "begin 7 a 1", "end 7 a 1", "begin 7 b 1", "end 7 b 1"}, ""},
		"twice at the same time": {
			[]string{"start 7 x", "start 8 y", "begin 7 e 1", "begin 8 e 2"}, "begins while attempt 1",
		},
		"again after the instance was killed": {
			[]string{"start 7 x", "begin 7 e 1", "killing 7", "start 8 x", "begin 8 e 2", "end 8 e 2"}, "",
		},
		"again after Caddy was killed": {
			[]string{"start 7 x", "begin 7 e 1", "end 7 e 1", "kill 0 x", "start 8 x", "begin 8 e 2", "end 8 e 2"}, "",
		},
		"again after another Caddy was killed": {
			[]string{"start 7 x", "begin 7 e 1", "end 7 e 1", "kill 0 y", "begin 7 e 2"}, "nothing was wrong with attempt 1",
		},
		"a process that lives on": {
			[]string{"start 7 x", "begin 7 e 1", "killing 7", "start 8 x", "begin 8 e 2", "end 7 e 1"}, "ends after attempt 2",
		},
		"again in a trouble": {
			[]string{"start 7 x", "trouble 0", "begin 7 e 1", "end 7 e 1", "calm 0", "begin 7 e 2"}, "",
		},
		"again with an old attempt": {
			[]string{"start 7 x", "begin 7 e 2", "end 7 e 2", "kill 0 x", "start 8 x", "begin 8 e 1"}, "attempt 1 begins after attempt 2",
		},
		"twice what may be once": {
			[]string{"start 7 x", "begin 7 c 1", "kill 0 x", "start 8 x", "begin 8 c 2"}, "may be once",
		},
		"a group out of order": {
			[]string{"start 7 x", "begin 7 b 1", "end 7 b 1", "begin 7 a 1"}, "which came later",
		},
		"a group at the same time": {
			[]string{"start 7 x", "begin 7 a 1", "begin 7 b 1"}, "while job 0 is executed",
		},
		"what was cancelled": {
			[]string{"start 7 x", "cancelled 0 d", "begin 7 d 1"}, "told that it is cancelled",
		},
		"a Caddy that goes on": {
			[]string{"start 7 x", "start 8 y", "trouble 0 x", "begin 8 e 2", "end 8 e 2", "thaw 0 x", "begin 7 e 1", "calm 0 x", "end 7 e 1"}, "",
		},
	} {
		got := script(c.lines...).findings
		if c.want == "" && len(got) != 0 || c.want != "" && (len(got) != 1 || !strings.Contains(got[0], c.want)) {
			t.Errorf("%s: the findings are %q, want %q", name, got, c.want)
		}
	}
}

func TestTheBooksCompareTheOutcomes(t *testing.T) {
	right := func() map[string]outcome {
		all := make(map[string]outcome)
		for _, name := range "abcde" {
			all[string(name)] = outcome{ID: string(name), State: "done", Status: 200}
		}
		all["d"] = outcome{ID: "d", State: "cancelled"}
		return all
	}
	for name, c := range map[string]struct {
		change func(all map[string]outcome)
		want   string
	}{
		"all is well":   {func(map[string]outcome) {}, ""},
		"lost":          {func(all map[string]outcome) { delete(all, "e"); all["f"] = outcome{} }, "task e is lost"},
		"one too many":  {func(all map[string]outcome) { all["f"] = outcome{} }, "6 tasks of 5 jobs"},
		"dead":          {func(all map[string]outcome) { all["e"] = outcome{State: "dead"} }, `State:dead`},
		"dead, once":    {func(all map[string]outcome) { all["c"] = outcome{State: "dead"} }, `State:dead`},
		"not cancelled": {func(all map[string]outcome) { all["d"] = outcome{State: "done", Status: 200} }, `State:done`},
		"cancelled":     {func(all map[string]outcome) { all["e"] = outcome{State: "cancelled"} }, `State:cancelled`},
		"cut off":       {func(all map[string]outcome) { all["e"] = outcome{State: "done", Status: 200, Size: 1} }, `Size:1`},
	} {
		b := script("start 7 x", "begin 7 a 1", "end 7 a 1", "begin 7 b 1", "end 7 b 1", "begin 7 c 1", "end 7 c 1", "begin 7 e 1", "end 7 e 1")
		all := right()
		c.change(all)
		b.settle(all)
		if c.want == "" && len(b.findings) != 0 || c.want != "" && (len(b.findings) != 1 || !strings.Contains(b.findings[0], c.want)) {
			t.Errorf("%s: the findings are %q, want %q", name, b.findings, c.want)
		}
	}
	b := script("start 7 x", "begin 7 a 1", "end 7 a 1", "begin 7 b 1", "end 7 b 1", "begin 7 c 1", "end 7 c 1")
	if b.settle(right()); len(b.findings) != 1 || !strings.Contains(b.findings[0], "0 executions") {
		t.Errorf("a task that was not executed: the findings are %q", b.findings)
	}
}
