package e2ebrowser

import (
	"fmt"
	"net/http"
	"strings"
	"testing"

	"github.com/caddy-usher/usher/test/browser"
	"github.com/caddy-usher/usher/test/harness"
)

// line is a condition on the path of a line in the unfolded plot.
func line(kind, condition string) string {
	return `(() => { const path = document.querySelector(".plot path.` + kind + `"); const d = path?.getAttribute("d"); return ` + condition + ` })()`
}

func TestThePlotShowsTargetNeedPredictionAndSchedule(t *testing.T) {
	c, b := start(t)
	// Whatever the time is: a floor holds, and another one follows.
	c.Start(viewed(c, 0, "", "instances 0 3", "concurrency 1", "scale adaptive",
		"at daily 00:00-12:00 UTC {\nmin 1\n}", "at daily 12:00-24:00 UTC {\nmin 2\n}"))
	p := b.Open(browser.Desk)
	open(c, p)
	p.Click("[data-name=web] h3 button")

	var inside []*harness.Pending
	for range 3 {
		inside = append(inside, c.Send(harness.Request{Path: "/hold?gate=" + c.Path("gate")}))
	}
	// The top of the plot is at 1.5, the bottom at 24.
	shows(p, "needed by requests 3")
	shows(p, "target 3")
	p.Await(soon, line("target", `d.includes("V1.5")`))
	p.Await(soon, line("needed", `d.includes("V1.5")`))
	c.Open("gate")
	for _, r := range inside {
		if res := r.Wait(t, soon); res.Status != http.StatusOK {
			t.Errorf("%+v", res)
		}
	}
	shows(p, "needed by requests 0")
	p.Await(soon, line("needed", `d.includes("V24.0")`))
	p.Await(soon, `[...document.querySelectorAll(".legend li")].some(e => /predicted by the policy [1-3]/.test(e.textContent))`)
	p.Await(soon, line("predicted", `d.startsWith("M")`))
	p.Await(soon, `[...document.querySelectorAll(".legend li")].some(e => /scheduled: at least (1 until .*, then 2|2 until .*, then 1)/.test(e.textContent))`)
	p.Await(soon, line("floor", `d.endsWith("H4500")`)) // it is known of the future, too

	// Each line is there to be seen, and is told from the others without colours.
	styles := browser.Must[map[string]string](p, `Object.fromEntries([...document.querySelectorAll(".plot .spark path:not(.under)")].map(e => {
		const s = getComputedStyle(e);
		return [e.classList[0], [s.stroke === "none" || !e.getAttribute("d") ? "nothing" : "", parseFloat(s.strokeWidth), s.strokeDasharray].join(" ")];
	}))`)
	seen := make(map[string]string)
	for _, kind := range []string{"target", "needed", "predicted", "floor"} {
		style, there := styles[kind]
		if !there || strings.HasPrefix(style, "nothing") {
			t.Errorf("there is no line of kind %s: %v", kind, styles)
		}
		if other := seen[style]; other != "" {
			t.Errorf("%s and %s are drawn with the same line %q", other, kind, style)
		}
		seen[style] = kind
		if !browser.Must[bool](p, fmt.Sprintf(`document.querySelector(".legend svg .%s").getBoundingClientRect().width > 10`, kind)) {
			t.Errorf("the legend does not explain the line %s", kind)
		}
	}
	spoken := browser.Must[string](p, `document.querySelector(".plot svg").getAttribute("aria-label")`)
	for _, want := range []string{"target", "needed by requests 0, at most 3 in the last hour", "predicted by the policy", "scheduled: at least"} {
		if !strings.Contains(spoken, want) {
			t.Errorf("the plot does not say %q in words: %s", want, spoken)
		}
	}
	clean(t, c, p)
}

func TestThePlotShowsWhenTheNextRequestIsExpected(t *testing.T) {
	c, b := start(t)
	c.Start(harness.Config{Site: "handle /plain {\n\tusher_status\n}"})
	p := unfolded(t, b, crowded(t, c, "/plain"))
	const plot = `[data-name="blog.example"] .plot `
	p.Await(soon, `(() => {
		const now = document.querySelector('`+plot+`line.now').getBoundingClientRect().left;
		const band = document.querySelector('`+plot+`path.expected').getBoundingClientRect();
		const all = document.querySelector('`+plot+`svg').getBoundingClientRect();
		return band.left > now && band.right < all.right && band.height > 0.9 * all.height;
	})()`)
	if words := browser.Must[string](p, `document.querySelector('`+plot+`svg').getAttribute("aria-label")`); !strings.Contains(words, "next request expected") {
		t.Errorf("%s", words)
	}
	// Of a service without a schedule, nothing of the future is known.
	if browser.Must[bool](p, `document.querySelector('[data-name=sockets] .plot .now, [data-name=sockets] .plot .expected, [data-name=sockets] .plot .floor') !== null`) {
		t.Error("the plot of another service has a future, too")
	}
	p.WantNoComplaints()
}
