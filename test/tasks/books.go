package tasks

import (
	"fmt"
	"net/http"
	"slices"
	"strconv"
	"strings"
	"time"

	"github.com/caddy-usher/usher/test/harness"
)

// books compare the journal of the instances with what was promised. The lines of the
// journal are read in their order.
type books struct {
	jobs     []job
	promises []promise
	findings []string
	doubtful map[string]bool // the first tasks with findings

	line      int
	processes map[int]*process // by pid
	tasks     map[string]*history
	groups    map[int]*lane
	troubles  map[string]*span // the latest, by mark; empty: of all
	thawed    map[string]int64 // when a Caddy went on, by mark

	executions, repeated int // repeated: of those, after an earlier one was cut off
	late, thaws          int // late: what was sent by a Caddy that had stood still
}

// process is an instance.
type process struct {
	mark  string
	dying bool // it was killed, or its Caddy was
}

// execution is an attempt in an instance.
type execution struct {
	process *process
	task    *history
	attempt int
	line    int
	began   int64
	ended   bool
}

// history is that of a task.
type history struct {
	id        string
	job       job
	all       []*execution
	late      []*execution // of Caddys that had stood still
	cancelled bool         // its client was told that it is not executed
}

// lane is a group.
type lane struct {
	latest *execution // which has begun
}

// span is a time in which something was wrong.
type span struct {
	open bool
	line int   // of its end
	to   int64 // its end
}

// afterwards is how long after a trouble its effects may come to light: broken
// connections are found when they are used.
const afterwards = 3 * time.Second

func newBooks(jobs []job, promises []promise) *books {
	return &books{
		jobs: jobs, promises: promises, processes: make(map[int]*process), tasks: make(map[string]*history), groups: make(map[int]*lane),
		troubles: make(map[string]*span), thawed: make(map[string]int64), doubtful: make(map[string]bool),
	}
}

// finding notes what is wrong with a task, or, if id is empty, with all.
func (b *books) finding(id, format string, args ...any) {
	b.findings = append(b.findings, fmt.Sprintf("line %d: ", b.line)+fmt.Sprintf(format, args...))
	if id != "" && len(b.doubtful) < 3 {
		b.doubtful[id] = true
	}
}

// about returns the lines of the journal that are about tasks with findings, and those
// of the test.
func (b *books) about(journal harness.Journal) string {
	var text strings.Builder
	for line, e := range journal {
		ours := slices.Contains([]string{killing, killCaddy, trouble, calm, thaw}, e.Event)
		if ours || b.doubtful[e.Task] {
			fmt.Fprintf(&text, "%7d %s %s pid %d mark %s task %s job %s attempt %d\n", line+1, time.Unix(0, e.Time).Format("15:04:05.000000"), e.Event, e.PID, e.Mark, e.Task, e.Seq, e.Attempt)
		}
	}
	return text.String()
}

// read reads a line.
func (b *books) read(e harness.Entry) {
	b.line++
	switch e.Event {
	case "start":
		b.processes[e.PID] = &process{mark: e.Mark}
	case "begin":
		b.begin(e)
	case "end":
		b.end(e)
	case killing:
		if p := b.processes[e.PID]; p != nil {
			p.dying = true
		}
	case killCaddy:
		for _, p := range b.processes {
			p.dying = p.dying || p.mark == e.Mark
		}
		b.troubles[e.Mark] = &span{line: b.line, to: e.Time}
	case trouble:
		b.troubles[e.Mark] = &span{open: true}
	case calm:
		b.troubles[e.Mark] = &span{line: b.line, to: e.Time + int64(afterwards)}
	case thaw:
		b.thawed[e.Mark] = e.Time
		b.thaws++
	case cancelled:
		b.of(e.Task).cancelled = true
	}
}

// of returns the history of a task.
func (b *books) of(id string) *history {
	h := b.tasks[id]
	if h == nil {
		h = &history{id: id, job: job{seq: -1}}
		b.tasks[id] = h
	}
	return h
}

func (b *books) begin(e harness.Entry) {
	seq, err := strconv.Atoi(e.Seq)
	p := b.processes[e.PID]
	if err != nil || seq < 0 || seq >= len(b.jobs) || p == nil || e.Task == "" {
		b.finding("", "an execution that no client has asked for: %+v", e)
		return
	}
	h := b.of(e.Task)
	h.job = b.jobs[seq]
	x := &execution{process: p, task: h, attempt: e.Attempt, line: b.line, began: e.Time}
	b.executions++
	if h.cancelled {
		b.finding(h.id, "job %d is executed, and its client was told that it is cancelled", seq)
	}
	l := b.groups[h.job.group]
	if h.job.group != 0 && l == nil {
		l = new(lane)
		b.groups[h.job.group] = l
	}
	n := len(h.all)
	if b.justThawed(x) && (n > 0 && x.attempt < h.all[n-1].attempt || l != nil && l.latest != nil && seq < l.latest.task.job.seq) {
		b.late++
		h.late = append(h.late, x)
		return
	}
	if n > 0 {
		b.again(h.all[n-1], x)
	}
	h.all = append(h.all, x)
	if l != nil {
		b.inGroup(l, x)
	}
}

// justThawed reports whether the Caddy of an execution had stood still just before. It
// may have stood still between the last look at its lease and the write to the
// instance: that is the limit of leases. It happens to few requests only.
func (b *books) justThawed(x *execution) bool {
	at, ok := b.thawed[x.process.mark]
	return ok && x.began-at < int64(time.Second)
}

// again checks that a task may be executed once more.
func (b *books) again(before, x *execution) {
	j := x.task.job
	if !j.flaky || before.attempt != 1 {
		b.repeated++
	}
	switch {
	case x.attempt <= before.attempt:
		b.finding(x.task.id, "job %d: attempt %d begins after attempt %d", j.seq, x.attempt, before.attempt)
	case j.once:
		b.finding(x.task.id, "job %d is executed twice, and may be once", j.seq)
	case !before.ended && b.justThawed(before):
		b.late++
	case !before.ended && !before.process.dying:
		b.finding(x.task.id, "job %d: attempt %d begins while attempt %d of line %d is executed", j.seq, x.attempt, before.attempt, before.line)
	case !b.cutOff(before) && (!j.flaky || before.attempt != 1):
		b.finding(x.task.id, "job %d: attempt %d begins, and nothing was wrong with attempt %d of line %d", j.seq, x.attempt, before.attempt, before.line)
	}
}

// cutOff reports whether something happened by which the outcome of an execution may
// have been lost.
func (b *books) cutOff(x *execution) bool {
	if x.process.dying {
		return true
	}
	for _, mark := range []string{"", x.process.mark} {
		if s := b.troubles[mark]; s != nil && (s.open || s.line > x.line || s.to > x.began) {
			return true
		}
	}
	return false
}

// inGroup checks that a task of a group may begin.
func (b *books) inGroup(l *lane, x *execution) {
	if before := l.latest; before != nil {
		j := before.task.job
		switch {
		case x.task.job.seq < j.seq:
			b.finding(x.task.id, "group %d: job %d begins after job %d, which came later", j.group, x.task.job.seq, j.seq)
		case before.task == x.task || before.ended || before.process.dying:
		case b.justThawed(before):
			b.late++
		case b.promises[j.seq].cancelled == http.StatusAccepted:
			// Its connection was closed. The instance may not know yet.
		default:
			b.finding(x.task.id, "group %d: job %d begins while job %d is executed", j.group, x.task.job.seq, j.seq)
		}
	}
	l.latest = x
}

func (b *books) end(e harness.Entry) {
	h := b.of(e.Task)
	for k, x := range h.all {
		if x.attempt != e.Attempt || x.process != b.processes[e.PID] {
			continue
		}
		x.ended = true
		if k != len(h.all)-1 && !b.justThawed(x) {
			b.finding(h.id, "job %d: attempt %d ends after attempt %d has begun", h.job.seq, x.attempt, h.all[len(h.all)-1].attempt)
		}
		return
	}
	for _, x := range h.late {
		if x.attempt == e.Attempt && x.process == b.processes[e.PID] {
			return
		}
	}
	b.finding("", "an execution ends that has not begun: %+v", e)
}

// settle compares the journal with the outcomes.
func (b *books) settle(all map[string]outcome) {
	b.line++
	if len(all) != len(b.jobs) {
		b.finding("", "there are %d tasks of %d jobs", len(all), len(b.jobs))
	}
	if b.late > 2*b.thaws {
		b.finding("", "%d executions began too late, by Caddys that had stood still %d times", b.late, b.thaws)
	}
	known := make(map[string]bool, len(b.jobs))
	for seq, p := range b.promises {
		known[p.id()] = true
		o, ok := all[p.id()]
		if !ok {
			b.finding(p.id(), "job %d: task %s is lost", seq, p.id())
			continue
		}
		b.outcome(b.jobs[seq], p, o)
	}
	for id, h := range b.tasks {
		if !known[id] {
			b.finding(id, "job %d has a second task, %s", h.job.seq, id)
		}
	}
}

// outcome checks that of one job.
func (b *books) outcome(j job, p promise, o outcome) {
	executions := b.of(p.id()).all
	status := http.StatusOK
	state := "done"
	if j.fails {
		status, state = http.StatusNotFound, "failed"
	}
	right := o.State == state && o.Status == status && o.Size == j.size && len(executions) > 0
	switch {
	case j.cancel && o.State == "cancelled":
		// What was told to wait can only have been cut off before.
		right = p.cancelled != 0
	case p.cancelled == http.StatusNoContent:
		right = false
	case j.once && o.State == "dead":
		right = len(executions) == 0 && len(b.troubles) > 0 || len(executions) == 1 && b.cutOff(executions[0])
	}
	if !right {
		b.finding(p.id(), "job %+v, promised %+v: %d executions, and the outcome %+v", j, p, len(executions), o)
	}
}

// tally says what was in the journal.
func (b *books) tally() string {
	return fmt.Sprintf("%d executions in %d tasks, of which %d were repeated because of what was killed, and %d came too late", b.executions, len(b.tasks), b.repeated, b.late)
}
