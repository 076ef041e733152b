package control

import (
	"context"
	"errors"
	"net"
	"path/filepath"
	"sync/atomic"
	"testing"
	"time"

	"github.com/caddy-usher/usher/reserver"
	"github.com/caddy-usher/usher/scaler"
)

// voucher is a platform that says whether an instance is still there.
type voucher struct {
	*platform
	asked atomic.Int64
	gone  atomic.Bool   // it says no
	takes time.Duration // for its answer
}

// Open is the platform's, with the voucher as the Scaler.
func (v *voucher) Open(env scaler.Env) (scaler.Scaler, error) {
	_, err := v.platform.Open(env)
	return v, err
}

func (v *voucher) Verify(ctx context.Context, _ string) error {
	v.asked.Add(1)
	select {
	case <-time.After(v.takes):
	case <-ctx.Done():
		return ctx.Err()
	}
	if v.gone.Load() {
		return errors.New("another one listens there")
	}
	return nil
}

// doubtful returns a bench with one instance that takes requests, of a
// platform that vouches for it.
func doubtful(t *testing.T, takes time.Duration) (*bench, *voucher) {
	t.Helper()
	ln, err := net.Listen("unix", filepath.Join(t.TempDir(), "socket"))
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { ln.Close() })
	v := &voucher{platform: &platform{address: ln.Addr().String()}, takes: takes}
	b := bareBench(t, defaults(), v.platform, nil, maxWaiting(0))
	if err := b.SetBackend(v); err != nil {
		t.Fatal(err)
	}
	if _, _, err := b.ask(); err == nil {
		t.Fatal("nothing waits here")
	}
	waitIdle()
	if s := b.res.Stats(); s.Open != 1 {
		t.Fatalf("%+v\n%s", s, b.story())
	}
	return b, v
}

func TestADoubtedInstanceIsVouchedForWithoutAStrike(t *testing.T) {
	bubble(t, func(t *testing.T) {
		b, v := doubtful(t, 30*time.Millisecond)
		for n := range 10 {
			r := b.inside()
			began := time.Now()
			if ok, err := r.Requeue(reserver.Suspected); ok || err != nil {
				t.Fatal(ok, err)
			}
			waitIdle()
			if st := b.Status(); st.State != Awake || st.Ready != 1 || st.Ejected != 0 {
				t.Fatalf("a doubt is no ejection: %+v", st)
			}
			b.granted(r)
			if took := time.Since(began); took != v.takes {
				t.Fatalf("vouched for after %v", took)
			}
			if got := v.asked.Load(); got != int64(n+1) {
				t.Fatalf("asked %d times", got)
			}
			r.Release(reserver.Answered)
		}
		if b.rec.count("failed") > 0 || v.started() != 1 {
			t.Fatal(b.story())
		}
	})
}

func TestAQuestionTakesNoSlotAway(t *testing.T) {
	bubble(t, func(t *testing.T) {
		b, v := doubtful(t, time.Second)
		r := b.inside()
		for range 5 {
			r.Instance().RequestVerify()
			waitIdle()
			b.comesAndGoes()
		}
		before := r.Instance().VerifiedAt()
		time.Sleep(2 * time.Second)
		if waitIdle(); v.asked.Load() != 1 || !r.Instance().VerifiedAt().After(before) {
			t.Fatalf("asked %d times", v.asked.Load())
		}
		r.Release(reserver.Answered)
	})
}

func TestAnInstanceThatNobodyVouchesForIsEjected(t *testing.T) {
	bubble(t, func(t *testing.T) {
		b, v := doubtful(t, 0)
		v.gone.Store(true)
		r := b.inside()
		if ok, err := r.Requeue(reserver.Suspected); ok || err != nil {
			t.Fatal(ok, err)
		}
		waitIdle()
		if st := b.Status(); st.Ejected != 1 || st.Ready != 0 {
			t.Fatalf("%+v", st)
		}
		// Its end is told at last; another takes the request.
		id := v.ids()[0]
		v.do(func() { v.fake.Workload().Remove(id); v.fill() })
		b.granted(r)
		if r.Instance().ID == id {
			t.Fatal("granted at the one that is gone")
		}
		r.Release(reserver.Answered)
	})
}

// What answers at its address is not it, as long as the platform does not say so:
// another program may listen there by now.
func TestAProbeAloneDoesNotBringBackWhatIsNotVouchedFor(t *testing.T) {
	bubble(t, func(t *testing.T) {
		b, v := doubtful(t, 0)
		v.gone.Store(true)
		r := b.inside()
		if ok, err := r.Requeue(reserver.Suspected); ok || err != nil {
			t.Fatal(ok, err)
		}
		time.Sleep(10 * time.Second)
		waitIdle()
		if st := b.Status(); st.Ejected != 1 || st.Ready != 0 {
			t.Fatalf("%+v", st)
		}
		v.gone.Store(false)
		b.granted(r)
		r.Release(reserver.Answered)
	})
}

func TestAnInstanceThatIsNotVouchedForInTimeIsEjected(t *testing.T) {
	bubble(t, func(t *testing.T) {
		b, _ := doubtful(t, time.Hour)
		r := b.inside()
		if ok, err := r.Requeue(reserver.Suspected); ok || err != nil {
			t.Fatal(ok, err)
		}
		time.Sleep(vouchTimeout + time.Millisecond)
		waitIdle()
		if st := b.Status(); st.Ejected != 1 {
			t.Fatalf("%+v", st)
		}
		r.Cancel()
	})
}
