package caddymodule

import (
	"bytes"
	"crypto/rand"
	_ "embed"
	"errors"
	"fmt"
	"html/template"
	"net/http"
	"os"
	"slices"
	"strconv"
	"strings"
	"time"

	"github.com/caddyserver/caddy/v2"
	"github.com/caddyserver/caddy/v2/modules/caddyhttp"
	"github.com/munnerz/goautoneg"
	"go.uber.org/zap"

	"github.com/caddy-usher/usher/caddymodule/answer"
	"github.com/caddy-usher/usher/caddymodule/hub"
)

// WaitingPage is what people see while a service starts: a browser whose
// request would be held longer than a moment gets a page instead, which turns
// into the page that was asked for as soon as the service is ready.
//
// Only what a person opens in a browser gets it: a GET or HEAD that navigates.
// Scripts, API clients, POSTs and upgrades on the same URL are held as ever.
type WaitingPage struct {
	// A file with a template of your own, in the language of Go's
	// html/template; PageData are its fields. It is read when the
	// configuration is loaded. A file that cannot be used fails the load. The
	// first load of a Caddy shows the built-in page instead and logs a
	// warning. Default: a built-in page.
	File string `json:"file,omitempty"`

	// How long a request is held before it gets the page. With 0 it gets
	// the page at once. Default: 300ms.
	After *caddy.Duration `json:"after,omitempty"`

	// How often the page asks again where scripts are off. Whole seconds;
	// what is between is rounded up. Default: 2s.
	Refresh caddy.Duration `json:"refresh,omitempty"`

	// The heading of the page, which may have placeholders. Default: the
	// name of the service.
	Title string `json:"title,omitempty"`

	// Which of the requests that people make in a browser get the page.
	// Default: all.
	MatchRaw caddyhttp.RawMatcherSets `json:"match,omitempty" caddy:"namespace=http.matchers"`

	match    caddyhttp.MatcherSets
	template *template.Template
}

const (
	defaultPageAfter   = 300 * time.Millisecond
	defaultPageRefresh = 2 * time.Second
	maxRefresh         = time.Hour

	// visitorGrace is how much longer than the refresh a visitor may take to
	// come back before its place in the queue is given up.
	visitorGrace = 5 * time.Second

	// claimPatience is how long a slot stays free for a visitor whose page was
	// told that it is its turn: it comes at once, or not at all.
	claimPatience = 5 * time.Second

	// returnPatience is how long the request of a visitor whose turn has come
	// may wait for a slot before it gets the page again. The browser shows
	// the page all that time.
	returnPatience = 5 * time.Second
)

var (
	// pageHeadHTML is what the built-in pages have in common: the template "head".
	//go:embed page_head.html
	pageHeadHTML string

	//go:embed waiting_page.html
	waitingPageHTML string

	//go:embed waiting_page.js
	waitingPageScript string
)

// provision checks everything but the template: see App.loadPage.
func (p *WaitingPage) provision(ctx caddy.Context, waitTimeout time.Duration) error {
	p.After = hub.Defaulted(p.After, caddy.Duration(defaultPageAfter))
	if p.Refresh == 0 {
		p.Refresh = caddy.Duration(defaultPageRefresh)
	}
	if err := hub.CheckDuration("after", *p.After); err != nil {
		return err
	}
	if after := time.Duration(*p.After); after >= waitTimeout {
		return fmt.Errorf("after is %v, but no request is held longer than wait_timeout, %v: no client would get the page", after, waitTimeout)
	}
	if p.Refresh < 0 {
		return fmt.Errorf("refresh must be positive, not %v", time.Duration(p.Refresh))
	}
	if p.Refresh > caddy.Duration(maxRefresh) {
		return fmt.Errorf("refresh is %v, but can be at most %v: a place in the queue is kept for so long", time.Duration(p.Refresh), maxRefresh)
	}
	if p.MatchRaw != nil {
		sets, err := ctx.LoadModule(p, "MatchRaw")
		if err != nil {
			return fmt.Errorf("matcher: %w", err)
		}
		if err := p.match.FromInterface(sets); err != nil {
			return fmt.Errorf("matcher: %w", err)
		}
	}
	return nil
}

// load reads and checks the template in a file, or the built-in one if file is
// empty.
func (p *WaitingPage) load(file string) error {
	name, text := "the built-in page", pageHeadHTML+waitingPageHTML
	if file != "" {
		b, err := os.ReadFile(file)
		if err != nil {
			return fmt.Errorf("reading the template: %w", err)
		}
		name, text = file, string(b)
	}
	t, err := template.New(name).Parse(text)
	if err != nil {
		return fmt.Errorf("the template does not parse: %w", err)
	}
	// Try every state now: a failure during a wait could pass unnoticed.
	for _, d := range samplePages() {
		if err := t.Execute(new(bytes.Buffer), d.safe()); err != nil {
			return fmt.Errorf("the template cannot be filled in for a service that is %s: %w", d.State, err)
		}
	}
	p.template = t
	return nil
}

// refreshSeconds is the refresh as a browser wants it.
func (p *WaitingPage) refreshSeconds() int {
	return int((time.Duration(p.Refresh) + time.Second - 1) / time.Second)
}

// linger is how long a visitor keeps the place in the queue without contact.
func (p *WaitingPage) linger() time.Duration {
	return time.Duration(p.refreshSeconds())*time.Second + visitorGrace
}

// wants says whether r is what a person opens in a browser, and may get the
// page.
func (p *WaitingPage) wants(r *http.Request) (bool, error) {
	if !navigates(r) {
		return false, nil
	}
	if len(p.match) == 0 {
		return true, nil
	}
	return p.match.AnyMatchWithError(r)
}

// documents are the destinations of a navigation that show a page. What is
// embedded as an object or downloaded cannot show one.
var documents = []string{"", "document", "iframe", "frame"}

// navigates says whether a browser opens r for a person to see.
func navigates(r *http.Request) bool {
	h := r.Header
	switch {
	case r.Method != http.MethodGet && r.Method != http.MethodHead:
		return false
	case h.Get("Upgrade") != "":
		return false
	case strings.Contains(h.Get("Sec-Purpose"), "prefetch"), strings.Contains(h.Get("Purpose"), "prefetch"):
		// The browser opens it ahead of time; the person may never look at it.
		return false
	}
	if mode := h.Get("Sec-Fetch-Mode"); mode != "" {
		return mode == "navigate" && slices.Contains(documents, h.Get("Sec-Fetch-Dest"))
	}
	// Browsers say nothing of it over plain HTTP, and old ones never do.
	return h.Get("X-Requested-With") == "" && prefersHTML(answer.Preferences(h, "Accept"))
}

// prefersHTML says whether an Accept header wants HTML before anything else,
// as those of browsers do: they name it first, and nothing above it.
func prefersHTML(accept string) bool {
	if !strings.HasPrefix(strings.TrimSpace(accept), answer.TypeHTML) {
		return false
	}
	html, others := 0.0, 0.0
	for _, a := range goautoneg.ParseAccept(accept) {
		if a.Type+"/"+a.SubType == answer.TypeHTML {
			html = a.Q
		} else {
			others = max(others, a.Q)
		}
	}
	return html > 0 && html >= others
}

// PageData are the fields that a template of the waiting page can use.
type PageData struct {
	// Title is the heading: what `title` says, or the name of the service.
	Title string

	// Service is the name of the service.
	Service string

	// State is `starting`, `queue` (running, and everything is in use) or the
	// code of an error, as in the header Usher-Error: `start_failed`,
	// `suspended`, `asleep`, `queue_full`, `platform_unavailable`,
	// `wait_timeout`, `shutting_down`.
	State string

	// Status says in a few words what is happening, and Detail in a sentence
	// what to expect of it; Detail may be empty.
	Status, Detail string

	// Reason is why the service cannot be had, in the words of the program or
	// the platform. In the state `starting` it is empty as long as all is well;
	// else it says why the starts before this one have failed, or why this one
	// takes so long.
	Reason string

	// Attempts is how many starts in a row have failed so far.
	Attempts int

	// Place is the visitor's place in the queue, in words; empty for the first.
	Place string

	// Usual is how many milliseconds a start usually takes; 0 if none was
	// measured yet. Elapsed is how many of them have passed.
	Usual, Elapsed int64

	// Waiting is true as long as the page will turn into the one asked for
	// by itself and nothing is wrong.
	Waiting bool

	// Language is the language of all texts, such as `en`.
	Language string

	// Hint says, in that language, that the page will turn into the one
	// asked for by itself. ProgressLabel names the progress bar for
	// screen readers.
	Hint, ProgressLabel string

	// Refresh is after how many seconds the page is to be asked for again
	// where scripts are off.
	Refresh int

	// Again is the URL to ask for then: that of the page, as seen from
	// itself, without the fragment, which no server knows. A refresh that
	// names no URL only scrolls where there is a fragment.
	Again string

	// Nonce is the nonce that the Content-Security-Policy allows for the
	// attribute `nonce` of style and script elements.
	Nonce string

	// Script is the script element that listens for readiness. It keeps the
	// texts of elements with the attribute data-usher="status", "detail",
	// "reason" or "place" up to date, hides those that are empty, moves a
	// progress element with data-usher="progress", and hides elements with
	// data-usher="waiting" while something is wrong.
	Script template.HTML
}

// safePage is a page whose texts are written for HTML, so that they contain no
// mark of a template language: see foreignHTML.
type safePage struct {
	PageData

	Title, Status, Detail, Reason, Place, Hint, ProgressLabel template.HTML
}

func (d PageData) safe() safePage {
	return safePage{
		PageData: d, Title: answer.ForeignHTML(d.Title),
		Status: answer.ForeignHTML(d.Status), Detail: answer.ForeignHTML(d.Detail), Reason: answer.ForeignHTML(d.Reason), Place: answer.ForeignHTML(d.Place),
		Hint: answer.ForeignHTML(d.Hint), ProgressLabel: answer.ForeignHTML(d.ProgressLabel),
	}
}

// samplePages are pages in every state.
func samplePages() []PageData {
	translation := translationFor("")
	var all []PageData
	for state := range translation.status {
		d := PageData{
			Title: "Sample", Service: "sample", State: state, Reason: "exit status 1", Place: translation.place(3), Attempts: 2,
			Usual: 3000, Elapsed: 1000, Refresh: 2, Again: "./sample", Nonce: "sample", Script: "<script></script>",
		}
		translation.fill(&d, time.Minute)
		all = append(all, d)
	}
	return all
}

// selfReference returns a relative reference to a page from itself. It names
// no path from the root, which may not be the one that the browser knows, and
// can lead to no other origin.
func selfReference(uri string) string {
	uri = answer.UrlReference(uri)
	path, query, _ := strings.Cut(uri, "?")
	if query != "" {
		return "?" + query
	}
	return "./" + path[strings.LastIndexByte(path, '/')+1:]
}

// contentPolicy lets the page have its own style and script and ask its own
// origin, and nothing else. It does not restrict framing: the page shows
// nothing secret and has nothing to click on.
const contentPolicy = "default-src 'none'; base-uri 'none'; form-action 'none'; connect-src 'self'; img-src data:; script-src 'nonce-%[1]s'; style-src 'nonce-%[1]s'"

// answer writes the page.
func (p *WaitingPage) answer(w http.ResponseWriter, q *request, d PageData) {
	d.Nonce = rand.Text()
	d.Again = selfReference(originalURI(q.came))
	d.Refresh = max(p.refreshSeconds(), 1)
	if !d.Waiting {
		d.Refresh = max(d.Refresh, q.why.retryAfter)
	}
	d.Script = template.HTML(fmt.Sprintf("<script nonce=\"%s\" data-refresh=\"%d\">%s</script>", d.Nonce, d.Refresh, waitingPageScript)) //nolint:gosec // all of it is our own
	var body bytes.Buffer
	if err := p.template.Execute(&body, d.safe()); err != nil {
		// It could be filled in with every sample.
		q.service.Log().Error("the template of the waiting page cannot be filled in: what people see is cut short", zap.Error(err))
	}
	h := w.Header()
	// Where the script does not run, because it is off, or because a policy
	// forbids it that something in between has added, this turns the page into
	// the one that was asked for. The script takes it back.
	h.Set("Refresh", strconv.Itoa(d.Refresh)+";url="+d.Again)
	describePage(h, d.Language, fmt.Sprintf(contentPolicy, d.Nonce), body.Len())
	w.WriteHeader(http.StatusServiceUnavailable)
	if q.came.Method != http.MethodHead {
		_, _ = w.Write(body.Bytes())
	}
}

// describePage sets the headers of a page of Usher's own that say what it is.
func describePage(h http.Header, language, policy string, length int) {
	h.Set("Content-Type", "text/html; charset=utf-8")
	h.Set("Content-Language", language)
	h.Set("Content-Length", strconv.Itoa(length))
	h.Set("Content-Security-Policy", policy)
	h.Set("X-Content-Type-Options", "nosniff")
	for _, name := range []string{"Accept", "Accept-Language", "Sec-Fetch-Mode"} {
		h.Add("Vary", name)
	}
}

// errWaitingPage is the reason for the end of a wait that goes on in the
// browser.
var errWaitingPage = errors.New("the browser waits with the waiting page")
