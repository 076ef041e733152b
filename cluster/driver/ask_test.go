package driver

import (
	"bytes"
	"context"
	"errors"
	"slices"
	"strings"
	"testing"
	"time"
)

func TestAQuestionIsAnsweredByTheMemberThatIsAsked(t *testing.T) {
	w := newWorld(t, 1)
	echo := func(c *Config) {
		c.Answer = func(_ context.Context, q []byte) []byte { return append([]byte(c.Self.ID+" has "), q...) }
	}
	hosts := []*host{w.join("a", echo), w.join("b", echo), w.join("c", echo)}
	w.together(hosts...)
	long := bytes.Repeat([]byte("x"), 3*maxPart+7)
	for _, h := range hosts {
		for _, to := range hosts {
			if to == h {
				continue
			}
			id := to.d.c.Self.ID
			for _, q := range [][]byte{{}, []byte("short"), long} {
				got, err := h.d.Ask(t.Context(), id, q)
				if want := append([]byte(id+" has "), q...); err != nil || !bytes.Equal(got, want) {
					t.Fatalf("%s asks %s: %d bytes, %v", h.d.c.Self.ID, id, len(got), err)
				}
			}
		}
	}
	if _, err := hosts[0].d.Ask(t.Context(), "z", nil); err == nil || !strings.Contains(err.Error(), "no member z") {
		t.Error(err)
	}
}

func TestAQuestionThatIsNotAnsweredEndsWithItsContext(t *testing.T) {
	w := newWorld(t, 1)
	mute := func(c *Config) {
		c.Answer = func(ctx context.Context, _ []byte) []byte { <-ctx.Done(); return nil }
	}
	a, b := w.join("a", mute), w.join("b", mute)
	w.together(a, b)
	ctx, cancel := context.WithTimeoutCause(t.Context(), 50*time.Millisecond, errors.New("too slow"))
	defer cancel()
	if _, err := a.d.Ask(ctx, "b", []byte("?")); err == nil || !strings.Contains(err.Error(), "too slow") {
		t.Error(err)
	}
}

func TestNewsForTheLeaderStayThere(t *testing.T) {
	w := newWorld(t, 1)
	hosts := []*host{w.join("a"), w.join("b"), w.join("c")}
	leader := w.together(hosts...)
	from := hosts[0]
	if from == leader {
		from = hosts[1]
	}
	from.d.Tell("for the leader", nil)
	from.d.Tell("for all", nil)
	for _, h := range hosts {
		if h == from {
			continue
		}
		w.eventually("the news for all have come", h.holds(func(h *host) bool { return slices.Contains(h.told, from.d.c.Self.Boot+" for all ") }))
		knows := h.holds(func(h *host) bool { return slices.Contains(h.told, from.d.c.Self.Boot+" for the leader ") })()
		if knows != (h == leader) {
			t.Errorf("%s knows: %v", h.d.c.Self.ID, knows)
		}
	}
}

func TestNewsComeToAllOthersOnce(t *testing.T) {
	w := newWorld(t, 1)
	hosts := []*host{w.join("a"), w.join("b"), w.join("c")}
	w.together(hosts...)
	var all []string
	for k := range 20 {
		for _, h := range hosts {
			body := strings.Repeat("x", k)
			h.d.Tell("weather", []byte(body))
			all = append(all, h.d.c.Self.Boot+" weather "+body)
		}
	}
	for _, h := range hosts {
		want := slices.DeleteFunc(slices.Clone(all), func(s string) bool { return strings.HasPrefix(s, h.d.c.Self.Boot) })
		slices.Sort(want)
		w.eventually("all news have come to "+h.d.c.Self.ID, h.holds(func(h *host) bool { return len(h.told) >= len(want) }))
		h.mu.Lock()
		got := slices.Clone(h.told)
		h.mu.Unlock()
		if slices.Sort(got); !slices.Equal(got, want) {
			t.Errorf("%s heard %q", h.d.c.Self.ID, got)
		}
	}
}
