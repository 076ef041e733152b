package registry_test

import (
	"context"
	"testing"
	"time"

	"github.com/caddy-usher/usher/registry"
	"github.com/caddy-usher/usher/registry/registrytest"
)

func TestADeletedServiceCanBeBroughtBackForADay(t *testing.T) {
	w := newWorld(t)
	made := w.put(w.owner("ann"), "shop", web("shop", "shop.example.com"))
	if err := w.Delete(t.Context(), onlyIf(w.owner("ann"), made), "shop"); err != nil {
		t.Fatal(err)
	}
	w.want(w.Delete(t.Context(), w.owner("ann"), "shop"), registry.NotFound, "")
	_, err := w.Patch(t.Context(), w.owner("ann"), "shop", []byte(`{}`))
	w.want(err, registry.NotFound, "")
	_, err = w.Rollback(t.Context(), w.owner("bob"), "shop", 0)
	w.want(err, registry.Forbidden, "another owner")
	_, _, err = w.Put(t.Context(), w.owner("bob"), "shop", []byte(web("shop")))
	w.want(err, registry.Forbidden, "another owner")

	// Its hosts are free, and taken when it comes back.
	other := w.put(w.owner("bob"), "other", web("other", "shop.example.com"))
	_, err = w.Rollback(t.Context(), w.owner("ann"), "shop", 0)
	w.want(err, registry.Conflict, "shop.example.com")
	if err := w.Delete(t.Context(), onlyIf(w.owner("bob"), other), "other"); err != nil {
		t.Fatal(err)
	}
	back, err := w.Rollback(t.Context(), w.owner("ann"), "shop", 0)
	if err != nil || back.Current().Number != 2 || w.ByHost("shop.example.com") != "shop" || back.IsDeleted() || len(w.Deleted()) != 1 {
		t.Fatalf("it came back as %+v, error %v", back, err)
	}

	w.now = w.now.Add(registry.DeletedKept - time.Minute)
	w.sweep(nil)
	if w.Find("other") == nil {
		t.Error("a deleted service was removed too early")
	}
	w.now = w.now.Add(2 * time.Minute)
	w.sweep(nil)
	if w.Find("other") != nil || w.Get("shop") == nil {
		t.Error("the deleted service is still there, or the other one is not")
	}
	if again := w.put(w.owner("cid"), "other", web("other")); again.Current().Number != 1 {
		t.Errorf("a name that is free again has %+v", again)
	}
}

func (w *world) sweep(used func(string) (time.Time, bool)) {
	w.Helper()
	if err := w.Sweep(w.Context(), w.now, used); err != nil {
		w.Fatal(err)
	}
}

func TestAServiceThatIsUnusedIsForgotten(t *testing.T) {
	m := registrytest.NewMemory()
	w := newWorldOn(t, m)
	w.rules.Forget = 30 * 24 * time.Hour
	w.Use(w.rules)
	for _, name := range []string{"inside", "unused", "used"} {
		w.put(w.owner("ann"), name, web("x"))
	}
	var last time.Time
	uses := func(name string) (time.Time, bool) {
		if name == "used" {
			return last, false
		}
		return time.Time{}, name == "inside"
	}
	w.sweep(uses)
	for range 40 {
		w.now = w.now.Add(24 * time.Hour)
		last = w.now.Add(-time.Hour)
		w.sweep(uses)
		if days := w.now.Sub(w.Find("inside").Current().At).Hours() / 24; (w.Get("unused") != nil) != (days < 30) {
			t.Fatalf("after %v days of no use the service is there: %t", days, w.Get("unused") != nil)
		}
		if w.Find("unused") == nil {
			break
		}
	}
	if w.Get("inside") == nil || w.Get("used") == nil {
		t.Error("a service that was used is forgotten")
	}
	// The use is stored: another Caddy knows it.
	other := newWorldOn(t, m)
	if got := other.Get("used").Used; w.now.Sub(got) > 48*time.Hour {
		t.Errorf("stored is the use at %v, and it is %v", got, w.now)
	}
	// After a long time without any Caddy, requests have a chance first.
	other.rules.Forget = w.rules.Forget
	other.Use(other.rules)
	other.now = w.now.Add(1000 * time.Hour)
	none := func(string) (time.Time, bool) { return time.Time{}, false }
	other.sweep(none)
	if other.Get("used") == nil {
		t.Error("a service was forgotten as soon as the program began")
	}
	other.now = other.now.Add(2 * time.Hour)
	other.sweep(none)
	if other.Get("used") != nil || other.Find("used").DeletedBy != "forget" {
		t.Error("an unused service was not forgotten")
	}
}

func TestSweepLeavesTheRestToTheNextCallWhenItsTimeIsOver(t *testing.T) {
	w := newWorld(t)
	w.rules.Forget = time.Hour
	w.Use(w.rules)
	for _, name := range []string{"a", "b", "c"} {
		w.put(w.owner("ann"), name, web(name))
	}
	w.now = w.now.Add(30 * time.Minute)
	ctx, cancel := context.WithCancel(t.Context())
	defer cancel()
	asked := 0
	_ = w.Sweep(ctx, w.now, func(string) (time.Time, bool) {
		asked++
		cancel()
		return w.now, false
	})
	if asked != 1 {
		t.Errorf("%d services were looked at; each after the first is one more error", asked)
	}
}
