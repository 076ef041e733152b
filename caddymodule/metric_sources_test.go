package caddymodule

import (
	"context"
	"math"
	"net/http"
	"net/http/httptest"
	"strings"
	"testing"
	"time"

	"github.com/caddy-usher/usher/scaler"
)

func TestPrometheusMustYieldOneNumber(t *testing.T) {
	t.Parallel()
	for _, c := range []struct {
		answer string
		want   float64
		err    string
	}{
		{`{"status":"success","data":{"resultType":"scalar","result":[1,"42.5"]}}`, 42.5, ""},
		{`{"status":"success","data":{"resultType":"vector","result":[{"metric":{},"value":[1,"7"]}]}}`, 7, ""},
		{`{"status":"success","data":{"resultType":"vector","result":[{"value":[1,"7"]},{"value":[1,"8"]}]}}`, 0, "yields 2 series"},
		{`{"status":"success","data":{"resultType":"vector","result":[]}}`, 0, "yields 0 series"},
		{`{"status":"success","data":{"resultType":"matrix","result":[]}}`, 0, "yields a matrix"},
		{`{"status":"success","data":{"resultType":"string","result":[1,"text"]}}`, 0, "yields a string"},
		{`{"status":"success","data":{"resultType":"scalar","result":[1,"NaN"]}}`, math.NaN(), ""},
		{`{"status":"success","data":{"resultType":"scalar","result":[1,"text"]}}`, 0, "'text' is not a number"},
		{`{"status":"error","error":"parse error"}`, 0, "parse error"},
		{`<html>`, 0, "not one of Prometheus"},
	} {
		srv := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
			if r.URL.Path != "/api/v1/query" || r.URL.Query().Get("query") != `sum(up{a="b"})` {
				t.Errorf("asked for %s", r.URL)
			}
			_, _ = w.Write([]byte(c.answer))
		}))
		m := &PrometheusMetric{URL: srv.URL + "/", Query: `sum(up{a="b"})`}
		v, err := m.Read(t.Context(), scaler.Observed{})
		srv.Close()
		switch {
		case c.err != "" && (err == nil || !strings.Contains(err.Error(), c.err)):
			t.Errorf("%s: error %v, want %q", c.answer, err, c.err)
		case c.err == "" && (err != nil || v != c.want && !math.IsNaN(c.want)):
			t.Errorf("%s: %v, %v", c.answer, v, err)
		}
	}
}

func TestAMetricByHTTPIsFoundInItsDocument(t *testing.T) {
	t.Parallel()
	for _, c := range []struct {
		answer, path string
		status       int
		want         float64
		err          string
	}{
		{"17\n", "", 200, 17, ""},
		{`{"queues":[{"length":3},{"length":"4.5"}]}`, "queues.1.length", 200, 4.5, ""},
		{`{"queues":[]}`, "queues.0.length", 200, 0, "has no queues.0.length"},
		{`{"a":true}`, "a", 200, 0, "true is not a number"},
		{`{"a":1}`, "b.c", 200, 0, "has no b.c"},
		{"seventeen", "", 200, 0, "not a number"},
		{"17", "", 500, 0, "status 500"},
		{"{", "a", 200, 0, "no JSON"},
	} {
		srv := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) {
			w.WriteHeader(c.status)
			_, _ = w.Write([]byte(c.answer))
		}))
		v, err := (&HTTPMetric{URL: srv.URL, JSONPath: c.path}).Read(t.Context(), scaler.Observed{})
		srv.Close()
		switch {
		case c.err != "" && (err == nil || !strings.Contains(err.Error(), c.err)):
			t.Errorf("%s: error %v, want %q", c.answer, err, c.err)
		case c.err == "" && (err != nil || v != c.want):
			t.Errorf("%s: %v, %v", c.answer, v, err)
		}
	}
}

func TestASlowSourceIsNotWaitedFor(t *testing.T) {
	t.Parallel()
	held := make(chan struct{})
	srv := httptest.NewServer(http.HandlerFunc(func(http.ResponseWriter, *http.Request) { <-held }))
	defer srv.Close()
	defer close(held)
	ctx, cancel := context.WithTimeout(t.Context(), 50*time.Millisecond)
	defer cancel()
	if _, err := (&HTTPMetric{URL: srv.URL}).Read(ctx, scaler.Observed{}); err == nil {
		t.Error("no error")
	}
}

func TestWhatUsherKnowsIsAMetric(t *testing.T) {
	t.Parallel()
	of := scaler.Observed{
		Waiting: 3, InUse: 8, Ready: 4, OldestWait: 1500 * time.Millisecond, Rate: 12,
		Wait: func(part float64) time.Duration { return time.Duration(part * float64(time.Second)) },
	}
	for what, want := range map[string]float64{
		"waiting": 3, "in_use": 8, "in_use_each": 2, "oldest_wait": 1.5, "rate": 12, "wait_p50": 0.5, "wait_p95": 0.95, "wait_p99": 0.99,
	} {
		m := &ServiceMetric{What: what}
		if err := m.Validate(); err != nil {
			t.Error(err)
		}
		if v, err := m.Read(t.Context(), of); err != nil || math.Abs(v-want) > 1e-9 {
			t.Errorf("%s: %v, %v; want %v", what, v, err, want)
		}
	}
}
