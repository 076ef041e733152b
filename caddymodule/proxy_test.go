package caddymodule

import (
	"encoding/json"
	"testing"

	"github.com/caddyserver/caddy/v2/modules/caddyhttp"
	"github.com/caddyserver/caddy/v2/modules/caddyhttp/reverseproxy"
)

func TestRetriesAreCompletedUnlessTheRulesNameTheMatcher(t *testing.T) {
	t.Parallel()
	for name, c := range map[string]struct {
		retries int
		match   caddyhttp.RawMatcherSets
		want    int
		own     int // rules of the user that are left
		unseen  bool
	}{
		"nothing said":              {0, nil, refusedTries, 0, true},
		"retries":                   {2, nil, refusedTries + 2, 1, true},
		"rules without retries":     {0, caddyhttp.RawMatcherSets{{"method": json.RawMessage(`["PUT"]`)}}, refusedTries, 0, true},
		"the matcher named by hand": {5, caddyhttp.RawMatcherSets{{"usher_retry": json.RawMessage(`{}`)}}, 5, 1, false},
	} {
		lb := &reverseproxy.LoadBalancing{Retries: c.retries, RetryMatchRaw: c.match}
		if err := setRetries(&reverseproxy.Handler{LoadBalancing: lb}); err != nil {
			t.Fatal(err)
		}
		if lb.Retries != c.want || len(lb.RetryMatchRaw) != c.own || (len(lb.RetryMatch) == 1) != c.unseen {
			t.Errorf("%s: %d retries, rules %v and %v", name, lb.Retries, lb.RetryMatchRaw, lb.RetryMatch)
		}
	}
	if err := setRetries(&reverseproxy.Handler{LoadBalancing: &reverseproxy.LoadBalancing{Retries: -1}}); err == nil {
		t.Error("negative retries are let through")
	}
}
