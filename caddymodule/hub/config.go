package hub

import (
	"cmp"
	"encoding/json"
	"errors"
	"fmt"
	"net/http"
	"regexp"
	"strconv"
	"strings"
	"time"

	"github.com/caddyserver/caddy/v2"

	"github.com/caddy-usher/usher/reserver"
	"github.com/caddy-usher/usher/scaler"
	"github.com/caddy-usher/usher/scaler/control"
	"github.com/caddy-usher/usher/scaler/policies"
)

// ServiceConfig is the definition of a service: a named workload that runs as any
// number of instances on one backend.
type ServiceConfig struct {
	// What runs the instances. All that stands here shapes an instance: a
	// reload that changes it makes a new revision, whose instances replace
	// those of the old one while they serve.
	BackendRaw json.RawMessage `json:"backend,omitempty" caddy:"namespace=usher.backends inline_key=type"`

	// The bounds for the number of instances of one revision. The maximum
	// counts what exists, as `overlap` says.
	Instances *InstanceBounds `json:"instances,omitempty"`

	// Whether a new instance may start while an old one still stops. `on`:
	// what drains or stops does not count towards the maximum. `off`: it
	// counts until it is gone, requests wait, and a changed backend or a
	// restart stops the old instances first. Default: `off` for local
	// processes with a maximum of 1, since many programs lock a file or a
	// database, and for containers that exist. For other local instances what
	// stops counts, and a changed backend starts its instances beside the old
	// ones; on Kubernetes and
	// Marathon what stops is left to the platform.
	Overlap string `json:"overlap,omitempty"`

	// How many requests one instance may have inside at a time, streams and
	// websockets included: a number, or "unlimited". It is a hard limit.
	// Default: 100.
	Concurrency *Concurrency `json:"concurrency,omitempty"`

	// How long the last instance stays without a request inside or waiting: a
	// duration, or "off". The policy `adaptive` takes it as the worth of a cold
	// start, and the instance may stay shorter or longer. Default: 5m.
	IdleTimeout *IdleTimeout `json:"idle_timeout,omitempty"`

	// How long one instance may take to become ready. Default: 2m.
	StartTimeout caddy.Duration `json:"start_timeout,omitempty"`

	// After how many failed starts in a row the service is failing, from 1 to
	// 1000. Requests that wait are then answered at once, with the reason.
	// Until then they go on waiting, through the pauses of 1s, 2s, 4s ... 1m
	// between the starts. Default: 3.
	StartAttempts *int `json:"start_attempts,omitempty"`

	// How long an instance that takes no new requests may finish those
	// inside before it is stopped. 0 stops it at once. Default: 30s.
	DrainTimeout *caddy.Duration `json:"drain_timeout,omitempty"`

	// The time from the stop signal to the kill, where that is up to the
	// backend. Default: 10s.
	StopTimeout *caddy.Duration `json:"stop_timeout,omitempty"`

	// How many requests may wait in the queue. With 0 no request is held.
	// Default: 1000.
	MaxWaiting *int `json:"max_waiting,omitempty"`

	// How an instance is chosen for a request: `least_loaded`; `oldest`,
	// which packs, so that the younger ones become idle; or `random`, the
	// less loaded of two. Default: `least_loaded`.
	Balance string `json:"balance,omitempty"`

	// How the requests of a session find their instance. Default: there are no
	// sessions, and a request goes to any instance.
	Affinity *Affinity `json:"affinity,omitempty"`

	// How long after its last request a session still counts: an instance with
	// such a session is not stopped just because demand has fallen. A key that
	// was not used for so long is forgotten. It needs `affinity`. Default: 10m.
	SessionTimeout caddy.Duration `json:"session_timeout,omitempty"`

	Together

	// How it is found out that an instance is ready. Default: a TCP connect.
	Ready *Readiness `json:"ready,omitempty"`

	// The policy that turns demand into a number of instances. Default:
	// `adaptive`.
	ScaleRaw json.RawMessage `json:"scale,omitempty" caddy:"namespace=usher.policies inline_key=policy"`

	// The least number of instances at certain hours, beside any policy. Of
	// several that hold at once the highest counts. Default: there are none.
	At []ScheduleWindow `json:"at,omitempty"`

	// How much clients are told about errors: `short`, the class and the
	// short fact; or `full`, with output lines and the platform's messages.
	// Default: `short`.
	ErrorDetail string `json:"error_detail,omitempty"`
}

// InstanceBounds bound the number of instances.
type InstanceBounds struct {
	// The least number of instances, kept even without any request.
	// Default: 0.
	Min int `json:"min,omitempty"`

	// The greatest number of instances. Default: 1, or the minimum if that
	// is greater.
	Max int `json:"max,omitempty"`

	// The least number of instances while the service is awake. Default: 0, as
	// many as the policy wants.
	Awake int `json:"awake,omitempty"`
}

// Concurrency is a number of slots, or Unlimited.
type Concurrency int

// Unlimited is the Concurrency without a limit.
const Unlimited Concurrency = -1

// MarshalJSON writes a number or "unlimited".
func (c Concurrency) MarshalJSON() ([]byte, error) {
	if c == Unlimited {
		return []byte(`"unlimited"`), nil
	}
	return json.Marshal(int(c))
}

// UnmarshalJSON reads a positive number or "unlimited".
func (c *Concurrency) UnmarshalJSON(b []byte) error {
	parsed, err := ParseConcurrency(strings.Trim(string(b), `"`))
	if err != nil {
		return err
	}
	*c = parsed
	return nil
}

// ParseConcurrency reads a number of slots, or `unlimited`.
func ParseConcurrency(s string) (Concurrency, error) {
	if s == "unlimited" {
		return Unlimited, nil
	}
	n, err := strconv.Atoi(s)
	if err != nil && !errors.Is(err, strconv.ErrRange) || n < 1 {
		return 0, fmt.Errorf("concurrency must be a positive number or 'unlimited', not '%s'", s)
	}
	if n > scaler.MaxConcurrency {
		return 0, fmt.Errorf("concurrency is %s, but can be at most %d; 'unlimited' is without a limit", s, scaler.MaxConcurrency)
	}
	return Concurrency(n), nil
}

// IdleTimeout is a duration, or IdleOff.
type IdleTimeout caddy.Duration

// IdleOff is the IdleTimeout that never comes.
const IdleOff IdleTimeout = -1

// MarshalJSON writes a duration or "off".
func (t IdleTimeout) MarshalJSON() ([]byte, error) {
	if t == IdleOff {
		return []byte(`"off"`), nil
	}
	return json.Marshal(time.Duration(t).String())
}

// UnmarshalJSON reads a positive duration or "off".
func (t *IdleTimeout) UnmarshalJSON(b []byte) error {
	if string(b) == `"off"` {
		*t = IdleOff
		return nil
	}
	var d caddy.Duration
	if err := json.Unmarshal(b, &d); err != nil {
		return fmt.Errorf("idle_timeout: %w", err)
	}
	if d <= 0 {
		return fmt.Errorf("idle_timeout must be positive, or 'off'")
	}
	if err := CheckDuration("idle_timeout", d); err != nil {
		return err
	}
	*t = IdleTimeout(d)
	return nil
}

// Readiness is a readiness check.
type Readiness struct {
	// `tcp`: a connection can be made. `http`: a GET is answered with the
	// right status. `platform`: the platform says so; local processes have
	// no platform that could. Default: `tcp`.
	Check string `json:"check,omitempty"`

	// The path of an http check. Default: `/`.
	Path string `json:"path,omitempty"`

	// The pause between probes; the first pauses are shorter, from 1ms.
	// Default: a sixteenth of the time that has passed, from 1ms to 5ms, and
	// 50ms after 10s.
	Interval caddy.Duration `json:"interval,omitempty"`

	// How long one probe may take. Default: 1s for tcp, 5s for http.
	Timeout caddy.Duration `json:"timeout,omitempty"`

	// The status that means ready in an http check; a single digit stands
	// for its class. Default: any 2xx or 3xx.
	Status int `json:"status,omitempty"`

	// Headers that an http check sends.
	Headers http.Header `json:"headers,omitempty"`

	// The Host that an http check sends. Default: the instance's address.
	Host string `json:"host,omitempty"`

	// `http` or `https`; a certificate is not verified. Default: `http`.
	Scheme string `json:"scheme,omitempty"`
}

var serviceName = regexp.MustCompile(`^[a-z0-9][a-z0-9._-]{0,62}$`)

// CheckName returns an error if name cannot be the name of a service.
func CheckName(name string) error {
	if !serviceName.MatchString(name) {
		return fmt.Errorf("'%s' is not a service name: at most 63 of a-z, 0-9, '.', '_' and '-', the first a letter or digit", name)
	}
	return nil
}

const (
	defaultConcurrency  = 100
	defaultStartTimeout = 2 * time.Minute
	maxStartAttempts    = 1000
	defaultDrainTimeout = 30 * time.Second
	defaultStopTimeout  = 10 * time.Second
	defaultMaxWaiting   = 1000
	DefaultWaitTimeout  = time.Minute
	defaultTCPProbe     = time.Second
	defaultHTTPProbe    = 5 * time.Second

	// The values of error_detail.
	DetailShort = "short"
	DetailFull  = "full"
)

// Defaulted returns p, or a pointer to value if p is nil.
func Defaulted[T any](p *T, value T) *T {
	if p == nil {
		return &value
	}
	return p
}

// WithDefaults returns a copy of s in which every option is set.
func (s ServiceConfig) WithDefaults() ServiceConfig {
	bounds := InstanceBounds{Max: 1}
	if s.Instances != nil {
		bounds = *s.Instances
		if bounds.Max == 0 {
			bounds.Max = max(bounds.Min, 1)
		}
	}
	s.Instances = &bounds
	s.Concurrency = Defaulted(s.Concurrency, defaultConcurrency)
	s.IdleTimeout = Defaulted(s.IdleTimeout, IdleTimeout(policies.DefaultIdleTimeout))
	if s.StartTimeout == 0 {
		s.StartTimeout = caddy.Duration(defaultStartTimeout)
	}
	s.StartAttempts = Defaulted(s.StartAttempts, control.DefaultStartAttempts)
	s.DrainTimeout = Defaulted(s.DrainTimeout, caddy.Duration(defaultDrainTimeout))
	s.StopTimeout = Defaulted(s.StopTimeout, caddy.Duration(defaultStopTimeout))
	s.MaxWaiting = Defaulted(s.MaxWaiting, defaultMaxWaiting)
	if s.Balance == "" {
		s.Balance = BalanceNames[reserver.LeastLoaded]
	}
	if s.Affinity != nil {
		s.Affinity = s.Affinity.withDefaults()
		s.SessionTimeout = cmp.Or(s.SessionTimeout, caddy.Duration(defaultSessionTimeout))
	}
	ready := Readiness{}
	if s.Ready != nil {
		ready = *s.Ready
	}
	if ready.Check == "" {
		ready.Check = CheckNames[control.CheckTCP]
	}
	if ready.Check == CheckNames[control.CheckHTTP] {
		ready.Path, ready.Scheme = cmp.Or(ready.Path, "/"), cmp.Or(ready.Scheme, "http")
		ready.Timeout = cmp.Or(ready.Timeout, caddy.Duration(defaultHTTPProbe))
	} else if ready.Check == CheckNames[control.CheckTCP] {
		ready.Timeout = cmp.Or(ready.Timeout, caddy.Duration(defaultTCPProbe))
	}
	s.Ready = &ready
	if len(s.ScaleRaw) == 0 {
		s.ScaleRaw = json.RawMessage(`{"policy":"` + policies.DefaultName + `"}`)
	}
	if s.ErrorDetail == "" {
		s.ErrorDetail = DetailShort
	}
	return s
}

// The words of the configuration for the options that have a few values.
var (
	BalanceNames = map[reserver.Balance]string{
		reserver.LeastLoaded: "least_loaded", reserver.Oldest: "oldest", reserver.Random: "random",
	}
	OverlapNames = map[control.Overlap]string{
		control.OverlapDefault: "", control.OverlapOn: "on", control.OverlapOff: "off",
	}
	CheckNames = map[control.CheckKind]string{
		control.CheckTCP: "tcp", control.CheckHTTP: "http", control.CheckPlatform: "platform",
	}
)

// ByName returns what has that name.
func ByName[K comparable](names map[K]string, name string) (K, bool) {
	for k, n := range names {
		if n == name {
			return k, true
		}
	}
	var zero K
	return zero, false
}

var errNoBackend = errors.New("no backend: say what runs its instances")

// Validate checks every value of s, in which every option is set.
func (s ServiceConfig) Validate() error {
	if len(s.BackendRaw) == 0 {
		return errNoBackend
	}
	return s.validateOptions()
}

// validateOptions is validate without the backend.
func (s ServiceConfig) validateOptions() error {
	if s.Instances.Min < 0 {
		return fmt.Errorf("instances: the minimum is %d, but cannot be negative", s.Instances.Min)
	}
	if s.Instances.Max < 1 {
		return fmt.Errorf("instances: the maximum is %d, but must be at least 1", s.Instances.Max)
	}
	if s.Instances.Min > s.Instances.Max {
		return fmt.Errorf("instances: the minimum %d is greater than the maximum %d", s.Instances.Min, s.Instances.Max)
	}
	if s.Instances.Max > scaler.MaxInstances {
		return fmt.Errorf("instances: the maximum is %d, but can be at most %d", s.Instances.Max, scaler.MaxInstances)
	}
	if _, ok := ByName(OverlapNames, s.Overlap); !ok {
		return fmt.Errorf("overlap '%s' is unknown: use on or off", s.Overlap)
	}
	if s.StartTimeout < 0 {
		return fmt.Errorf("start_timeout must be positive, not %v", time.Duration(s.StartTimeout))
	}
	if err := CheckStartAttempts(*s.StartAttempts); err != nil {
		return err
	}
	for _, option := range []struct {
		name  string
		value caddy.Duration
	}{
		{"start_timeout", s.StartTimeout}, {"drain_timeout", *s.DrainTimeout}, {"stop_timeout", *s.StopTimeout},
	} {
		if err := CheckDuration(option.name, option.value); err != nil {
			return err
		}
	}
	// A value that was not read, but made, is checked here alone.
	if c := int(*s.Concurrency); *s.Concurrency != Unlimited && (c < 1 || c > scaler.MaxConcurrency) {
		return fmt.Errorf("concurrency is %d, but must be between 1 and %d, or unlimited", c, scaler.MaxConcurrency)
	}
	if *s.IdleTimeout != IdleOff {
		if err := CheckDuration("idle_timeout", caddy.Duration(*s.IdleTimeout)); err != nil {
			return err
		}
	}
	if *s.MaxWaiting < 0 {
		return fmt.Errorf("max_waiting cannot be negative, but is %d; 0 means that no request is held", *s.MaxWaiting)
	}
	if err := CheckCount("max_waiting", *s.MaxWaiting, 0, scaler.MaxWaiting); err != nil {
		return err
	}
	if _, ok := ByName(BalanceNames, s.Balance); !ok {
		return fmt.Errorf("balance '%s' is unknown: use least_loaded, oldest or random", s.Balance)
	}
	if err := s.validateSessions(); err != nil {
		return err
	}
	if err := s.validateTogether(); err != nil {
		return err
	}
	if s.ErrorDetail != DetailShort && s.ErrorDetail != DetailFull {
		return fmt.Errorf("error_detail '%s' is unknown: use short or full", s.ErrorDetail)
	}
	return s.Ready.Validate()
}

func (s ServiceConfig) validateSessions() error {
	switch {
	case s.Affinity == nil && s.SessionTimeout != 0:
		return errors.New("session_timeout has no effect without affinity: add affinity, or leave it out")
	case s.SessionTimeout < 0:
		return fmt.Errorf("session_timeout must be positive, not %v", time.Duration(s.SessionTimeout))
	case s.Affinity == nil:
		return nil
	}
	if err := CheckDuration("session_timeout", s.SessionTimeout); err != nil {
		return err
	}
	return s.Affinity.validate()
}

// CheckStartAttempts returns an error if n cannot be start_attempts.
func CheckStartAttempts(n int) error {
	if n < 1 || n > maxStartAttempts {
		return fmt.Errorf("start_attempts must be from 1 to %d, not %d", maxStartAttempts, n)
	}
	return nil
}

// Validate returns an error if r is no readiness check.
func (r Readiness) Validate() error {
	kind, ok := ByName(CheckNames, r.Check)
	if !ok {
		return fmt.Errorf("ready: the check '%s' is unknown: use tcp, http or platform", r.Check)
	}
	if kind != control.CheckHTTP && (r.Path != "" || r.Status != 0 || len(r.Headers) > 0 || r.Host != "" || r.Scheme != "") {
		return fmt.Errorf("ready: path, status, header, host and scheme belong to the http check, not to %s", r.Check)
	}
	if kind == control.CheckPlatform && (r.Interval != 0 || r.Timeout != 0) {
		return fmt.Errorf("ready: the platform's word is watched; it has no interval and no timeout")
	}
	if err := CheckDuration("interval", r.Interval); err != nil {
		return fmt.Errorf("ready: %w", err)
	}
	if err := CheckDuration("timeout", r.Timeout); err != nil {
		return fmt.Errorf("ready: %w", err)
	}
	if r.Path != "" && !strings.HasPrefix(r.Path, "/") {
		return fmt.Errorf("ready: the path '%s' must begin with '/'", r.Path)
	}
	if r.Scheme != "" && r.Scheme != "http" && r.Scheme != "https" {
		return fmt.Errorf("ready: the scheme '%s' is unknown: use http or https", r.Scheme)
	}
	if r.Status != 0 && (r.Status < 1 || r.Status > 599 || r.Status > 5 && r.Status < 100) {
		return fmt.Errorf("ready: %d is not a status", r.Status)
	}
	return nil
}

// reserving returns what the reserver needs of s.
func (s ServiceConfig) reserving() reserver.Options {
	balance, _ := ByName(BalanceNames, s.Balance)
	return reserver.Options{MaxWaiting: *s.MaxWaiting, Balance: balance, SessionTimeout: time.Duration(s.SessionTimeout), MaxRequests: s.MaxRequests}
}

// ProbesHTTP says whether instances are probed by HTTP. Every option of s is set.
func (s ServiceConfig) ProbesHTTP() bool { return s.Ready.Check == CheckNames[control.CheckHTTP] }

// settings returns what the control loop needs of s.
func (s ServiceConfig) settings(policy scaler.Policy) control.Settings {
	kind, _ := ByName(CheckNames, s.Ready.Check)
	overlap, _ := ByName(OverlapNames, s.Overlap)
	set := control.Settings{
		Overlap: overlap,
		Awake:   s.Instances.Awake, MaxAge: time.Duration(s.MaxAge), Busy: s.Busy.settings(),
		Min: s.Instances.Min, Max: s.Instances.Max,
		IdleTimeout:  time.Duration(*s.IdleTimeout),
		StartTimeout: time.Duration(s.StartTimeout), StartAttempts: *s.StartAttempts,
		DrainTimeout: time.Duration(*s.DrainTimeout),
		StopTimeout:  time.Duration(*s.StopTimeout),
		Policy:       policy,
		Check: control.Check{
			Kind: kind, Path: s.Ready.Path, Host: s.Ready.Host, Scheme: s.Ready.Scheme, Header: s.Ready.Headers,
			Status: s.Ready.Status, Interval: time.Duration(s.Ready.Interval), Timeout: time.Duration(s.Ready.Timeout),
		},
	}
	if *s.Concurrency != Unlimited {
		set.Concurrency = int(*s.Concurrency)
	}
	if s.MaxRequests == 1 {
		// More slots are never used. They would be counted as room for requests that
		// wait, and could be given to several Caddys of a cluster, for a request each.
		set.Concurrency = 1
	}
	if *s.IdleTimeout == IdleOff {
		set.IdleTimeout = 0
	}
	return set
}
