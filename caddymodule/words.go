package caddymodule

import (
	"fmt"
	"strings"
	"time"

	"github.com/caddy-usher/usher/scaler"
)

// input returns a number by which a decision was made. It may come from the
// loop or, decoded, from the admin API.
func input(d scaler.Decision, name string) (int, bool) {
	switch v := d.Inputs[name].(type) {
	case int:
		return v, true
	case int64:
		return int(v), true
	case float64:
		return int(v), true
	}
	return 0, false
}

// circumstances says in words what was so when a decision was made.
func circumstances(d scaler.Decision) string {
	var parts []string
	say := func(name string, words func(n int) string) {
		if n, ok := input(d, name); ok {
			if w := words(n); w != "" {
				parts = append(parts, w)
			}
		}
	}
	inUse, _ := input(d, "in_use")
	say("waiting", func(waiting int) string {
		switch {
		case inUse+waiting == 0:
			return "no request was inside or waiting"
		case waiting == 0:
			return several(inUse, "request") + was(inUse) + "inside"
		case inUse == 0:
			return several(waiting, "request") + was(waiting) + "waiting"
		}
		return fmt.Sprintf("%s%sinside and %d waiting", several(inUse, "request"), was(inUse), waiting)
	})
	say("guests", func(n int) string {
		if n == 0 {
			return ""
		}
		return fmt.Sprintf("%d%swaiting in a browser", n, was(n))
	})
	say("idle_ms", func(ms int) string {
		if idle := time.Duration(ms) * time.Millisecond; idle >= time.Second && idle < 10*365*24*time.Hour {
			return "the last one ended " + short(idle) + " before"
		}
		return ""
	})
	say("ready", func(n int) string {
		if n == 0 {
			return "no instance was ready"
		}
		return several(n, "instance") + was(n) + "ready"
	})
	say("concurrency", func(n int) string {
		if n == 0 {
			return "an instance takes any number"
		}
		return "an instance takes " + several(n, "request")
	})
	say("max", func(highest int) string {
		lowest, _ := input(d, "min")
		return fmt.Sprintf("%d to %d are allowed", lowest, highest)
	})
	say("failures", func(n int) string {
		if n == 0 {
			return ""
		}
		return several(n, "start") + " in a row had failed"
	})
	return strings.Join(parts, ", ")
}

func several(n int, what string) string {
	if n == 1 {
		return "1 " + what
	}
	return fmt.Sprintf("%d %ss", n, what)
}

func was(n int) string {
	if n == 1 {
		return " was "
	}
	return " were "
}
