package caddymodule

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net/http"
	"net/url"
	"strconv"
	"strings"
	"time"

	"github.com/caddyserver/caddy/v2"
	"github.com/caddyserver/caddy/v2/caddyconfig/caddyfile"

	"github.com/caddy-usher/usher/caddymodule/hub"
	"github.com/caddy-usher/usher/caddymodule/option"
	"github.com/caddy-usher/usher/scaler"
)

func init() {
	caddy.RegisterModule(PrometheusMetric{})
	caddy.RegisterModule(HTTPMetric{})
	caddy.RegisterModule(ServiceMetric{})
}

// Polling is how often a metric is read.
type Polling struct {
	// How often the metric is read, and how long that may take. Default: 5s.
	Every caddy.Duration `json:"interval,omitempty"`
}

// defaultPolling is how often a metric is read unless the options say otherwise.
const defaultPolling = 5 * time.Second

// Interval implements scaler.Metric.
func (p Polling) Interval() time.Duration {
	if p.Every == 0 {
		return defaultPolling
	}
	return time.Duration(p.Every)
}

func (p Polling) check() error { return hub.CheckDuration("interval", p.Every) }

// PrometheusMetric is what a query to a Prometheus yields: one number.
type PrometheusMetric struct {
	// Where the Prometheus is, such as `http://127.0.0.1:9090`.
	URL string `json:"url"`

	// The query. It must yield a scalar, or a vector of one series.
	Query string `json:"query"`

	Polling
}

// CaddyModule returns the Caddy module information.
func (PrometheusMetric) CaddyModule() caddy.ModuleInfo {
	return caddy.ModuleInfo{ID: "usher.metrics.prometheus", New: func() caddy.Module { return new(PrometheusMetric) }}
}

// Validate checks the values.
func (m *PrometheusMetric) Validate() error {
	if m.Query == "" {
		return errors.New("prometheus needs a query")
	}
	return errors.Join(checkURL(m.URL), m.check())
}

// Read implements scaler.Metric.
func (m *PrometheusMetric) Read(ctx context.Context, _ scaler.Observed) (float64, error) {
	body, status, err := get(ctx, strings.TrimSuffix(m.URL, "/")+"/api/v1/query?query="+url.QueryEscape(m.Query))
	if err != nil {
		return 0, err
	}
	var answer struct {
		Status, Error string
		Data          struct {
			ResultType string
			Result     json.RawMessage
		}
	}
	if err := json.Unmarshal(body, &answer); err != nil {
		return 0, fmt.Errorf("the answer of %s with status %d is not one of Prometheus: %w", m.URL, status, err)
	}
	if answer.Status != "success" {
		return 0, fmt.Errorf("the query fails: %s", scaler.Readable(answer.Error))
	}
	sample := answer.Data.Result
	switch answer.Data.ResultType {
	case "scalar":
	case "vector":
		var series []struct{ Value json.RawMessage }
		if err := json.Unmarshal(sample, &series); err != nil {
			return 0, err
		}
		if len(series) != 1 {
			return 0, fmt.Errorf("the query yields %d series and not one: add sum() or max(), or a label", len(series))
		}
		sample = series[0].Value
	default:
		return 0, fmt.Errorf("the query yields a %s: it must yield a scalar or a vector of one series", scaler.Readable(answer.Data.ResultType))
	}
	var pair [2]any
	if err := json.Unmarshal(sample, &pair); err != nil {
		return 0, err
	}
	return numberIn(pair[1])
}

// numberIn returns the number that a value of JSON is.
func numberIn(v any) (float64, error) {
	switch v := v.(type) {
	case float64:
		return v, nil
	case string:
		f, err := strconv.ParseFloat(v, 64)
		if err != nil {
			return 0, fmt.Errorf("'%s' is not a number", scaler.Readable(v))
		}
		return f, nil
	}
	return 0, fmt.Errorf("%v is not a number", v)
}

// UnmarshalCaddyfile sets up the source from Caddyfile tokens. Syntax:
//
//	metric prometheus {
//		url      <url>
//		query    <query>
//		interval <duration>
//	}
func (m *PrometheusMetric) UnmarshalCaddyfile(d *caddyfile.Dispenser) error {
	return option.Block(d, m.Validate, func() (err error) {
		switch name := d.Val(); name {
		case "url":
			return one(d, &m.URL)
		case "query":
			return one(d, &m.Query)
		case "interval":
			m.Every, err = positive(d)
			return err
		default:
			return d.Errf("unknown option '%s' of the metric prometheus: use url, query or interval", name)
		}
	})
}

// HTTPMetric is a number in a JSON document, or a document that is a number.
type HTTPMetric struct {
	// What is asked with GET.
	URL string `json:"url"`

	// Where the number is in the JSON that comes back: names and numbers of
	// elements with dots between, such as `queues.0.length`. Default: the whole
	// answer is the number.
	JSONPath string `json:"json_path,omitempty"`

	Polling
}

// CaddyModule returns the Caddy module information.
func (HTTPMetric) CaddyModule() caddy.ModuleInfo {
	return caddy.ModuleInfo{ID: "usher.metrics.http", New: func() caddy.Module { return new(HTTPMetric) }}
}

// Validate checks the values.
func (m *HTTPMetric) Validate() error { return errors.Join(checkURL(m.URL), m.check()) }

// Read implements scaler.Metric.
func (m *HTTPMetric) Read(ctx context.Context, _ scaler.Observed) (float64, error) {
	body, status, err := get(ctx, m.URL)
	switch {
	case err != nil:
		return 0, err
	case status/100 != 2:
		return 0, fmt.Errorf("%s answers with status %d", m.URL, status)
	case m.JSONPath == "":
		return numberIn(strings.TrimSpace(string(body)))
	}
	var at any
	if err := json.Unmarshal(body, &at); err != nil {
		return 0, fmt.Errorf("the answer of %s is no JSON: %w", m.URL, err)
	}
	for step := range strings.SplitSeq(m.JSONPath, ".") {
		switch v := at.(type) {
		case map[string]any:
			at = v[step]
		case []any:
			k, err := strconv.Atoi(step)
			if err != nil || k < 0 || k >= len(v) {
				return 0, fmt.Errorf("the answer of %s has no %s: there are %d elements", m.URL, m.JSONPath, len(v))
			}
			at = v[k]
		default:
			at = nil
		}
		if at == nil {
			return 0, fmt.Errorf("the answer of %s has no %s", m.URL, m.JSONPath)
		}
	}
	return numberIn(at)
}

// UnmarshalCaddyfile sets up the source from Caddyfile tokens. Syntax:
//
//	metric http {
//		url       <url>
//		json_path <path>
//		interval  <duration>
//	}
func (m *HTTPMetric) UnmarshalCaddyfile(d *caddyfile.Dispenser) error {
	return option.Block(d, m.Validate, func() (err error) {
		switch name := d.Val(); name {
		case "url":
			return one(d, &m.URL)
		case "json_path":
			return one(d, &m.JSONPath)
		case "interval":
			m.Every, err = positive(d)
			return err
		default:
			return d.Errf("unknown option '%s' of the metric http: use url, json_path or interval", name)
		}
	})
}

// ServiceMetric is what Usher itself knows of the service.
type ServiceMetric struct {
	// What is measured: `waiting`, the requests in the queue; `in_use`, those
	// inside; `in_use_each`, those inside for each ready instance;
	// `oldest_wait`, how long the oldest has waited, in seconds; `rate`, the
	// requests per second; `wait_p50`, `wait_p95` or `wait_p99`, how long
	// requests waited, in seconds.
	What string `json:"what"`

	Polling
}

var serviceMetrics = map[string]func(scaler.Observed) float64{
	"waiting":     func(o scaler.Observed) float64 { return float64(o.Waiting) },
	"in_use":      func(o scaler.Observed) float64 { return float64(o.InUse) },
	"in_use_each": func(o scaler.Observed) float64 { return float64(o.InUse) / float64(max(o.Ready, 1)) },
	"oldest_wait": func(o scaler.Observed) float64 { return o.OldestWait.Seconds() },
	"rate":        func(o scaler.Observed) float64 { return o.Rate },
	"wait_p50":    func(o scaler.Observed) float64 { return o.Wait(0.5).Seconds() },
	"wait_p95":    func(o scaler.Observed) float64 { return o.Wait(0.95).Seconds() },
	"wait_p99":    func(o scaler.Observed) float64 { return o.Wait(0.99).Seconds() },
}

// CaddyModule returns the Caddy module information.
func (ServiceMetric) CaddyModule() caddy.ModuleInfo {
	return caddy.ModuleInfo{ID: "usher.metrics.service", New: func() caddy.Module { return new(ServiceMetric) }}
}

// Validate checks the values.
func (m *ServiceMetric) Validate() error {
	if serviceMetrics[m.What] == nil {
		return fmt.Errorf("the metric service knows no '%s': use waiting, in_use, in_use_each, oldest_wait, rate, wait_p50, wait_p95 or wait_p99", m.What)
	}
	return m.check()
}

// Read implements scaler.Metric.
func (m *ServiceMetric) Read(_ context.Context, service scaler.Observed) (float64, error) {
	return serviceMetrics[m.What](service), nil
}

// UnmarshalCaddyfile sets up the source from Caddyfile tokens. Syntax:
//
//	metric service <what> {
//		interval <duration>
//	}
func (m *ServiceMetric) UnmarshalCaddyfile(d *caddyfile.Dispenser) error {
	d.Next()
	if !d.NextArg() {
		return d.Err("metric service needs what is measured, such as waiting or rate")
	}
	m.What = d.Val()
	d.Prev()
	return option.Block(d, m.Validate, func() (err error) {
		switch name := d.Val(); name {
		case "interval":
			m.Every, err = positive(d)
			return err
		default:
			return d.Errf("unknown option '%s' of the metric service: use interval", name)
		}
	})
}

func one(d *caddyfile.Dispenser, value *string) error {
	if !d.AllArgs(value) {
		return d.ArgErr()
	}
	return nil
}

func checkURL(s string) error {
	if u, err := url.Parse(s); err != nil || u.Scheme != "http" && u.Scheme != "https" || u.Host == "" {
		return fmt.Errorf("'%s' is not a URL such as http://127.0.0.1:9090", s)
	}
	return nil
}

// maxMetricAnswer bounds what is read of an answer.
const maxMetricAnswer = 1 << 20

// get asks for a document.
func get(ctx context.Context, address string) (body []byte, status int, err error) {
	req, err := http.NewRequestWithContext(ctx, http.MethodGet, address, nil)
	if err != nil {
		return nil, 0, err
	}
	req.Header.Set("User-Agent", "Usher-Metric")
	resp, err := metricClient.Do(req)
	if err != nil {
		return nil, 0, err
	}
	defer resp.Body.Close()
	body, err = io.ReadAll(io.LimitReader(resp.Body, maxMetricAnswer))
	return body, resp.StatusCode, err
}

// metricClient keeps no connections: a source may be gone with the next
// configuration.
var metricClient = &http.Client{Transport: &http.Transport{Proxy: http.ProxyFromEnvironment, DisableKeepAlives: true}}

var (
	_ scaler.Metric = (*PrometheusMetric)(nil)
	_ scaler.Metric = (*HTTPMetric)(nil)
	_ scaler.Metric = (*ServiceMetric)(nil)
)
