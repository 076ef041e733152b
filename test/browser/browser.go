// Package browser drives a real Chromium without a window, for tests of what
// people see. It owns the browser's process, its profile and what a page does
// there: every request, every message of the console and every violation of a
// Content-Security-Policy is on record from the first moment.
//
// It promises that the browser connects to this machine only: whatever else a
// page names is not found, and is on record all the same. Everything ends
// with the test.
//
// Where no browser is installed a test is skipped, with one line that says
// so, unless USHER_TEST_BROWSER is `required`.
package browser

import (
	"context"
	"fmt"
	"os"
	"os/exec"
	"testing"
	"time"

	"github.com/chromedp/cdproto/audits"
	"github.com/chromedp/cdproto/cdp"
	"github.com/chromedp/cdproto/emulation"
	"github.com/chromedp/cdproto/fetch"
	"github.com/chromedp/cdproto/network"
	"github.com/chromedp/chromedp"
)

// Variable is the variable of the environment that names the browser to be
// used, or says with `required` that a missing one is a failure.
const Variable = "USHER_TEST_BROWSER"

const required = "required"

// names are those that the browser goes by, in the order of preference.
var names = []string{"chromium", "chromium-browser", "google-chrome", "google-chrome-stable"}

// find returns the path of the browser.
func find() (string, error) {
	if v := os.Getenv(Variable); v != "" && v != required {
		return exec.LookPath(v)
	}
	for _, name := range names {
		if path, err := exec.LookPath(name); err == nil {
			return path, nil
		}
	}
	return "", fmt.Errorf("no Chromium is installed: none of %q is in PATH, and %s does not name one", names, Variable)
}

// startPatience is how long the start of the browser may take on a machine
// that has much else to do.
const startPatience = time.Minute

// A Browser is one running Chromium with a profile of its own.
type Browser struct {
	t   testing.TB
	ctx context.Context
}

// New starts a browser, which ends with the test. It skips the test if there
// is none.
func New(t testing.TB) *Browser {
	t.Helper()
	path, err := find()
	if err != nil {
		if os.Getenv(Variable) != "" {
			t.Fatal(err)
		}
		t.Skip(err)
	}
	options := append(chromedp.DefaultExecAllocatorOptions[:],
		chromedp.ExecPath(path),
		chromedp.Flag("disable-component-update", true),
		chromedp.Flag("disable-domain-reliability", true),
		chromedp.Flag("no-pings", true),
		chromedp.Flag("hide-scrollbars", true),
		chromedp.Flag("lang", "en-US"),
		chromedp.Flag("host-resolver-rules", "MAP * ~NOTFOUND, EXCLUDE 127.0.0.1, EXCLUDE localhost"),
		chromedp.Flag("proxy-server", "direct://"),
	)
	allocator, end := chromedp.NewExecAllocator(context.Background(), options...)
	t.Cleanup(end)
	ctx, cancel := chromedp.NewContext(allocator)
	t.Cleanup(cancel)
	started := make(chan error, 1)
	go func() { started <- chromedp.Do(ctx) }()
	select {
	case err := <-started:
		if err != nil {
			t.Fatalf("%s does not start: %v", path, err)
		}
	case <-time.After(startPatience):
		cancel()
		t.Fatalf("%s has not started within %s: %v", path, startPatience, <-started)
	}
	return &Browser{t: t, ctx: ctx}
}

// A Visitor describes a person and the browser. The zero value is a person at
// a desk who reads English and has the lights on.
type Visitor struct {
	// Width and Height are the size of the window, in CSS pixels. Default:
	// 1280 by 800.
	Width, Height int

	// Phone is true for a touch screen with three pixels in one of CSS.
	Phone bool

	// Dark is true for a visitor that prefers dark pages.
	Dark bool

	// NoScript turns JavaScript off.
	NoScript bool

	// Language is what the browser sends as Accept-Language. Default: that
	// of the browser.
	Language string

	// User and Password are what is typed in when the site asks for them.
	User, Password string
}

// Desk and Phone are the sizes that pictures are taken in.
var (
	Desk  = Visitor{Width: 1280, Height: 800}
	Phone = Visitor{Width: 390, Height: 844, Phone: true}
)

// Open opens an empty page as a visitor who has never been there: nothing is
// shared with other pages, neither cookies nor caches.
func (b *Browser) Open(v Visitor) *Page {
	b.t.Helper()
	p := &Page{t: b.t, visitor: v}
	ctx, cancel := chromedp.NewContext(b.ctx, chromedp.WithNewBrowserContext())
	b.t.Cleanup(cancel)
	p.ctx, p.cancel = ctx, cancel
	if err := chromedp.Listen(ctx, p.note); err != nil {
		b.t.Fatal(err)
	}
	if err := chromedp.Do(ctx, p.prepare()); err != nil {
		b.t.Fatal(err)
	}
	return p
}

// prepare makes the page what the visitor is.
func (p *Page) prepare() chromedp.Action[chromedp.Void] {
	v := p.visitor
	if v.Width == 0 {
		v.Width, v.Height = Desk.Width, Desk.Height
	}
	size := []chromedp.EmulateViewportOption{chromedp.EmulateScale(1)}
	if v.Phone {
		size = []chromedp.EmulateViewportOption{chromedp.EmulateScale(3), chromedp.EmulateMobile, chromedp.EmulateTouch, chromedp.EmulatePortrait}
	}
	scheme := "light"
	if v.Dark {
		scheme = "dark"
	}
	return chromedp.Steps(
		chromedp.EmulateViewport(int64(v.Width), int64(v.Height), size...),
		chromedp.Func(func(ctx context.Context, _ *chromedp.Target) error {
			_, err := chromedp.Call(ctx, emulation.SetEmulatedMedia, emulation.SetEmulatedMediaParams{
				Features: []*emulation.MediaFeature{{Name: "prefers-color-scheme", Value: scheme}},
			})
			if err == nil {
				_, err = chromedp.Call(ctx, audits.Enable, cdp.Empty{})
			}
			if err == nil && v.NoScript {
				_, err = chromedp.Call(ctx, emulation.SetScriptExecutionDisabled, emulation.SetScriptExecutionDisabledParams{Value: true})
			}
			if err == nil && v.Language != "" {
				_, err = chromedp.Call(ctx, network.SetExtraHTTPHeaders, network.SetExtraHTTPHeadersParams{
					Headers: network.Headers{"Accept-Language": v.Language},
				})
			}
			if err == nil && v.User != "" {
				yes := true
				_, err = chromedp.Call(ctx, fetch.Enable, fetch.EnableParams{HandleAuthRequests: &yes})
			}
			return err
		}),
	)
}
