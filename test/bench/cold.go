package main

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"net/http"
	"os"
	"path/filepath"
	"strings"
	"syscall"
	"time"

	"github.com/caddy-usher/usher/test/bench/load"
)

// A birth is one start of an instance, as the instance and the client saw it.
type birth struct {
	asked    time.Time // the request was sent, or the process was being forked
	began    time.Time // the first statement of the program
	listened time.Time
	answered time.Time
}

// journal is the file in which the instances of the test program note what
// happens to them.
type journal struct {
	file   string
	offset int
}

// next waits for the next instance that listens.
func (j *journal) next() (began, listened time.Time, err error) {
	err = await(20*time.Second, "an instance listens", func() bool {
		data, _ := os.ReadFile(j.file)
		began, listened = time.Time{}, time.Time{}
		for line := range bytes.Lines(data[min(j.offset, len(data)):]) {
			var e struct {
				Time  int64
				Event string
			}
			if json.Unmarshal(line, &e) != nil {
				return false // it is being written
			}
			switch e.Event {
			case "start":
				began = time.Unix(0, e.Time)
			case "listen":
				listened = time.Unix(0, e.Time)
			}
		}
		return !listened.IsZero()
	})
	return began, listened, err
}

// forget leaves out what was noted so far.
func (j *journal) forget() {
	data, _ := os.ReadFile(j.file)
	j.offset = len(data)
}

// A starter makes one cold start.
type starter struct {
	name  string
	birth func() (birth, error)

	births []birth
}

// cold measures what Usher adds to a start: all the time from the request to
// the answer that is neither the program's nor the system's.
func (b *bench) cold() error {
	for _, delay := range []time.Duration{0, 50 * time.Millisecond} {
		if b.short && delay > 0 {
			continue
		}
		if err := b.coldAfter(delay); err != nil {
			return err
		}
		b.clear()
	}
	return nil
}

func (b *bench) coldAfter(delay time.Duration) error {
	j := &journal{file: filepath.Join(b.dir, fmt.Sprintf("journal-%s", delay))}
	direct := &starter{name: "the program by itself", birth: func() (birth, error) { return b.startDirectly(j, delay) }}
	all := []*starter{direct}
	for _, listen := range []string{"tcp", "unix", "fd"} {
		s, err := b.coldService(listen, j, delay)
		if err != nil {
			return err
		}
		all = append(all, s)
	}
	if b.binaries.socketStart != "" {
		all = append(all, &starter{name: "systemd-socket-activate", birth: func() (birth, error) { return b.startBySocket(j, delay) }})
	}
	rounds := b.rounds(100, 15)
	if delay > 0 {
		rounds = 40
	}
	for i := range rounds + 1 {
		for k := range all {
			s := all[(i+k)%len(all)]
			j.forget()
			one, err := s.birth()
			if err == nil {
				err = b.ctx.Err()
			}
			if err != nil {
				return fmt.Errorf("%s: %w", s.name, err)
			}
			if i > 0 {
				s.births = append(s.births, one)
			}
		}
	}
	b.coldRows(all, delay)
	return nil
}

func (b *bench) coldRows(all []*starter, delay time.Duration) {
	suffix := ""
	if delay > 0 {
		suffix = fmt.Sprintf(", a program that needs %s", delay)
	}
	// The time that the system needs to run a forked program does not count for
	// the program that forks it.
	fork := make(series, 0, len(all[0].births))
	own := make(series, 0, len(all[0].births))
	for _, one := range all[0].births {
		fork = append(fork, float64(one.began.Sub(one.asked)))
		own = append(own, float64(one.listened.Sub(one.asked)))
	}
	added := func(s *starter) series {
		var all series
		for _, one := range s.births {
			all = append(all, float64(one.began.Sub(one.asked)+one.answered.Sub(one.listened))-fork.median())
		}
		return all
	}
	var bound series
	for _, s := range all[1:] {
		if s.name == "systemd-socket-activate" {
			bound = added(s)
		}
	}
	for _, s := range all[1:] {
		if s.name == "systemd-socket-activate" {
			continue
		}
		a := added(s)
		var whole series
		for _, one := range s.births {
			whole = append(whole, float64(one.answered.Sub(one.asked)))
		}
		b.figure(s.name+", request to answer, p50"+suffix, milli, whole, fmt.Sprintf("%s until it listens by itself", milli(own.median())), nil)
		// The system itself is late at times, more so while others use it: by
		// so much are starts without Usher late, and it counts as noise.
		late := func(q float64) float64 {
			return max(lateness(own, q), lateness(bound, q))
		}
		for _, q := range []struct {
			name  string
			part  float64
			bound float64
			words string
		}{{"p50", 0.5, 5e6, "p50 ≤ 5 ms"}, {"p99", 0.99, 20e6, "p99 ≤ 20 ms"}} {
			r := row{
				part: b.part, what: s.name + ", added to the start, " + q.name + suffix,
				usher: milli(a.quantile(q.part)), budget: "P4: " + q.words,
				noise: late(q.part) / a.quantile(q.part),
			}
			if len(bound) > 0 {
				r.other = milli(bound.quantile(q.part)) + " systemd-socket-activate"
			}
			r.verdict = atMost("P4", q.bound, q.words).judge(a.quantile(q.part), r.noise)
			b.add(r)
		}
	}
}

// lateness is how much later than the fastest the part q of them is.
func lateness(s series, q float64) float64 {
	if len(s) == 0 {
		return 0
	}
	return s.quantile(q) - s.quantile(0.05)
}

// startDirectly starts the program without anything in between.
func (b *bench) startDirectly(j *journal, delay time.Duration) (birth, error) {
	port, err := b.freePorts(1)
	if err != nil {
		return birth{}, err
	}
	one := birth{asked: time.Now()}
	p, err := b.start("app", "/usr/bin/env", "APP_JOURNAL="+j.file, b.binaries.app, "-addr", at(port), "-delay", delay.String())
	if err != nil {
		return one, err
	}
	defer b.drop(p)
	one.began, one.listened, err = j.next()
	return one, err
}

// drop ends one process before the others.
func (b *bench) drop(p *process) {
	_ = p.cmd.Process.Signal(syscall.SIGKILL)
	<-p.done
	for i, r := range b.running {
		if r == p {
			b.running = append(b.running[:i], b.running[i+1:]...)
			return
		}
	}
}

// coldService makes a Caddy with a service that sleeps.
func (b *bench) coldService(listen string, j *journal, delay time.Duration) (*starter, error) {
	// A port rests after an instance had it: one for each start.
	const enough = 256
	ports, err := b.freePorts(enough)
	if err != nil {
		return nil, err
	}
	args := []string{b.binaries.app, "-delay", delay.String()}
	if listen == "unix" {
		args = append(args, "-socket", "{usher.socket}")
	}
	s, err := b.caddy(
		fmt.Sprintf("usher web {\nbackend process %s {\nlisten %s\nenv APP_JOURNAL %s\n}\n}", strings.Join(args, " "), listen, j.file),
		fmt.Sprintf("usher {\nports %d-%d\n}", ports, ports+enough-1))
	if err != nil {
		return nil, err
	}
	conn, err := load.Dial(s.address, "/")
	if err != nil {
		return nil, err
	}
	return &starter{name: "listen " + listen, birth: func() (birth, error) {
		one := birth{asked: time.Now()}
		if err := conn.Ask(); err != nil {
			return one, errors.Join(err, errors.New(s.output()))
		}
		one.answered = time.Now()
		var err error
		if one.began, one.listened, err = j.next(); err != nil {
			return one, err
		}
		if _, err := s.askAdmin(http.MethodPost, "/usher/services/web/sleep", "", nil); err != nil {
			return one, err
		}
		return one, s.awaitService("web", "it sleeps again", func(st status) bool {
			return st.State == "asleep" && st.Instances == struct{ Starting, Ready, Ejected, Draining int }{}
		})
	}}, nil
}

// startBySocket lets systemd-socket-activate start the program: the kernel
// keeps the connection until the program accepts it. Nothing can be faster,
// and nothing is between the two afterwards.
func (b *bench) startBySocket(j *journal, delay time.Duration) (birth, error) {
	port, err := b.freePorts(1)
	if err != nil {
		return birth{}, err
	}
	p, err := b.start("socket", b.binaries.socketStart, "-l", at(port), "-E", "APP_JOURNAL="+j.file, b.binaries.app, "-delay", delay.String())
	if err != nil {
		return birth{}, err
	}
	defer b.drop(p)
	// A connection would be the one that it waits for.
	if err := await(5*time.Second, "systemd-socket-activate listens", func() bool { return listening(port) }); err != nil {
		return birth{}, fmt.Errorf("%w\n%s", err, p.output())
	}
	one := birth{asked: time.Now()}
	conn, err := load.Dial(at(port), "/")
	if err != nil {
		return one, err
	}
	defer conn.Close()
	if err := conn.Ask(); err != nil {
		return one, err
	}
	one.answered = time.Now()
	one.began, one.listened, err = j.next()
	return one, err
}

// listening tells whether a socket listens on a port of 127.0.0.1.
func listening(port int) bool {
	table, _ := os.ReadFile("/proc/net/tcp")
	entry := fmt.Sprintf(" 0100007F:%04X 00000000:0000 0A ", port)
	return bytes.Contains(table, []byte(entry))
}
