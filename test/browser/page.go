package browser

import (
	"context"
	"fmt"
	"net/url"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/chromedp/cdproto/audits"
	"github.com/chromedp/cdproto/fetch"
	"github.com/chromedp/cdproto/log"
	"github.com/chromedp/cdproto/network"
	"github.com/chromedp/cdproto/runtime"
	"github.com/chromedp/chromedp"

	"github.com/caddy-usher/usher/test/harness"
)

// A Page is one tab, opened by one visitor.
type Page struct {
	t       testing.TB
	ctx     context.Context
	cancel  context.CancelFunc
	visitor Visitor

	mu         sync.Mutex
	requests   []Request
	complaints []Complaint
}

// A Request is one that the page has made, for itself or for what it shows.
type Request struct {
	URL    string
	Method string
	Type   string    // Document, Fetch, Image, ...
	Sent   time.Time // when the browser told us
	Status int       // 0 until the header of the answer is here
	Came   time.Time // when the header of the answer was here

	id network.RequestID
}

// A Complaint is an error or warning on the console, an uncaught
// exception, or a violation of a Content-Security-Policy.
type Complaint struct {
	// Source is `console`, `exception`, `policy`, or the part of the browser
	// that complains: `network`, `security`, ...
	Source string
	Text   string
	URL    string // of what it is about, if that is known
}

// Complaint sources that are not parts of the browser.
const (
	sourceConsole   = "console"
	sourceException = "exception"
	sourcePolicy    = "policy"
)

// note takes down what the browser tells. It must not wait for anything.
func (p *Page) note(ev any) {
	p.mu.Lock()
	defer p.mu.Unlock()
	switch e := ev.(type) {
	case *network.EventRequestWillBeSent:
		p.requests = append(p.requests, Request{
			URL: e.Request.URL + e.Request.URLFragment, Method: e.Request.Method, Type: string(e.Type), Sent: time.Now(), id: e.RequestID,
		})
	case *network.EventResponseReceived:
		for k := range slices.Backward(p.requests) {
			if r := &p.requests[k]; r.id == e.RequestID {
				r.Status, r.Came = int(e.Response.Status), time.Now()
				break
			}
		}
	case *log.EventEntryAdded:
		if e.Entry.Level == log.EntryLevelError || e.Entry.Level == log.EntryLevelWarning {
			p.complain(string(e.Entry.Source), e.Entry.Text, e.Entry.URL)
		}
	case *runtime.EventConsoleAPICalled:
		if e.Type == runtime.ConsoleAPICalledTypeError || e.Type == runtime.ConsoleAPICalledTypeWarning {
			var words []string
			for _, a := range e.Args {
				words = append(words, strings.Trim(string(a.Value), `"`)+a.Description)
			}
			p.complain(sourceConsole, strings.Join(words, " "), "")
		}
	case *runtime.EventExceptionThrown:
		d := e.ExceptionDetails
		text := d.Text
		if d.Exception != nil {
			text += " " + d.Exception.Description
		}
		p.complain(sourceException, text, d.URL)
	case *audits.EventIssueAdded:
		if d := e.Issue.Details.ContentSecurityPolicyIssueDetails; d != nil {
			p.complain(sourcePolicy, d.ViolatedDirective+" is violated", d.BlockedURL)
		}
	case *fetch.EventRequestPaused:
		go func() {
			_, _ = chromedp.Call(p.ctx, fetch.ContinueRequest, fetch.ContinueRequestParams{RequestID: e.RequestID})
		}()
	case *fetch.EventAuthRequired:
		go func() {
			_, _ = chromedp.Call(p.ctx, fetch.ContinueWithAuth, fetch.ContinueWithAuthParams{
				RequestID: e.RequestID,
				AuthChallengeResponse: &fetch.AuthChallengeResponse{
					Response: fetch.AuthChallengeResponseResponseProvideCredentials,
					Username: p.visitor.User, Password: p.visitor.Password,
				},
			})
		}()
	}
}

func (p *Page) complain(source, text, about string) {
	p.complaints = append(p.complaints, Complaint{Source: source, Text: text, URL: about})
}

// patience is how long one step may take on a machine that has much else to
// do. It is no bound for what is tested.
const patience = time.Minute

// do runs one step and fails the test if it fails.
func (p *Page) do(what string, a chromedp.Action[chromedp.Void]) {
	p.t.Helper()
	ctx, cancel := context.WithTimeout(p.ctx, patience)
	defer cancel()
	if err := chromedp.Do(ctx, a); err != nil {
		p.t.Fatalf("%s: %v", what, err)
	}
}

// Go opens a URL and returns when it is loaded.
func (p *Page) Go(address string) {
	p.t.Helper()
	p.do("opening "+address, chromedp.Navigate(address))
}

// Resize gives the window another size, in CSS pixels.
func (p *Page) Resize(width, height int) {
	p.t.Helper()
	p.do("resizing", chromedp.EmulateViewport(int64(width), int64(height), chromedp.EmulateScale(1)))
}

// Reload does what the button of the browser does.
func (p *Page) Reload() {
	p.t.Helper()
	p.do("reloading", chromedp.Reload())
}

// Close closes the page, as a person would.
func (p *Page) Close() { p.cancel() }

// Click clicks on what a CSS selector finds, once it is there.
func (p *Page) Click(selector string) {
	p.t.Helper()
	p.do("clicking "+selector, chromedp.Click(chromedp.CSS(selector)))
}

// Ask evaluates a JavaScript expression in the page; a promise is awaited.
// It also works where the page's own scripts are off.
func Ask[T any](p *Page, expression string) (T, error) {
	ctx, cancel := context.WithTimeout(p.ctx, patience)
	defer cancel()
	return chromedp.Run(ctx, chromedp.Evaluate[T](expression, chromedp.EvalAwaitPromise))
}

// Must is Ask that may not fail.
func Must[T any](p *Page, expression string) T {
	p.t.Helper()
	v, err := Ask[T](p, expression)
	if err != nil {
		p.t.Fatalf("evaluating %s: %v", expression, err)
	}
	return v
}

// Await waits until a JavaScript expression is true. A page that is on its
// way to another one is asked again.
func (p *Page) Await(timeout time.Duration, expression string) {
	p.t.Helper()
	var last error
	ok := harness.WaitFor(timeout, func() bool {
		v, err := Ask[bool](p, expression)
		last = err
		return v && err == nil
	})
	if !ok {
		text, _ := Ask[string](p, `document.documentElement.outerHTML`)
		p.t.Fatalf("not within %s: %s (%v) of\n%s", timeout, expression, last, text)
	}
}

// Text returns the words that the page shows.
func (p *Page) Text() string {
	p.t.Helper()
	return Must[string](p, `document.body.innerText`)
}

// URL returns what the address bar shows.
func (p *Page) URL() string {
	p.t.Helper()
	return Must[string](p, `location.href`)
}

// Requests returns all requests so far, in their order.
func (p *Page) Requests() []Request {
	p.mu.Lock()
	defer p.mu.Unlock()
	return slices.Clone(p.requests)
}

// Complaints returns all complaints so far. A document or stream whose status
// is in `expected` is none: the browser complains of every one above 399.
func (p *Page) Complaints(expected ...int) []Complaint {
	p.mu.Lock()
	defer p.mu.Unlock()
	statuses := make(map[string]int)
	for _, r := range p.requests {
		address, _, _ := strings.Cut(r.URL, "#")
		statuses[address] = max(statuses[address], r.Status)
	}
	var all []Complaint
	for _, c := range p.complaints {
		address, _, _ := strings.Cut(c.URL, "#")
		if c.Source == string(log.EntrySourceNetwork) && slices.Contains(expected, statuses[address]) {
			continue
		}
		all = append(all, c)
	}
	return all
}

// WantNoComplaints fails the test if the page has complained of anything but
// answers with an expected status.
func (p *Page) WantNoComplaints(expected ...int) {
	p.t.Helper()
	for _, c := range p.Complaints(expected...) {
		p.t.Errorf("the browser complains (%s): %s %s", c.Source, c.Text, c.URL)
	}
}

// WantOnlyOrigin fails the test if the page has contacted another
// origin. A data: URL contacts none.
func (p *Page) WantOnlyOrigin(origin string) {
	p.t.Helper()
	for _, r := range p.Requests() {
		u, err := url.Parse(r.URL)
		switch {
		case err != nil:
			p.t.Errorf("a request to what is no URL: %q", r.URL)
		case u.Scheme == "data", u.Scheme == "about":
		case u.Scheme+"://"+u.Host != origin:
			p.t.Errorf("a request to another origin than %s: %s %s", origin, r.Type, r.URL)
		}
	}
}

// Screenshot writes what is in the window to a file, as PNG.
func (p *Page) Screenshot(path string) {
	p.t.Helper()
	ctx, cancel := context.WithTimeout(p.ctx, patience)
	defer cancel()
	picture, err := chromedp.Run(ctx, chromedp.CaptureScreenshot())
	if err == nil {
		err = os.MkdirAll(filepath.Dir(path), 0o755)
	}
	if err == nil {
		err = os.WriteFile(path, picture, 0o644)
	}
	if err != nil {
		p.t.Fatal(fmt.Errorf("taking a picture: %w", err))
	}
}
