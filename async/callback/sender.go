package callback

import (
	"bytes"
	"context"
	"fmt"
	"io"
	"net"
	"net/http"
	"strconv"
	"strings"
	"time"

	"github.com/caddy-usher/usher/async"
)

// The bounds of a callback.
const (
	// atOnce is how many callbacks of a service are sent at the same time.
	atOnce = 16

	// timeout bounds an attempt, and dialTimeout its connection.
	timeout     = 30 * time.Second
	dialTimeout = 10 * time.Second

	// mostHeader is the size of the largest header of an answer.
	mostHeader = 64 << 10
)

// policy says how callbacks are repeated: over 6 to 13 hours. Each answer but 2xx and
// 410 is followed by another attempt.
var policy = async.Policy{
	Attempts:    16,
	BackoffFrom: 2 * time.Second,
	BackoffTo:   4 * time.Hour,
	Timeout:     timeout,
	RetryOn:     failures(),
	MaxResult:   0,
	Waiting:     atOnce,
}

// failures are the statuses after which there is another attempt. By 410 a receiver says
// that it wants no more.
func failures() (all []int) {
	for status := http.StatusBadRequest; status <= 999; status++ {
		if status != http.StatusGone {
			all = append(all, status)
		}
	}
	return all
}

// Options are those of a sender.
type Options struct {
	// Rules say where callbacks may go.
	Rules []Rule

	// Secrets sign each callback, all of them. At least one.
	Secrets []Secret

	// Resolver finds the addresses of names. Nil: that of the system.
	Resolver *net.Resolver
}

// Sender sends the callbacks of a service. Its methods may be called at the same time.
type Sender struct {
	o     Options
	slots chan struct{}
}

// New returns a sender.
func New(o Options) *Sender {
	return &Sender{o, make(chan struct{}, atOnce)}
}

// Allows returns an error in words for clients if callbacks may not go to a URL. It
// looks up no name: the addresses are judged when a callback is sent.
func (s *Sender) Allows(url string) error {
	_, err := find(s.o.Rules, url)
	return err
}

// Policy returns how callbacks are repeated.
func (s *Sender) Policy() async.Policy { return policy }

// Slot waits until a further callback may be sent.
func (s *Sender) Slot(ctx context.Context) (async.Slot, error) {
	select {
	case s.slots <- struct{}{}:
		return (*slot)(s), nil
	case <-ctx.Done():
		return nil, ctx.Err()
	}
}

// slot sends a callback.
type slot Sender

// Release implements async.Slot.
func (s *slot) Release() { <-s.slots }

// Send implements async.Slot. It never returns an *async.NotSentError: an attempt that
// reaches no receiver counts, so that there is an end.
func (s *slot) Send(task *http.Request) (*http.Response, error) {
	rule, err := find(s.o.Rules, task.URL.String())
	if err != nil {
		return nil, fmt.Errorf("the callback to %s is not sent: %w", task.URL, err)
	}
	req, err := s.sign(task)
	if err != nil {
		return nil, err
	}
	dialer := &net.Dialer{Timeout: dialTimeout, Control: rule.control, Resolver: s.o.Resolver}
	// A transport for each attempt: no connection outlives what allowed it. It is used
	// without a client, so nothing follows redirects.
	transport := &http.Transport{
		DialContext: dialer.DialContext, TLSHandshakeTimeout: dialTimeout,
		DisableKeepAlives: true, DisableCompression: true, MaxResponseHeaderBytes: mostHeader,
	}
	resp, err := transport.RoundTrip(req)
	if err != nil {
		return nil, err
	}
	_ = resp.Body.Close() // nothing of it is wanted
	if resp.StatusCode < 200 || resp.StatusCode >= 300 && resp.StatusCode < 400 {
		return nil, fmt.Errorf("the receiver answered with status %d: redirects are not followed", resp.StatusCode)
	}
	kept := make(http.Header)
	if after := resp.Header.Get("Retry-After"); after != "" {
		kept.Set("Retry-After", after)
	}
	return &http.Response{StatusCode: resp.StatusCode, Header: kept, Body: http.NoBody}, nil
}

// sign returns the request that is sent for that of a task.
func (s *slot) sign(task *http.Request) (*http.Request, error) {
	body, err := io.ReadAll(task.Body)
	if err != nil {
		return nil, err
	}
	req, err := http.NewRequestWithContext(task.Context(), task.Method, task.URL.String(), bytes.NewReader(body))
	if err != nil {
		return nil, err
	}
	id, timestamp := task.Header.Get(async.HeaderTask), strconv.FormatInt(time.Now().Unix(), 10)
	var signatures []string
	for _, secret := range s.o.Secrets {
		signatures = append(signatures, secret.sign(id, timestamp, body))
	}
	req.Header = http.Header{
		"Content-Type": task.Header["Content-Type"], "User-Agent": {"Usher"},
		"Webhook-Id": {id}, "Webhook-Timestamp": {timestamp}, "Webhook-Signature": {strings.Join(signatures, " ")},
	}
	return req, nil
}
