package caddymodule

import (
	"strconv"
	"strings"
	"testing"
)

func TestStartAttemptsAreBoundedAtBothEnds(t *testing.T) {
	t.Parallel()
	for n, good := range map[int]bool{-1: false, 0: false, 1: true, 1000: true, 1001: false} {
		def := `{"backend":{"type":"test","fleet":"a"},"start_attempts":` + strconv.Itoa(n) + `}`
		for place, cfg := range map[string]string{
			"the app":   jsonApps(`{"services":{"web":`+def+`}}`, ""),
			"a handler": jsonApps(`{}`, `{"handler":"usher","service":"web","define":`+def+`}`),
		} {
			_, err := tryProvision(t, cfg)
			switch {
			case good && err != nil:
				t.Errorf("start_attempts %d in %s: %v", n, place, err)
			case !good && (err == nil || !strings.Contains(err.Error(), "start_attempts must be from 1 to 1000, not "+strconv.Itoa(n))):
				t.Errorf("start_attempts %d in %s: %v", n, place, err)
			}
		}
	}
}

func TestWithOneStartAttemptTheFirstCrashIsTheAnswer(t *testing.T) {
	t.Parallel()
	f := newFleet(t)
	f.manual = true
	c := start(t, site(f.usher("start_attempts 1")))
	wait := c.begin("GET", "/", "")
	f.ordered(1)
	f.die(f.at("tcp", "127.0.0.1:1", func() {}))
	if r := wait(); r.status != 503 || r.header.Get("Usher-Error") != "start_failed" || !strings.Contains(r.body, "exit status 1") {
		t.Errorf("%+v", r)
	}
}
