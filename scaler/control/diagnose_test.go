package control

import (
	"context"
	"errors"
	"net"
	"net/http"
	"net/http/httptest"
	"strings"
	"sync/atomic"
	"syscall"
	"testing"
	"time"

	"github.com/caddy-usher/usher/reserver"
	"github.com/caddy-usher/usher/scaler"
)

// seeing is a platform that can see more of a start than a probe can.
type seeing struct {
	*platform
	looks atomic.Int32
	seen  atomic.Pointer[scaler.Diagnosis]
}

func (s *seeing) Open(env scaler.Env) (scaler.Scaler, error) {
	if _, err := s.platform.Open(env); err != nil {
		return nil, err
	}
	return s, nil
}

func (s *seeing) Diagnose(context.Context, string) scaler.Diagnosis {
	s.looks.Add(1)
	if d := s.seen.Load(); d != nil {
		return *d
	}
	return scaler.Diagnosis{}
}

func seeingBench(t *testing.T, s Settings, p *platform) (*bench, *seeing) {
	t.Helper()
	b := bareBench(t, s, p, nil)
	see := &seeing{platform: p}
	if err := b.SetBackend(see); err != nil {
		t.Fatal(err)
	}
	waitIdle()
	return b, see
}

var elsewhere = &scaler.Diagnosis{
	Short: "listens on [::1]:3000 and 0.0.0.0:8000, but was told port 21007", Mistake: true,
	Detail: "make it listen on 127.0.0.1:21007", Output: "first line\nServing on 0.0.0.0:8000",
}

func TestAStartThatListensElsewhereIsToldWhileItRuns(t *testing.T) {
	bubble(t, func(t *testing.T) {
		b, see := seeingBench(t, with(func(s *Settings) { s.Check = Check{Kind: CheckTCP} }), &platform{local: true, startTime: -1})
		see.seen.Store(elsewhere)
		r := b.waits()
		time.Sleep(1500 * time.Millisecond)
		if st := b.Status().Start; st.Problem != nil || st.Known == nil || st.Known.Short != "not ready after 1.5s: "+elsewhere.Short {
			t.Fatalf("after one look: %v, %v", st.Known, st.Problem)
		}
		time.Sleep(2 * time.Second)
		st := b.Status()
		p := st.Start.Problem
		if p == nil || p.Short != "not ready after 3.5s: "+elsewhere.Short {
			t.Fatalf("%v", p)
		}
		for _, want := range []string{"make it listen on", "last output:\nfirst line\nServing on", "/nonexistent/usher"} {
			if !strings.Contains(p.Error(), want) {
				t.Errorf("%q is missing in %q", want, p.Error())
			}
		}
		if strings.Contains(p.Short, "Serving") || st.LastError != nil {
			t.Errorf("%q, last error %v", p.Short, st.LastError)
		}
		if f := b.StartTrouble(); f == nil || f.Short != p.Short {
			t.Errorf("a request that waits in vain is told %v", f)
		}
		time.Sleep(2 * time.Minute)
		waitIdle()
		if f := b.Status().LastError; f == nil || f.Short != "not ready within 2m0s: "+elsewhere.Short || f.Reason != scaler.ReasonTimeout {
			t.Errorf("at the end: %v", f)
		}
		if !r.Cancel() {
			r.Release(reserver.Neutral)
		}
	})
}

func TestOneGlanceAtAnotherPortIsNoMistakeYet(t *testing.T) {
	bubble(t, func(t *testing.T) {
		b, see := seeingBench(t, defaults(), &platform{local: true, startTime: 8 * time.Second})
		see.seen.Store(elsewhere)
		b.waits()
		time.Sleep(1500 * time.Millisecond)
		see.seen.Store(nil)
		time.Sleep(5 * time.Second)
		if st := b.Status(); st.Start.Problem != nil || st.LastError != nil {
			t.Errorf("%+v", st)
		}
	})
}

func TestAReadyInstanceIsNotLookedAt(t *testing.T) {
	bubble(t, func(t *testing.T) {
		b, see := seeingBench(t, defaults(), &platform{local: true, startTime: 4 * time.Second})
		see.seen.Store(elsewhere)
		b.granted(b.waits())
		looks := see.looks.Load()
		time.Sleep(time.Minute)
		if st := b.Status(); looks != 2 || see.looks.Load() != looks || st.LastError != nil || st.Start.Problem != nil {
			t.Errorf("%d looks, then %d: %+v", looks, see.looks.Load(), st)
		}
	})
}

func TestASlowStartIsNoTroubleBeforeItTakesLongerThanUsual(t *testing.T) {
	bubble(t, func(t *testing.T) {
		p := &platform{local: true, startTime: 4 * time.Second}
		b, see := seeingBench(t, with(func(s *Settings) { s.IdleTimeout = time.Second }), p)
		see.seen.Store(&scaler.Diagnosis{Short: "does not listen yet"})
		r := b.waits()
		time.Sleep(500 * time.Millisecond)
		if f := b.StartTrouble(); f != nil {
			t.Fatalf("half a second is told to be too long: %v", f)
		}
		time.Sleep(time.Second)
		if f := b.StartTrouble(); f == nil || f.Short != "not ready after 1.5s: does not listen yet" {
			t.Fatalf("of the first start ever: %v", f)
		}
		b.granted(r)
		r.Release(reserver.Answered)
		time.Sleep(20 * time.Second)
		b.is(Asleep)

		// From now on 4 s are usual.
		p.set(func() { p.startTime = -1 })
		b.waits()
		time.Sleep(5 * time.Second)
		if f := b.StartTrouble(); f != nil {
			t.Fatalf("after 5 s: %v", f)
		}
		time.Sleep(3 * time.Second)
		if f := b.StartTrouble(); f == nil {
			t.Fatal("nothing is said of a start that takes twice as long as usual")
		}
	})
}

func TestWhatThePlatformSaysIsTheProblemOfAStart(t *testing.T) {
	bubble(t, func(t *testing.T) {
		delay := &scaler.Failure{Reason: scaler.ReasonUnschedulable, Short: "Unschedulable", Detail: "0/3 nodes are available"}
		b := newBench(t, defaults(), &platform{startTime: -1, delay: delay}, nil)
		b.waits()
		time.Sleep(12 * time.Second)
		f := b.Status().Start.Problem
		if f == nil || f.Short != "not ready after 12s: Unschedulable" || f.Reason != scaler.ReasonUnschedulable || !strings.Contains(f.Error(), "0/3 nodes") {
			t.Errorf("%v", f)
		}
	})
}

func TestAProbeSaysWhichProtocolTheInstanceSpeaks(t *testing.T) {
	h2c := httptest.NewUnstartedServer(nil)
	h2c.Config.Protocols = new(http.Protocols)
	h2c.Config.Protocols.SetUnencryptedHTTP2(true)
	h2c.Start()
	defer h2c.Close()
	plain := httptest.NewServer(http.NotFoundHandler())
	defer plain.Close()
	alert := answering(t, "\x15\x03\x03\x00\x02\x02\x28")
	settings := answering(t, "\x00\x00\x06\x04\x00\x00\x00\x00\x00\x00\x03\x00\x00\x00\x64")
	for name, x := range map[string]struct{ address, scheme, want string }{
		"h2c of Go": {h2c.Listener.Addr().String(), "", "the readiness check"},
		"h2c":       {settings, "", "it speaks HTTP/2 without TLS only (h2c)"},
		"TLS":       {alert, "", "it speaks TLS"},
		"no TLS":    {plain.Listener.Addr().String(), "https", "it does not speak TLS"},
		"404":       {plain.Listener.Addr().String(), "", "answered with status 404"},
		"rubbish":   {answering(t, "hello secret"), "", "the readiness check does not pass"},
		"nothing":   {answering(t, ""), "", "closed without an answer"},
	} {
		err := probeOnce(t, Check{Kind: CheckHTTP, Scheme: x.scheme, Timeout: 3 * time.Second}, "tcp", x.address)
		if words := probeWords(err); !strings.Contains(words, x.want) || strings.Contains(words, "secret") {
			t.Errorf("%s: %q (%v)", name, words, err)
		}
	}
	for err, want := range map[error]string{
		syscall.ECONNREFUSED: "it refuses connections", syscall.ENOENT: "its socket does not exist",
		context.DeadlineExceeded: "gets no answer in time", errors.New("x"): "does not pass", nil: "",
	} {
		if got := probeWords(err); !strings.Contains(got, want) || err == nil && got != "" {
			t.Errorf("%v: %q", err, got)
		}
	}
}

// answering is the address of a server that says the same to everybody.
func answering(t *testing.T, text string) string {
	t.Helper()
	ln := listen(t, "tcp", "127.0.0.1:0")
	go func() {
		for {
			conn, err := ln.Accept()
			if err != nil {
				return
			}
			go func(conn net.Conn) {
				defer conn.Close()
				// The request is read first, or its rest would reset the answer.
				_, _ = conn.Read(make([]byte, 4<<10))
				_, _ = conn.Write([]byte(text))
			}(conn)
		}
	}()
	return ln.Addr().String()
}
