package hub

import (
	"fmt"
	"strings"
	"time"

	"github.com/caddy-usher/usher/scaler/control"
)

// input returns a number by which a decision was made. It may come from the
// loop or, decoded, from the admin API.
func input(d control.Decision, name string) (int, bool) {
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

// Circumstances says in words what was so when a decision was made.
func Circumstances(d control.Decision) string {
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
			return Several(inUse, "request") + was(inUse) + "inside"
		case inUse == 0:
			return Several(waiting, "request") + was(waiting) + "waiting"
		}
		return fmt.Sprintf("%s%sinside and %d waiting", Several(inUse, "request"), was(inUse), waiting)
	})
	say("visitors", func(n int) string {
		if n == 0 {
			return ""
		}
		return fmt.Sprintf("%d%swaiting in a browser or as a stored request", n, was(n))
	})
	say("idle_ms", func(ms int) string {
		if idle := time.Duration(ms) * time.Millisecond; idle >= time.Second && idle < 10*365*24*time.Hour {
			return "the last one ended " + Short(idle) + " before"
		}
		return ""
	})
	say("ready", func(n int) string {
		if n == 0 {
			return "no instance was ready"
		}
		return Several(n, "instance") + was(n) + "ready"
	})
	say("concurrency", func(n int) string {
		if n == 0 {
			return "an instance takes any number"
		}
		return "an instance takes " + Several(n, "request")
	})
	say("max", func(highest int) string {
		lowest, _ := input(d, "min")
		return fmt.Sprintf("%d to %d are allowed", lowest, highest)
	})
	say("failures", func(n int) string {
		if n == 0 {
			return ""
		}
		return Several(n, "start") + " in a row had failed"
	})
	return strings.Join(parts, ", ")
}

// Several is a number of things: "1 request", "2 requests".
func Several(n int, what string) string {
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

// Short is a duration with two digits that matter.
func Short(d time.Duration) string {
	switch {
	case d < time.Second:
		return fmt.Sprintf("%dms", d.Milliseconds())
	case d < 10*time.Second:
		return fmt.Sprintf("%.1fs", d.Seconds())
	case d < time.Minute:
		return fmt.Sprintf("%ds", int(d.Seconds()))
	case d < time.Hour:
		return strings.TrimSuffix(fmt.Sprintf("%dm%02ds", int(d.Minutes()), int(d.Seconds())%60), "00s")
	case d < 48*time.Hour:
		return strings.TrimSuffix(fmt.Sprintf("%dh%02dm", int(d.Hours()), int(d.Minutes())%60), "00m")
	}
	return fmt.Sprintf("%dd", int(d.Hours()/24))
}
