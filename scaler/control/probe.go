package control

import (
	"context"
	"crypto/tls"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"strings"
	"time"

	"github.com/caddy-usher/usher/scaler"
)

// CheckKind is the way in which readiness is found out.
type CheckKind uint8

// The kinds of readiness checks.
const (
	// CheckTCP: ready when a connection can be made.
	CheckTCP CheckKind = iota
	// CheckHTTP: ready when a GET is answered with the right status.
	CheckHTTP
	// CheckPlatform: ready when the platform says so.
	CheckPlatform
)

// Check is the readiness check of a service.
type Check struct {
	Kind CheckKind

	// Path, Host, Scheme and Header make the request of an http check. The
	// defaults are "/", the address, "http" and none. With https the
	// certificate is not verified.
	Path, Host, Scheme string
	Header             http.Header

	// Status is the status that means ready. A value below 10 stands for a
	// class: 2 is any 2xx. Default (0): any 2xx or 3xx.
	Status int

	// Interval is the pause between probes; the first pauses are shorter and
	// double from 1ms. Default (0): a sixteenth of the time that has passed so
	// far, from 1ms to 5ms, so that what a start loses by it is a small part
	// of the start; after 10s, 50ms. While the instance answers, but not as
	// wanted, the same part, and up to 250ms.
	Interval time.Duration

	// Timeout is how long one probe may take. Default (0): 1s for tcp, 5s
	// for http.
	Timeout time.Duration

	// peer looks at the connection before anything is written to it; nil if
	// the platform cannot tell.
	peer func(net.Conn) error
}

const (
	probeFirst     = time.Millisecond
	probePart      = 16 // of the time that has passed so far
	probeEager     = 5 * time.Millisecond
	probePatient   = 50 * time.Millisecond
	probeAnswered  = 250 * time.Millisecond
	probeEagerSpan = 10 * time.Second
)

// pauseAfter returns the pause after the given one. answered says that the last
// probe got a whole answer, and not the wanted one: the program works for each
// further probe, and writes a line to its log.
func (c Check) pauseAfter(pause, elapsed time.Duration, answered bool) time.Duration {
	switch {
	case c.Interval > 0:
		return min(max(2*pause, probeFirst), c.Interval)
	case answered:
		return min(max(elapsed/probePart, probeFirst), probeAnswered)
	case elapsed >= probeEagerSpan:
		return min(2*max(pause, probeFirst), probePatient)
	}
	return min(max(elapsed/probePart, probeFirst), probeEager)
}

func (c Check) timeout() time.Duration {
	switch {
	case c.Timeout > 0:
		return c.Timeout
	case c.Kind == CheckHTTP:
		return 5 * time.Second
	}
	return time.Second
}

// untilReady probes until a probe passes and is confirmed, and returns nil
// then, or the context's error. told gets the error of each probe that failed.
func (c Check) untilReady(ctx context.Context, network, address string, confirm func(context.Context) error, told func(error)) error {
	start := time.Now()
	var pause time.Duration
	var answered bool
	for {
		// The first look comes after 1 ms: no process listens sooner.
		pause = c.pauseAfter(pause, time.Since(start), answered)
		select {
		case <-ctx.Done():
			return ctx.Err()
		case <-time.After(pause):
		}
		err := c.probe(ctx, network, address, confirm)
		if err == nil || ctx.Err() != nil {
			return ctx.Err()
		}
		told(err)
		_, answered = errors.AsType[*wrongAnswer](err)
	}
}

func (c Check) probe(ctx context.Context, network, address string, confirm func(context.Context) error) error {
	ctx, cancel := context.WithTimeout(ctx, c.timeout())
	defer cancel()
	var d net.Dialer
	conn, err := d.DialContext(ctx, network, address)
	if err != nil {
		return err
	}
	defer conn.Close()
	if c.peer != nil {
		if err := c.peer(conn); err != nil {
			return err
		}
	}
	if c.Kind == CheckHTTP {
		if err := c.get(ctx, conn, network, address); err != nil {
			return err
		}
	}
	if confirm == nil {
		return nil
	}
	for {
		if err := confirm(ctx); !errors.Is(err, scaler.ErrNotYet) {
			return err
		}
		select {
		case <-ctx.Done():
			return errors.New("the connection was not accepted in time")
		case <-time.After(probeFirst):
		}
	}
}

// get makes the request of an http check over conn.
func (c Check) get(ctx context.Context, conn net.Conn, network, address string) error {
	scheme, host, path := c.Scheme, c.Host, c.Path
	if scheme == "" {
		scheme = "http"
	}
	if !strings.HasPrefix(path, "/") {
		path = "/" + path
	}
	if host == "" {
		host = address
		if network == "unix" {
			host = "localhost"
		}
	}
	req, err := http.NewRequestWithContext(ctx, http.MethodGet, scheme+"://"+host+path, nil)
	if err != nil {
		return err
	}
	for k, v := range c.Header {
		req.Header[http.CanonicalHeaderKey(k)] = v
	}
	if req.Header.Get("User-Agent") == "" {
		req.Header.Set("User-Agent", "Usher-Probe")
	}
	first := &firstBytes{Conn: conn}
	t := &http.Transport{
		DialContext: func(context.Context, string, string) (net.Conn, error) { return first, nil },
		//nolint:gosec // a readiness check asks whether the instance answers, not who it is
		TLSClientConfig:   &tls.Config{InsecureSkipVerify: true},
		DisableKeepAlives: true,
	}
	defer t.CloseIdleConnections()
	resp, err := t.RoundTrip(req)
	if err != nil {
		return first.explain(err, scheme)
	}
	_, _ = io.CopyN(io.Discard, resp.Body, 4<<10)
	resp.Body.Close()
	if !c.statusOK(resp.StatusCode) {
		return &wrongAnswer{words: fmt.Sprintf("the readiness check was answered with status %d", resp.StatusCode)}
	}
	return nil
}

func (c Check) statusOK(status int) bool {
	switch {
	case c.Status == 0:
		return status >= 200 && status < 400
	case c.Status < 10:
		return status/100 == c.Status
	}
	return status == c.Status
}
