package control

import (
	"context"
	"errors"
	"io"
	"io/fs"
	"log/slog"
	"strings"
	"syscall"
	"time"

	"github.com/caddy-usher/usher/scaler"
)

const (
	// diagnoseFirst is how long a start takes before it is looked at, and
	// diagnoseMost the longest pause between two looks.
	diagnoseFirst = time.Second
	diagnoseMost  = 5 * time.Second

	// slowStart is how long a start may take before people are told what is
	// known about it, if it was never measured how long one takes.
	slowStart = 10 * time.Second
)

// watchStart looks at i now and then until it is ready or on its way out. The
// lock is held.
func (l *Loop) watchStart(i *instance) {
	d, ok := i.revision.scaler.(scaler.Diagnoser)
	if !ok || i.stage != starting {
		return
	}
	ctx, cancel := context.WithCancel(l.context())
	i.watch = cancel
	l.background(func() {
		for pause := diagnoseFirst; ; pause = min(2*pause, diagnoseMost) {
			select {
			case <-ctx.Done():
				return
			case <-time.After(pause):
			}
			seen := d.Diagnose(ctx, i.ID)
			l.mu.Lock()
			if ctx.Err() == nil {
				l.diagnosed(i, seen)
			}
			l.mu.Unlock()
		}
	})
}

// stopWatch ends what watchStart began.
func (i *instance) stopWatch() {
	if i.watch != nil {
		i.watch()
		i.watch = nil
	}
}

// diagnosed takes note of what was seen of i. A mistake counts when it is seen
// twice: a program may open one port a moment before the other. The lock is
// held.
func (l *Loop) diagnosed(i *instance, seen scaler.Diagnosis) {
	sure := seen.Mistake && seen.Short == i.diagnosis.Short
	i.diagnosis = seen
	if sure && !i.mistaken {
		f := l.notReady(i, "after "+lasted(time.Since(i.unreadyFrom)))
		l.log().Warn("an instance does not become ready", slog.String("instance", i.ID), slog.Any("error", f))
	}
	i.mistaken = sure
}

// lasted is a duration for people to read.
func lasted(d time.Duration) string {
	if d < 5*time.Second {
		return d.Round(100 * time.Millisecond).String()
	}
	return d.Round(time.Second).String()
}

// notReady puts together all that is known about an instance that is not
// ready, when or for how long. The lock is held.
func (l *Loop) notReady(i *instance, when string) *scaler.Failure {
	f := &scaler.Failure{Reason: scaler.ReasonTimeout, Short: "not ready " + when, Err: i.lastProbe}
	platform := i.Failure
	if platform == nil {
		platform = i.Delay
	}
	seen := i.diagnosis
	switch {
	case platform != nil:
		f = &scaler.Failure{
			Reason: platform.Reason, ForGood: platform.ForGood, Short: f.Short + ": " + platform.Short,
			Detail: platform.Detail, Err: platform.Err,
		}
	case seen.Mistake:
		f.Short += ": " + seen.Short
	case probeWords(i.lastProbe) != "":
		f.Short += ": " + probeWords(i.lastProbe)
		if seen.Short != "" && errors.Is(i.lastProbe, syscall.ECONNREFUSED) {
			f.Short = "not ready " + when + ": " + seen.Short
		}
	case seen.Short != "":
		f.Short += ": " + seen.Short
	}
	var details []string
	for _, d := range []string{f.Detail, seen.Detail} {
		if d != "" {
			details = append(details, d)
		}
	}
	f.Detail = strings.Join(details, "; ")
	if seen.Output != "" {
		if f.Detail != "" {
			f.Detail += "\n"
		}
		f.Detail += "last output:\n" + seen.Output
	}
	return f
}

// probeWords is the short fact about a probe that did not pass. It says
// nothing that the instance wrote.
func probeWords(err error) string {
	var wrong *wrongAnswer
	switch {
	case err == nil:
		return ""
	case errors.As(err, &wrong):
		return wrong.words
	case errors.Is(err, syscall.ECONNREFUSED):
		return "it refuses connections"
	case errors.Is(err, fs.ErrNotExist):
		return "its socket does not exist"
	case errors.Is(err, context.DeadlineExceeded), isTimeout(err):
		return "the readiness check gets no answer in time"
	case errors.Is(err, io.EOF), errors.Is(err, io.ErrUnexpectedEOF), errors.Is(err, syscall.ECONNRESET):
		return "the readiness check's connection is closed without an answer"
	}
	return "the readiness check does not pass"
}

func isTimeout(err error) bool {
	t, ok := errors.AsType[interface {
		error
		Timeout() bool
	}](err)
	return ok && t.Timeout()
}
