package hub

import (
	"fmt"
	"time"

	"github.com/caddyserver/caddy/v2"

	"github.com/caddy-usher/usher/scaler"
)

// The greatest numbers that start_limit, max_streams and lb_retries may have.
// The bounds of the other options are those of package scaler.
const (
	MaxStartLimit    = 1000
	MaxStreamsBound  = 100_000
	longestInWords   = "87600h (ten years)"
	MaxRetryAttempts = 1000
)

// CheckDuration returns an error if d, the value of the option, is below 0,
// beyond ten years, or above 0 and too short to be meant.
func CheckDuration(option string, d caddy.Duration) error {
	switch v := time.Duration(d); {
	case v < 0:
		return fmt.Errorf("%s cannot be negative, but is %v", option, v)
	case v > 0 && v < scaler.MinDuration:
		return fmt.Errorf("%s is %v, but must be at least %v", option, v, scaler.MinDuration)
	case v > scaler.MaxDuration:
		return fmt.Errorf("%s is %v, but can be at most %s", option, v, longestInWords)
	}
	return nil
}

// CheckCount returns an error if n, the value of the option, is not between
// least and most.
func CheckCount(option string, n, least, most int) error {
	if n < least || n > most {
		return fmt.Errorf("%s is %d, but must be between %d and %d", option, n, least, most)
	}
	return nil
}
