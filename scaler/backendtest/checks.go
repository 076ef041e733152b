package backendtest

import (
	"context"
	"errors"
	"slices"
	"strings"
	"testing"

	"github.com/caddy-usher/usher/scaler"
)

func checkOpen(t testing.TB, s Subject) {
	o := s.open(t)
	if n := s.Running(); n != 0 {
		t.Errorf("the platform runs %d instances before the first order", n)
	}
	o.has(0)
}

func checkFingerprint(t testing.TB, s Subject) {
	mine := s.Backend.Fingerprint()
	if mine == "" {
		t.Error("the fingerprint is empty")
	}
	if again := s.Backend.Fingerprint(); again != mine {
		t.Errorf("the fingerprint changes by itself: %q, then %q", mine, again)
	}
	if s.Same != nil && s.Same.Fingerprint() != mine {
		t.Errorf("equal configurations have the fingerprints %q and %q", mine, s.Same.Fingerprint())
	}
	if s.Other != nil && s.Other.Fingerprint() == mine {
		t.Errorf("different configurations have the fingerprint %q", mine)
	}
	o := s.open(t)
	o.scale(1)
	o.has(1)
	if again := s.Backend.Fingerprint(); again != mine {
		t.Errorf("the fingerprint changes when instances run: %q, then %q", mine, again)
	}
}

func checkRedacted(t testing.TB, s Subject) {
	shown := encode(t, s.Backend.Redacted())
	for _, secret := range s.Secrets {
		if strings.Contains(shown, secret) {
			t.Errorf("the redacted configuration shows the secret %q: %s", secret, shown)
		}
	}
}

func checkOrder(t testing.TB, s Subject) {
	o := s.open(t)
	o.scale(2)
	before := o.has(2)
	o.scale(2)
	if after := o.has(2); !slices.Equal(before, after) {
		t.Errorf("the same order again made %v of %v", after, before)
	}
	o.scale(3)
	grown := o.has(3)
	for _, id := range before {
		if !slices.Contains(grown, id) {
			t.Errorf("one more was ordered, and %s was stopped", id)
		}
	}
	o.scale(0, grown...)
	o.has(0)
	o.scale(0)
	o.has(0)
}

func checkStop(t testing.TB, s Subject) {
	o := s.open(t)
	o.scale(3)
	all := o.has(3)
	o.ready(all...)
	stop := o.victims(2)
	from := o.count()
	o.scale(1, stop...)
	left := o.has(1)
	if slices.Contains(stop, left[0]) || !slices.Contains(all, left[0]) {
		t.Errorf("of %v, %v were to be stopped, and %v is left", all, stop, left)
	}
	for _, id := range stop {
		if ended, told := o.awaitEnd(id, from); told && ended.Failure != nil {
			t.Errorf("the stop of %s was ordered, and is reported as a failure: %v", id, ended.Failure)
		}
	}
	// The same order again: those that it names are gone.
	o.scale(1, stop...)
	if again := o.has(1); !slices.Equal(again, left) {
		t.Errorf("the same order again made %v of %v", again, left)
	}
}

func checkUnknown(t testing.TB, s Subject) {
	o := s.open(t)
	o.scale(0, "no-such-instance")
	o.has(0)
	o.scale(1)
	before := o.has(1)
	o.scale(1, "no-such-instance")
	if after := o.has(1); !slices.Equal(before, after) {
		t.Errorf("an order to stop an unknown instance made %v of %v", after, before)
	}
}

func checkIDs(t testing.TB, s Subject) {
	o := s.open(t)
	used := make(map[string]bool)
	for range 3 {
		o.scale(1)
		id := o.has(1)[0]
		if used[id] {
			t.Errorf("the id %s is used again", id)
		}
		used[id] = true
		o.scale(0, id)
		o.has(0)
	}
}

func checkAddress(t testing.TB, s Subject) {
	o := s.open(t)
	o.scale(1)
	o.has(1)
	r := o.await("the address", func(r scaler.Report) bool { return len(living(r)) == 1 && living(r)[0].Address != "" })
	first := living(r)[0]
	o.scale(2)
	o.has(2)
	r = o.await("both addresses", func(r scaler.Report) bool {
		return len(living(r)) == 2 && living(r)[0].Address != "" && living(r)[1].Address != ""
	})
	k := slices.IndexFunc(r.Instances, func(i scaler.Instance) bool { return i.ID == first.ID })
	if k < 0 || r.Instances[k].Network != first.Network || r.Instances[k].Address != first.Address {
		t.Errorf("the address of an instance changed: %+v, then %+v", first, r.Instances)
	}
}

func checkReady(t testing.TB, s Subject) {
	if s.Ready == nil {
		t.Skip("the platform has no readiness check of its own")
	}
	o := s.open(t)
	o.scale(1)
	o.ready(o.has(1)...)
}

func checkKill(t testing.TB, s Subject) {
	if s.Kill == nil {
		t.Skip("the subject cannot end an instance")
	}
	o := s.open(t)
	o.scale(2)
	all := o.has(2)
	from := o.count()
	s.Kill(all[0])
	ended, told := o.awaitEnd(all[0], from)
	switch {
	case !told:
		t.Errorf("instance %s ended by itself, and is missing from the list without having been reported with PhaseEnded", all[0])
	case ended.Failure == nil && !ended.Completed:
		t.Errorf("instance %s ended by itself, and no failure says why: %+v", all[0], ended)
	}
	if r, _ := o.latest(); !slices.ContainsFunc(living(r), func(i scaler.Instance) bool { return i.ID == all[1] }) {
		t.Errorf("with %s, %s ended, too: %+v", all[0], all[1], r.Instances)
	}
	// Whatever replaces it, the same order ends where it says.
	o.scale(2)
	if left := o.has(2); slices.Contains(left, all[0]) || !slices.Contains(left, all[1]) {
		t.Errorf("%s ended of %v; then there are %v", all[0], all, left)
	}
}

func checkComplete(t testing.TB, s Subject) {
	if s.Complete == nil {
		t.Skip("the instances of this platform never complete")
	}
	o := s.open(t)
	o.scale(1)
	id := o.has(1)[0]
	from := o.count()
	s.Complete(id)
	if ended, told := o.awaitEnd(id, from); !told || !ended.Completed {
		t.Errorf("instance %s has done its work, and the report does not say so: %+v", id, ended)
	}
}

func checkUpdate(t testing.TB, s Subject) {
	o := s.open(t)
	u, ok := o.scaler.(scaler.Updater)
	if !ok || s.Same == nil {
		t.Skip("the Scaler takes no other backend over")
	}
	o.scale(1)
	before := o.has(1)
	if !u.Update(s.Same) {
		t.Error("Update refuses a backend with an equal fingerprint")
	}
	if s.Other != nil && u.Update(s.Other) {
		t.Error("Update takes over a backend that makes other instances")
	}
	o.scale(1)
	if after := o.has(1); !slices.Equal(after, before) {
		t.Errorf("Update replaced %v by %v", before, after)
	}
}

func checkContext(t testing.TB, s Subject) {
	o := s.open(t)
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	s.inTime(t, "Scale with a context that has ended", nil, func() {
		_ = o.order(ctx, 1) // it may succeed where nothing has to be waited for
	})
	o.scale(1)
	o.has(1)
}

func checkHang(t testing.TB, s Subject) {
	if s.Hang == nil {
		t.Skip("the subject cannot make the platform silent")
	}
	o := s.open(t)
	o.scale(1)
	o.has(1)
	release := s.Hang()
	defer release()
	ctx, cancel := context.WithTimeout(t.Context(), s.quickly()/10)
	defer cancel()
	s.inTime(t, "Scale with a context that ends soon", release, func() {
		if err := o.order(ctx, 2); err == nil {
			t.Error("the platform answers nothing, and Scale returns no error")
		}
	})
	release()
	o.await("another try succeeds", func(scaler.Report) bool {
		ctx, cancel := context.WithTimeout(t.Context(), s.Patience)
		defer cancel()
		return o.order(ctx, 2) == nil
	})
	o.has(2)
}

func checkCut(t testing.TB, s Subject) {
	if s.Cut == nil {
		t.Skip("the platform is this machine, which is never out of reach")
	}
	o := s.open(t)
	o.scale(2)
	before := o.has(2)
	restore := s.Cut()
	ctx, cancel := context.WithTimeout(t.Context(), s.Patience)
	defer cancel()
	if f, ok := errors.AsType[*scaler.Failure](o.order(ctx, 3)); !ok || f.Reason != scaler.ReasonPlatform {
		t.Errorf("an order to a platform that cannot be reached fails with %v: it is a failure with ReasonPlatform", f)
	}
	r := o.await("the trouble", func(r scaler.Report) bool {
		return r.Trouble != nil && r.Trouble.Reason == scaler.ReasonPlatform
	})
	if got := idsOf(living(r)); !slices.Equal(got, before) || r.Desired != 2 {
		t.Errorf("the platform cannot be reached: the list is the last known one, %v of 2; it is %v of %d", before, got, r.Desired)
	}
	restore()
	o.await("the end of the trouble", func(r scaler.Report) bool { return r.Trouble == nil })
	if after := o.has(2); !slices.Equal(after, before) {
		t.Errorf("while the platform could not be reached, %v became %v", before, after)
	}
	o.scale(3)
	o.has(3)
}

// checkBroken looks at a start that fails, wherever the backend says so: when
// it is checked or opened, in the answer to an order, or in a report.
func checkBroken(t testing.TB, s Subject) {
	if s.Broken == nil {
		t.Skip("the subject has no configuration that cannot start")
	}
	s.Backend = s.Broken
	o := s.prepare(t)
	if c, ok := s.Broken.(scaler.Checker); ok {
		if f := c.Check(); f != nil {
			o.checkError(f)
		}
	}
	sc, err := s.Broken.Open(o.env())
	if err != nil {
		o.checkError(err)
		return
	}
	o.opened(sc)
	t.Cleanup(o.close)
	ctx, cancel := context.WithTimeout(t.Context(), s.Patience)
	defer cancel()
	if err := o.order(ctx, 1); err != nil {
		return
	}
	o.await("the reason why the start fails", func(scaler.Report) bool {
		return slices.ContainsFunc(o.since(0), func(r scaler.Report) bool {
			return r.Trouble != nil || slices.ContainsFunc(r.Instances, func(i scaler.Instance) bool { return i.Failure != nil })
		})
	})
}
