package chaos

import (
	"cmp"
	"fmt"
	"math/rand/v2"
	"slices"
	"strings"
	"time"
)

// An action is what a step does.
type action string

// The actions. Those in pairs are planned together.
const (
	killInstance   action = "kill an instance"
	exitInstance   action = "let an instance exit with status 0"
	stopInstance   action = "stop an instance (SIGSTOP)"
	contInstances  action = "continue the stopped instances"
	deafenInstance action = "let an instance refuse connections"
	slowDown       action = "answer slowly"
	speedUp        action = "answer fast again"
	breakStarts    action = "let starts fail"
	mendStarts     action = "let starts succeed again"

	reloadSame   action = "reload the same configuration"
	reloadLimits action = "reload with other limits"
	reloadNew    action = "reload with another revision"
	reloadBad    action = "load a bad configuration"
	removeIt     action = "reload without the service"
	bringItBack  action = "reload with the service again"
	narrowPorts  action = "reload with hardly any ports"
	widenPorts   action = "reload with ports enough"

	suspendIt      action = "suspend"
	resumeIt       action = "resume"
	sleepIt        action = "put to sleep"
	wakeIt         action = "wake"
	restartIt      action = "restart"
	deleteInstance action = "delete an instance"

	killCaddy action = "kill Caddy and start it again"
	stopCaddy action = "stop Caddy and start it again"

	fewFiles    action = "leave Caddy hardly any file descriptors"
	enoughFiles action = "give Caddy its file descriptors back"
)

// A step is one disturbance.
type step struct {
	at      time.Duration
	do      action
	service string // of the services that are disturbed, if it is about one
	n       int    // which instance, which bad configuration, how many files
	limits  limits
}

func (s step) String() string {
	text := fmt.Sprintf("%7.3fs %s", s.at.Seconds(), s.do)
	if s.service != "" {
		text += ", " + s.service
	}
	switch s.do {
	case killInstance, exitInstance, stopInstance, deafenInstance, deleteInstance, reloadBad, breakStarts, fewFiles:
		text += fmt.Sprintf(" #%d", s.n)
	}
	if s.do == reloadLimits || s.do == reloadBad {
		text += " " + s.limits.String()
	}
	return text
}

// A kind is a disturbance with how often it is drawn, and how it ends.
type kind struct {
	weight   int
	do, undo action
	from, to time.Duration // how long until undo
	one      bool          // concerns one service
}

// A profile is what may happen in a round.
type profile struct {
	pause time.Duration // between two disturbances, on average
	kinds []kind
}

// everything is the round in which all goes wrong but the machine's file
// descriptors.
var everything = profile{
	pause: 220 * time.Millisecond,
	kinds: []kind{
		{weight: 10, do: killInstance, one: true},
		{weight: 4, do: exitInstance, one: true},
		{weight: 6, do: stopInstance, undo: contInstances, from: 100 * time.Millisecond, to: 2 * time.Second, one: true},
		{weight: 5, do: deafenInstance, one: true},
		{weight: 4, do: slowDown, undo: speedUp, from: 300 * time.Millisecond, to: 2 * time.Second, one: true},
		{weight: 4, do: breakStarts, undo: mendStarts, from: 300 * time.Millisecond, to: 3 * time.Second, one: true},
		{weight: 4, do: reloadSame},
		{weight: 10, do: reloadLimits, one: true},
		{weight: 4, do: reloadNew, one: true},
		{weight: 6, do: reloadBad, one: true},
		{weight: 2, do: removeIt, undo: bringItBack, from: 100 * time.Millisecond, to: 2 * time.Second, one: true},
		{weight: 1, do: narrowPorts, undo: widenPorts, from: time.Second, to: 3 * time.Second},
		{weight: 4, do: suspendIt, undo: resumeIt, from: 100 * time.Millisecond, to: 2 * time.Second, one: true},
		{weight: 3, do: sleepIt, one: true},
		{weight: 3, do: wakeIt, one: true},
		{weight: 3, do: restartIt, one: true},
		{weight: 6, do: deleteInstance, one: true},
		{weight: 2, do: killCaddy},
		{weight: 1, do: stopCaddy},
	},
}

// shortage is the round in which Caddy has too few file descriptors.
var shortage = profile{
	pause: 400 * time.Millisecond,
	kinds: []kind{
		{weight: 6, do: fewFiles, undo: enoughFiles, from: 300 * time.Millisecond, to: 2 * time.Second},
		{weight: 4, do: killInstance, one: true},
		{weight: 3, do: sleepIt, one: true},
		{weight: 2, do: restartIt, one: true},
		{weight: 2, do: reloadSame},
	},
}

// newPlan draws the disturbances of a run.
func newPlan(rng *rand.Rand, p profile, length time.Duration) []step {
	total := 0
	for _, k := range p.kinds {
		total += k.weight
	}
	var plan []step
	// What is undone cannot be done again meanwhile.
	busy := make(map[string]time.Duration)
	for at := p.pause; at < length; at += p.pause/2 + time.Duration(rng.Int64N(int64(p.pause))) {
		n := rng.IntN(total)
		var k kind
		for _, k = range p.kinds {
			if n -= k.weight; n < 0 {
				break
			}
		}
		s := step{at: at, do: k.do, n: rng.IntN(8)}
		if k.one {
			s.service = disturbed[rng.IntN(len(disturbed))]
		}
		s.limits = drawLimits(rng)
		until := at + k.from
		if k.to > k.from {
			until += time.Duration(rng.Int64N(int64(k.to - k.from)))
		}
		key := string(k.do) + s.service
		if k.undo == "" {
			plan = append(plan, s)
		} else if at >= busy[key] {
			busy[key] = until
			plan = append(plan, s, step{at: until, do: k.undo, service: s.service})
		}
	}
	slices.SortStableFunc(plan, func(a, b step) int { return cmp.Compare(a.at, b.at) })
	return plan
}

func printPlan(plan []step) string {
	var b strings.Builder
	for _, s := range plan {
		fmt.Fprintln(&b, s)
	}
	return b.String()
}
