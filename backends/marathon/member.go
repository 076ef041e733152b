package marathon

import (
	"bytes"
	"context"
	"crypto/tls"
	"crypto/x509"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"os"
	"strings"
	"time"

	gomarathon "github.com/gambol99/go-marathon"
)

// member is one node of a cluster, with a client of its own.
type member struct {
	base   string // scheme, host and path, without a slash at the end
	access access
	client *http.Client
}

// The time limits of one call.
const (
	dialTimeout  = 3 * time.Second
	readTimeout  = 5 * time.Second // a standby holds a call for 2.8 s at most when there is no leader
	writeTimeout = 15 * time.Second
	largestBody  = 32 << 20
)

func newMember(base string, a access) *member {
	t := &http.Transport{
		Proxy:                 http.ProxyFromEnvironment,
		DialContext:           (&net.Dialer{Timeout: dialTimeout, KeepAlive: 15 * time.Second}).DialContext,
		TLSHandshakeTimeout:   dialTimeout,
		ResponseHeaderTimeout: writeTimeout,
		MaxIdleConnsPerHost:   4,
		IdleConnTimeout:       time.Minute,
		ForceAttemptHTTP2:     true,
	}
	if a.ca != "" {
		pool := x509.NewCertPool()
		pool.AppendCertsFromPEM([]byte(a.ca))
		t.TLSClientConfig = &tls.Config{RootCAs: pool, MinVersion: tls.VersionTLS12}
	}
	return &member{base: base, access: a, client: &http.Client{
		Transport: t,
		// Nothing is followed by itself: credentials would go along.
		CheckRedirect: func(*http.Request, []*http.Request) error { return http.ErrUseLastResponse },
	}}
}

// authorize adds the credentials. A token is read for every call: that is how
// a rotated one is noticed, and calls are few.
func (m *member) authorize(req *http.Request) error {
	switch {
	case m.access.tokenFile != "":
		token, err := readToken(m.access.tokenFile)
		if err != nil {
			return &credentialError{err}
		}
		req.Header.Set("Authorization", "token="+token)
	case m.access.user != "":
		req.SetBasicAuth(m.access.user, m.access.password)
	}
	return nil
}

func readToken(path string) (string, error) {
	text, err := os.ReadFile(path)
	if err != nil {
		return "", fmt.Errorf("token_file: %w", err)
	}
	token := strings.TrimSpace(string(text))
	if token == "" || strings.ContainsAny(token, "\r\n") {
		return "", fmt.Errorf("token_file %s does not hold one token", path)
	}
	return token, nil
}

// credentialError is an error in getting at one's own credentials.
type credentialError struct{ err error }

func (e *credentialError) Error() string { return e.err.Error() }
func (e *credentialError) Unwrap() error { return e.err }

// statusError is an answer other than a success.
type statusError struct {
	base   string
	status int
	api    *gomarathon.APIError // code and message, as go-marathon reads them
	text   string               // the start of the body
	locks  []string             // of a conflict: the deployments that hold the app
	to     string               // of a redirect: where to
}

func (e *statusError) Error() string {
	if e.to != "" {
		return fmt.Sprintf("%s redirects to %s", e.base, e.to)
	}
	return fmt.Sprintf("%s answered with status %d: %v", e.base, e.status, e.api)
}

// code is go-marathon's class of the error.
func (e *statusError) code() int { return e.api.ErrCode }

func newStatusError(base string, res *http.Response, body []byte) *statusError {
	e := &statusError{base: base, status: res.StatusCode}
	if len(body) > 0 && body[0] != '{' {
		// Pages of proxies are for browsers.
		body = bytes.TrimSpace(body[:min(len(body), 300)])
	}
	e.text = string(body[:min(len(body), 1000)])
	e.api, _ = errors.AsType[*gomarathon.APIError](gomarathon.NewAPIError(res.StatusCode, body))
	// go-marathon keeps the ids only inside the text of the message.
	var conflict struct {
		Deployments []struct {
			ID string `json:"id"`
		} `json:"deployments"`
	}
	if res.StatusCode == http.StatusConflict && json.Unmarshal(body, &conflict) == nil {
		for _, d := range conflict.Deployments {
			e.locks = append(e.locks, d.ID)
		}
	}
	if res.StatusCode/100 == 3 {
		if to, err := res.Location(); err == nil {
			to.RawQuery, to.User = "", nil
			e.to = to.String()
		}
	}
	return e
}

// send sends a request to m and returns the whole answer. An error that is
// not a *statusError means that there was no whole answer.
func (m *member) send(req *http.Request) (*http.Response, []byte, error) {
	if err := m.authorize(req); err != nil {
		return nil, nil, err
	}
	res, err := m.client.Do(req)
	if err != nil {
		return nil, nil, err
	}
	defer res.Body.Close()
	body, err := io.ReadAll(io.LimitReader(res.Body, largestBody+1))
	switch {
	case res.StatusCode/100 != 2:
		return res, body, newStatusError(m.base, res, body)
	case err != nil:
		return nil, nil, fmt.Errorf("%s: the answer broke off: %w", m.base, err)
	case len(body) > largestBody:
		return nil, nil, fmt.Errorf("%s: the answer is larger than %d MiB", m.base, largestBody>>20)
	}
	return res, body, nil
}

// call makes one call of the API and decodes its answer into out, which may be
// nil.
//
// go-marathon's types and classes of errors are used, but not its client. After any
// 5xx or transport error that marks its member down, sends the request again (a PUT
// or POST too) if it has another member, answers everything with ErrMarathonDown from
// then on, and pings without credentials, for ever, in a goroutine. It takes no
// context, and it loses the ids of the deployments that a conflict names. To use it in
// spite of that takes a client for each call and a transport that hides errors from it,
// and makes the binary larger by 0.1 MB.
func (m *member) call(ctx context.Context, method, path string, in, out any) error {
	timeout := writeTimeout
	if method == http.MethodGet {
		timeout = readTimeout
	}
	ctx, cancel := context.WithTimeout(ctx, timeout)
	defer cancel()
	var body io.Reader
	if in != nil {
		text, err := json.Marshal(in)
		if err != nil {
			return err
		}
		body = bytes.NewReader(text)
	}
	req, err := http.NewRequestWithContext(ctx, method, m.base+path, body)
	if err != nil {
		return err
	}
	req.Header.Set("Accept", "application/json")
	if in != nil {
		req.Header.Set("Content-Type", "application/json")
	}
	_, answer, err := m.send(req) //nolint:bodyclose // send has read and closed it
	if err != nil || out == nil {
		return err
	}
	if err := json.Unmarshal(answer, out); err != nil {
		return fmt.Errorf("%s: the answer to %s %s is not understood: %w", m.base, method, path, err)
	}
	return nil
}

// unsent says whether err proves that no member has carried the call out, so
// that it may be made elsewhere, a change too.
func unsent(err error) bool {
	if op, ok := errors.AsType[*net.OpError](err); ok && op.Op == "dial" {
		return true
	}
	if _, ok := errors.AsType[*credentialError](err); ok {
		return true
	}
	s, ok := errors.AsType[*statusError](err)
	switch {
	case !ok:
		return false
	case s.status/100 == 3:
		return true
	case s.status == http.StatusBadGateway:
		// What a standby says itself, before it has passed the call on.
		return strings.Contains(s.text, "Could not determine the current leader") ||
			strings.Contains(s.text, "Connection to leader refused")
	}
	return false
}

// elsewhere says whether another member may give a better answer to a
// question.
func elsewhere(err error) bool {
	s, ok := errors.AsType[*statusError](err)
	return !ok || s.status >= 500 || s.status/100 == 3
}

// unsure says whether the change that err came back for may have been made
// all the same.
func unsure(err error) bool {
	if unsent(err) {
		return false
	}
	s, ok := errors.AsType[*statusError](err)
	return !ok || s.status >= 500
}
