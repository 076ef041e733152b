package caddymodule

import (
	"encoding/binary"
	"errors"
	"fmt"
	"math/rand/v2"
	"net/http"
	"slices"
	"strings"

	"github.com/caddyserver/caddy/v2"
	"go.uber.org/zap"

	"github.com/caddy-usher/usher/caddymodule/hub"
	"github.com/caddy-usher/usher/scaler/control"
)

// splitter finds the service of each request among the sides of a split.
type splitter struct {
	split *hub.Split
	hub   *hub.Hub
}

// choice is how the side of a request was chosen.
type choice struct {
	hash uint64 // by which
	left uint32 // the sides that could not serve it, one bit for each
	side uint8
}

// checkSplit refuses what a place with a split cannot have beside it.
func (h *Handler) checkSplit() error {
	switch {
	case isPlaceholder(h.Service):
		return fmt.Errorf("%s is a placeholder, and a split needs a name", h.Service)
	case h.From != "":
		return errors.New("from is for a service that a placeholder names")
	case h.Define != nil:
		return errors.New("a split has no backend: define its sides elsewhere")
	case h.Async != nil:
		return errors.New("async: requests are stored for one service, not for the sides of a split: let handlers before this one choose those that are stored")
	}
	return h.Split.WithDefaults().Validate(h.Service)
}

// provisionSplit lets h find its service among the sides of its split.
func (h *Handler) provisionSplit(app *App) error {
	if err := h.checkSplit(); err != nil {
		return err
	}
	g := app.generation
	s := g.Splits[h.Service]
	if s == nil {
		var err error
		if s, err = app.hub.NewSplit(h.Service, *h.Split, g.Services); err != nil {
			return err
		}
		if g.Splits == nil {
			g.Splits = make(map[string]*hub.Split)
		}
		g.Splits[h.Service] = s
	} else if !s.Equal(*h.Split) {
		return errors.New("it stands twice, and not with the same sides, weights and options: write it in the same way, or give one of the two another name")
	}
	h.finder = &splitter{s, app.hub}
	return nil
}

// services are the names of the services of h, as far as they are constant.
func (h *Handler) services() []string {
	if h.Split == nil {
		return []string{h.Service}
	}
	var names []string
	for _, side := range h.Split.Sides {
		names = append(names, side.Service)
	}
	return names
}

// find implements finder.
func (x *splitter) find(h *Handler, w http.ResponseWriter, r *http.Request) (found, bool) {
	f, none := x.next(choice{hash: x.hash(h, r)}, r)
	if none != nil {
		x.split.Count(int(f.choice.side))
		h.refuseUnknown(w, r, none)
		return f, true
	}
	return f, false
}

// hash returns by what the side of r is chosen: a value, or chance.
func (x *splitter) hash(h *Handler, r *http.Request) uint64 {
	if x.split.Placeholder != "" {
		replacer, _ := r.Context().Value(caddy.ReplacerCtxKey).(*caddy.Replacer)
		if v := hub.Evaluate(replacer, x.split.Placeholder); v != "" {
			return hub.HashOf(v)
		}
	}
	if h.WaitingPage != nil {
		// The page has to find the place in the queue again.
		key := keyOf(r)
		return binary.LittleEndian.Uint64(key[:])
	}
	return rand.Uint64()
}

// next returns the next side for r in the order of c.hash, without those in c.left.
// A side without a service is passed over if the split says so. If there is none,
// it returns why the last one that it has looked at has none.
func (x *splitter) next(c choice, r *http.Request) (found, *noService) {
	none := noneOfThatName
	for {
		k := x.split.Choose(c.hash, c.left)
		if k < 0 {
			return found{choice: c}, none
		}
		c.side = uint8(k)
		s, made := x.split.Find(k)
		if s == nil {
			s, none = madeFor(x.hub, made, r)
		}
		if s != nil {
			return found{s, c}, nil
		}
		if !x.split.PassesOn() || none.isOfRequest() {
			return found{choice: c}, none
		}
		c.left |= 1 << k
	}
}

// after returns the side after that of c, if a request may go there because its own
// cannot serve it for that reason.
func (x *splitter) after(c choice, r *http.Request, reason error) (found, bool) {
	refusal, ok := errors.AsType[*control.Refusal](reason)
	if !ok || refusal.Kind == control.RefusedExiting || !x.split.PassesOn() {
		return found{}, false
	}
	c.left |= 1 << c.side
	f, none := x.next(c, r)
	return f, none == nil
}

// placed returns the side at which the visitor that sent r waits. That is not its
// first one, if that could not serve. Without a place it is f.
func (x *splitter) placed(f found, r *http.Request) found {
	if !x.split.PassesOn() {
		return f
	}
	key := keyOf(r)
	at := f
	for at.service.Visitors.Find(key) == nil {
		c := at.choice
		c.left |= 1 << c.side
		next, none := x.next(c, r)
		if none != nil {
			return f
		}
		at = next
	}
	return at
}

// splitter returns the one that has found the service of q; nil without a split.
func (q *request) splitter() *splitter {
	if q.handler == nil {
		return nil
	}
	x, _ := q.handler.finder.(*splitter)
	return x
}

// split returns the name of the split of q; empty without.
func (q *request) split() string {
	if x := q.splitter(); x != nil {
		return x.split.Name
	}
	return ""
}

// countSide counts q at its side.
func (q *request) countSide() {
	if x := q.splitter(); x != nil {
		x.split.Count(int(q.choice.side))
	}
}

// unsent reports whether q got no slot for a further attempt, and can go elsewhere:
// no instance can have seen it, no answer has begun, and its body is whole.
func (q *request) unsent() bool {
	return q.refusal != nil && q.seen == 0 && !q.maybeSeen() && !q.writer.wrote && !q.writer.suppressed && (q.body == nil || q.body.unwanted())
}

// nextSide lets q ask for a slot at the next side of its split, if there is one to
// which it may go, and its own cannot serve it for that reason. Nothing of q was
// sent yet. It waits as long as is left of its time, in a place of its own in the
// queue there.
func (q *request) nextSide(reason error) bool {
	x := q.splitter()
	if x == nil || q.ctx.Err() != nil {
		return false
	}
	f, ok := x.after(q.choice, q.came, reason)
	if !ok {
		return false
	}
	turn, err := q.handler.turnOf(f.service, q.came, q.quiet)
	if err != nil {
		return false
	}
	refusal, _ := errors.AsType[*control.Refusal](reason)
	code := refusalCodes[refusal.Kind]
	q.service.Outcome(code, q.waited)
	if entry := q.service.Log().Check(zap.DebugLevel, "request goes to another side of its split"); entry != nil {
		entry.Write(zap.String("split", x.split.Name), zap.String("to", f.service.Name), zap.String("code", code), zap.String("detail", refusal.Detail))
	}
	if q.handler.ServerTiming {
		h := q.writer.Header()
		h["Server-Timing"] = slices.DeleteFunc(h["Server-Timing"], func(v string) bool { return strings.HasPrefix(v, timingPrefix) })
	}
	q.endPin()
	q.service, q.choice, q.turn = f.service, f.choice, turn
	q.instance, q.address, q.guard = nil, "", nil
	q.refusal, q.moves, q.pageLate, q.sought = nil, 0, false, false
	return true
}

var _ finder = (*splitter)(nil)
