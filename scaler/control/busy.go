package control

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net/http"
	"time"

	"github.com/caddy-usher/usher/reserver"
	"github.com/caddy-usher/usher/scaler"
)

// Busy is how an instance is asked whether it works in the background, before it
// is stopped because there is no demand for it.
type Busy struct {
	// Path is asked for by GET, as the readiness check is: status 2xx means busy,
	// any other answer free. An instance that does not answer is asked again, and
	// counts as free after three times.
	Path string

	// CPU is the use of the processor, in percent of one, from which an instance
	// counts as busy; 0 does not look at it.
	CPU float64
}

const (
	busyFresh    = 10 * time.Second // how long the answer that it is free counts
	busyPauseMin = time.Second      // before it is asked again, doubled each time
	busyPauseMax = time.Minute
	busySpan     = time.Second // for which the use of the processor is measured
	busyNoAnswer = 3
)

// business is what is known of the work that an instance does in the background.
type business struct {
	asking     bool
	served     uint64    // requests that it had got when it was asked
	freeAt     time.Time // when it said that it is free; zero if it is busy
	nextAt     time.Time // when it is asked again
	pause      time.Duration
	unanswered int
	seen       string // in words for operators; empty if it is free
}

// free returns the instances that have no request inside and are known to be
// free, and asks others. The lock is held.
func (l *Loop) free(r *revision, all []*reserver.Instance, now time.Time, next *recheck) []*reserver.Instance {
	if l.settings.Busy == (Busy{}) || l.suspended != nil || l.asleep || l.retired {
		return all
	}
	var free []*reserver.Instance
	for _, s := range all {
		i := r.instances[s.ID]
		if i.business == nil {
			i.business = new(business)
		}
		st, b := s.Stats(), i.business
		switch {
		case st.Ejected:
			free = append(free, s)
		case st.InUse > 0 || b.asking:
		case !b.freeAt.IsZero() && now.Sub(b.freeAt) < busyFresh && b.served == st.Served:
			free = append(free, s)
		case now.Before(b.nextAt):
			next.by(b.nextAt)
		default:
			l.askBusy(i)
		}
	}
	return free
}

// askBusy asks i, in the background. The lock is held.
func (l *Loop) askBusy(i *instance) {
	check, opened := l.settings.Check, i.revision.scaler
	check.Kind, check.Path, check.Status = CheckHTTP, l.settings.Busy.Path, http.StatusOK/100
	threshold := l.settings.Busy.CPU
	network, address, id := i.Network, i.Address, i.ID
	i.business.served = i.slots.Stats().Served
	i.business.asking = l.background(func() {
		var busy string
		var err error
		if threshold > 0 {
			busy, err = cpuBusy(l.context(), opened, id, threshold)
		} else if err = check.probe(l.context(), network, address, nil); err == nil {
			busy = "GET " + check.Path + " says that it is busy"
		}
		l.mu.Lock()
		l.busyAnswer(i, busy, err, time.Now())
		l.mu.Unlock()
		l.Trigger()
	})
}

// busyAnswer takes note of what i said. The lock is held.
func (l *Loop) busyAnswer(i *instance, busy string, err error, now time.Time) {
	b := i.business
	b.asking = false
	var wrong *wrongAnswer
	if busy == "" && err != nil && !errors.As(err, &wrong) {
		if b.unanswered++; b.unanswered < busyNoAnswer {
			busy = "it did not say whether it is busy: " + err.Error()
		}
	} else {
		b.unanswered = 0
	}
	if b.seen = busy; busy == "" {
		b.freeAt, b.pause, b.nextAt = now, 0, time.Time{}
		return
	}
	if b.pause == 0 {
		l.log().Info("an instance is busy, and is not stopped yet", slog.String("instance", i.ID), slog.String("seen", busy))
	}
	b.freeAt = time.Time{}
	b.pause = min(max(2*b.pause, busyPauseMin), busyPauseMax)
	b.nextAt = now.Add(b.pause)
}

// cpuBusy measures how much of a processor an instance uses.
func cpuBusy(ctx context.Context, opened scaler.Scaler, id string, threshold float64) (busy string, err error) {
	m, ok := opened.(scaler.CPUMeter)
	if !ok {
		return "", nil
	}
	before, err := m.CPUTime(ctx, id)
	if err != nil {
		return "", err
	}
	began := time.Now()
	select {
	case <-ctx.Done():
		return "", ctx.Err()
	case <-time.After(busySpan):
	}
	after, err := m.CPUTime(ctx, id)
	if err != nil {
		return "", err
	}
	if used := 100 * float64(after-before) / float64(time.Since(began)); used >= threshold {
		return fmt.Sprintf("it uses %.0f %% of a processor", used), nil
	}
	return "", nil
}
