package hub

import (
	"encoding/json"
	"time"

	"github.com/caddyserver/caddy/v2"

	"github.com/caddy-usher/usher/scaler/policies"
)

// Idle is what an effective configuration says of how long the last instance of
// a service stays without a request.
type Idle struct {
	// Longest is how long it stays at most; 0 is for ever.
	Longest time.Duration

	// Learned is true if it may go earlier: it depends on the requests that
	// have come.
	Learned bool
}

// IdleOf reads it from the effective configuration of a service.
func IdleOf(config json.RawMessage) (Idle, error) {
	var c struct {
		IdleTimeout IdleTimeout `json:"idle_timeout"`
		Scale       struct {
			Policy  string         `json:"policy"`
			MinIdle caddy.Duration `json:"min_idle"`
			MaxIdle caddy.Duration `json:"max_idle"`
		} `json:"scale"`
	}
	if err := json.Unmarshal(config, &c); err != nil {
		return Idle{}, err
	}
	idle := max(0, time.Duration(c.IdleTimeout))
	if idle == 0 || c.Scale.Policy != "adaptive" {
		return Idle{Longest: idle}, nil
	}
	p := policies.Adaptive{MinIdle: time.Duration(c.Scale.MinIdle), MaxIdle: time.Duration(c.Scale.MaxIdle)}
	return Idle{Longest: p.LongestIdle(idle), Learned: true}, nil
}
