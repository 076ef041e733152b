package callback

import (
	"bufio"
	"context"
	"crypto/hmac"
	"crypto/sha256"
	"encoding/base64"
	"fmt"
	"io"
	"log"
	"net"
	"net/http"
	"net/http/httptest"
	"net/netip"
	"slices"
	"strconv"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"golang.org/x/net/dns/dnsmessage"

	"github.com/caddy-usher/usher/async"
)

const secretText = "whsec_MfKQ9r8GKYqrTwjUPD8ILPZIo2LaLaSw"

// send sends a callback as the dispatcher does.
func send(t *testing.T, o Options, url, body string) (*http.Response, error) {
	t.Helper()
	if o.Secrets == nil {
		secret, err := ParseSecret(secretText)
		if err != nil {
			t.Fatal(err)
		}
		o.Secrets = []Secret{secret}
	}
	s, err := New(o).Slot(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	defer s.Release()
	r := httptest.NewRequestWithContext(t.Context(), http.MethodPost, url, strings.NewReader(body))
	r.RequestURI = ""
	r.Header = http.Header{"Content-Type": {"application/json"}, async.HeaderTask: {"id1"}, async.HeaderAttempt: {"3"}, "Authorization": {"secret"}}
	resp, err := s.Send(r)
	if err == nil {
		resp.Body.Close()
	}
	return resp, err
}

// receiver is a server on loopback.
func receiver(t *testing.T, f http.HandlerFunc) *httptest.Server {
	s := httptest.NewServer(f)
	t.Cleanup(s.Close)
	return s
}

func TestACallbackIsSignedAsStandardWebhooksSays(t *testing.T) {
	var seen *http.Request
	var body []byte
	s := receiver(t, func(_ http.ResponseWriter, r *http.Request) {
		seen = r
		body, _ = io.ReadAll(r.Body)
	})
	other := slices.Repeat(Secret("0123456789"), 3)
	first, err := ParseSecret(secretText)
	if err != nil {
		t.Fatal(err)
	}
	before := time.Now().Unix()
	resp, err := send(t, Options{Rules: rules(t, "private "+s.URL), Secrets: []Secret{first, other}}, s.URL+"/hook?x=1", `{"a":1}`)
	if err != nil || resp.StatusCode != 200 {
		t.Fatalf("error %v, answer %+v", err, resp)
	}
	h := seen.Header
	if seen.Method != "POST" || seen.RequestURI != "/hook?x=1" || string(body) != `{"a":1}` || h.Get("Content-Type") != "application/json" || seen.ContentLength != 7 {
		t.Errorf("the receiver got %s %s %v with %s", seen.Method, seen.RequestURI, h, body)
	}
	if h.Get("webhook-id") != "id1" || h.Get("Authorization") != "" || h.Get(async.HeaderTask) != "" {
		t.Errorf("the header is %v", h)
	}
	at, err := strconv.ParseInt(h.Get("webhook-timestamp"), 10, 64)
	if err != nil || at < before || at > time.Now().Unix() {
		t.Errorf("the timestamp is %s", h.Get("webhook-timestamp"))
	}
	// What a receiver does, without the code of this package.
	var want []string
	for _, key := range []string{"1\xf2\x90\xf6\xbf\x06)\x8a\xabO\x08\xd4<?\x08,\xf6H\xa3b\xda-\xa4\xb0", "012345678901234567890123456789"} {
		mac := hmac.New(sha256.New, []byte(key))
		fmt.Fprintf(mac, "%s.%d.%s", "id1", at, `{"a":1}`)
		want = append(want, "v1,"+base64.StdEncoding.EncodeToString(mac.Sum(nil)))
	}
	if got := h.Get("webhook-signature"); got != strings.Join(want, " ") {
		t.Errorf("the signatures are %s, want %s", got, want)
	}
}

func TestWhatReceiversAnswer(t *testing.T) {
	var elsewhere atomic.Int32
	s := receiver(t, func(w http.ResponseWriter, r *http.Request) {
		switch r.URL.Path {
		case "/elsewhere":
			elsewhere.Add(1)
		case "/redirect":
			code, _ := strconv.Atoi(r.URL.RawQuery)
			http.Redirect(w, r, "/elsewhere", code)
		case "/accepted":
			// An instance would be asked there.
			w.Header().Set("Location", "/elsewhere")
			w.WriteHeader(http.StatusAccepted)
		case "/busy":
			w.Header().Set("Retry-After", "7")
			w.Header().Set("Set-Cookie", "a=b")
			w.WriteHeader(http.StatusServiceUnavailable)
			_, _ = io.WriteString(w, "not now")
		case "/endless":
			for r.Context().Err() == nil {
				_, _ = w.Write(make([]byte, 64<<10))
			}
		case "/header":
			w.Header().Set("X", strings.Repeat("x", 2*mostHeader))
		}
	})
	o := Options{Rules: rules(t, "private "+s.URL)}
	for _, code := range []string{"301", "302", "303", "307", "308"} {
		if _, err := send(t, o, s.URL+"/redirect?"+code, ""); err == nil || !strings.Contains(err.Error(), code) {
			t.Errorf("a redirect: error %v", err)
		}
	}
	resp, err := send(t, o, s.URL+"/accepted", "")
	if err != nil || resp.StatusCode != 202 || len(resp.Header) != 0 {
		t.Errorf("accepted: error %v, %+v", err, resp)
	}
	resp, err = send(t, o, s.URL+"/busy", "")
	if err != nil || resp.StatusCode != 503 || len(resp.Header) != 1 || resp.Header.Get("Retry-After") != "7" || resp.Body != http.NoBody {
		t.Errorf("busy: error %v, %+v", err, resp)
	}
	if resp, err = send(t, o, s.URL+"/endless", ""); err != nil || resp.StatusCode != 200 {
		t.Errorf("an endless answer: error %v, %+v", err, resp)
	}
	if _, err = send(t, o, s.URL+"/header", ""); err == nil {
		t.Error("an endless header is read")
	}
	if n := elsewhere.Load(); n != 0 {
		t.Errorf("%d requests have followed a redirect", n)
	}
	if _, err = send(t, Options{Rules: rules(t, "private "+s.URL+"/other")}, s.URL+"/busy", ""); err == nil || !strings.Contains(err.Error(), "not allowed") {
		t.Errorf("a URL that is allowed no more: error %v", err)
	}
}

func TestTheCertificateOfAReceiverIsChecked(t *testing.T) {
	var hits atomic.Int32
	s := httptest.NewUnstartedServer(http.HandlerFunc(func(http.ResponseWriter, *http.Request) { hits.Add(1) }))
	s.Config.ErrorLog = log.New(io.Discard, "", 0)
	s.StartTLS()
	defer s.Close()
	if _, err := send(t, Options{Rules: rules(t, s.URL)}, s.URL, ""); err == nil || !strings.Contains(err.Error(), "certificate") || hits.Load() != 0 {
		t.Errorf("error %v, %d callbacks", err, hits.Load())
	}
}

func TestAReceiverThatDoesNotAnswerIsLeft(t *testing.T) {
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	gone := make(chan error, 1)
	go func() {
		c, err := l.Accept()
		if err != nil {
			gone <- err
			return
		}
		defer c.Close()
		_, err = io.Copy(io.Discard, bufio.NewReader(c)) // it ends when the sender leaves
		gone <- err
	}()
	s := New(Options{Rules: rules(t, "http://"+l.Addr().String())})
	place, err := s.Slot(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	defer place.Release()
	ctx, cancel := context.WithTimeout(t.Context(), 200*time.Millisecond)
	defer cancel()
	r := httptest.NewRequestWithContext(ctx, http.MethodPost, "http://"+l.Addr().String()+"/", http.NoBody)
	if resp, err := place.Send(r); err == nil {
		resp.Body.Close()
		t.Error("there is an answer")
	}
	if err := <-gone; err != nil {
		t.Error(err)
	}
}

// A name that leads into a private network is found out when it is dialed, however it
// was answered before.
func TestANameThatChangesItsAddressIsFoundOut(t *testing.T) {
	var hits atomic.Int32
	s := receiver(t, func(http.ResponseWriter, *http.Request) { hits.Add(1) })
	port := netip.MustParseAddrPort(s.Listener.Addr().String()).Port()
	names := newNameServer(t)
	names.answer("10.255.255.1", "127.0.0.1", "169.254.169.254")
	url := fmt.Sprintf("http://hooks.example.com:%d/", port)
	o := Options{Rules: rules(t, url), Resolver: names.resolver()}
	if err := New(o).Allows(url); err != nil {
		t.Fatal(err)
	}
	if n := names.asked.Load(); n != 0 {
		t.Errorf("%d names were looked up to accept a callback", n)
	}
	for range 2 {
		if _, err := send(t, o, url, ""); err == nil || !strings.Contains(err.Error(), "not public") {
			t.Errorf("error %v", err)
		}
	}
	if hits.Load() != 0 {
		t.Fatal("a callback was sent into a private network")
	}
	names.answer("169.254.169.254", "127.0.0.1")
	o.Rules = rules(t, "private "+url)
	if resp, err := send(t, o, url, ""); err != nil || resp.StatusCode != 200 || hits.Load() != 1 {
		t.Errorf("a host that may be private: error %v, %d callbacks", err, hits.Load())
	}
	if names.asked.Load() == 0 {
		t.Error("the name server of the test was not asked")
	}
}

// nameServer is a name server on loopback that has one name.
type nameServer struct {
	conn  net.PacketConn
	asked atomic.Int32

	mu        sync.Mutex
	addresses []netip.Addr
}

func newNameServer(t *testing.T) *nameServer {
	t.Helper()
	conn, err := net.ListenPacket("udp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	n := &nameServer{conn: conn}
	var life sync.WaitGroup
	life.Go(func() { n.serve(t) })
	t.Cleanup(func() {
		conn.Close()
		life.Wait()
	})
	return n
}

// answer lets the name have other addresses.
func (n *nameServer) answer(addresses ...string) {
	n.mu.Lock()
	defer n.mu.Unlock()
	n.addresses = nil
	for _, a := range addresses {
		n.addresses = append(n.addresses, netip.MustParseAddr(a))
	}
}

func (n *nameServer) resolver() *net.Resolver {
	return &net.Resolver{PreferGo: true, Dial: func(ctx context.Context, _, _ string) (net.Conn, error) {
		var d net.Dialer
		return d.DialContext(ctx, "udp", n.conn.LocalAddr().String())
	}}
}

func (n *nameServer) serve(t *testing.T) {
	buf := make([]byte, 1500)
	for {
		size, from, err := n.conn.ReadFrom(buf)
		if err != nil {
			return // it is closed
		}
		var m dnsmessage.Message
		if err := m.Unpack(buf[:size]); err != nil {
			t.Error(err)
			return
		}
		n.asked.Add(1)
		q := m.Questions[0]
		m.Response, m.Additionals = true, nil
		if q.Type == dnsmessage.TypeA {
			n.mu.Lock()
			for _, a := range n.addresses {
				m.Answers = append(m.Answers, dnsmessage.Resource{
					Header: dnsmessage.ResourceHeader{Name: q.Name, Type: q.Type, Class: q.Class},
					Body:   &dnsmessage.AResource{A: a.As4()},
				})
			}
			n.mu.Unlock()
		}
		b, err := m.Pack()
		if err != nil {
			t.Error(err)
			return
		}
		_, _ = n.conn.WriteTo(b, from) // the resolver may be gone
	}
}

func TestSoManyCallbacksAreSentAtOnce(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		s := New(Options{})
		var all []async.Slot
		for range atOnce {
			slot, err := s.Slot(t.Context())
			if err != nil {
				t.Fatal(err)
			}
			all = append(all, slot)
		}
		ctx, cancel := context.WithTimeout(t.Context(), time.Minute)
		defer cancel()
		if _, err := s.Slot(ctx); err == nil {
			t.Error("there is one more")
		}
		all[0].Release()
		if _, err := s.Slot(t.Context()); err != nil {
			t.Error(err)
		}
	})
}
