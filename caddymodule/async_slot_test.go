package caddymodule

import (
	"errors"
	"net/http"
	"strings"
	"testing"
	"time"

	"github.com/caddy-usher/usher/async"
	"github.com/caddy-usher/usher/scaler/control"
)

// An instance can go at any moment after a task has got its slot there, also before
// the task is sent.
func TestAnInstanceGoesWhileATaskIsSent(t *testing.T) {
	f := newFleet(t)
	start(t, site(f.usher("async")))
	tasks := serving(t, f.name).Hub.Tasks()
	slots := make(chan async.Slot)
	const times = 50
	go func() {
		for range times {
			slot, err := tasks.Slot(t.Context(), f.name)
			if err != nil {
				t.Error(err)
			}
			slots <- slot
		}
	}()
	for range times {
		slot := <-slots
		if slot == nil {
			return
		}
		i := slot.(*taskSlot).request.reservation.Instance()
		over := make(chan struct{})
		ended := make(chan struct{})
		go func() {
			defer close(ended)
			for {
				select {
				case <-over:
					return
				default:
					i.Interrupt(control.ErrGone)
				}
			}
		}()
		req, err := http.NewRequestWithContext(t.Context(), http.MethodPost, "/", strings.NewReader("x"))
		if err != nil {
			t.Fatal(err)
		}
		req.ContentLength = 1
		began := time.Now()
		resp, err := slot.Send(req)
		if err == nil {
			_ = resp.Body.Close()
		}
		close(over)
		<-ended
		slot.Release()
		if err != nil && !errors.Is(err, control.ErrGone) || time.Since(began) > patience {
			t.Errorf("it has ended after %v: %v", time.Since(began), err)
		}
	}
}
