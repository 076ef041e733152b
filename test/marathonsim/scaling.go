package marathonsim

import (
	"slices"
)

// victims proposes which instances go when the app is to have n: first those
// named, then those that stand against an even spread, then by condition, and
// at equal condition by the app's kill selection. Health plays no part.
//
// What Marathon has no weight for goes last: an instance that still waits for
// an offer outlives one that serves. So does one that was launched and of which
// Mesos has said nothing yet: the API shows it as TASK_STAGING, but its
// condition is Provisioned. What counts is the condition now, and not what the
// API shows of it.
func (e *engine) victims(app string, n int, named []string) []*instance {
	d := e.root[app]
	var pool []*instance
	for _, i := range e.run(app).instances {
		if i.goal == goalRunning && i.condition != unreachableInactive {
			pool = append(pool, i)
		}
	}
	excess := len(pool) - n
	if excess <= 0 {
		return nil
	}
	var out []*instance
	for _, id := range named {
		for k, i := range pool {
			if i.id == id {
				out = append(out, i)
				pool = slices.Delete(pool, k, k+1)
				break
			}
		}
	}
	if d != nil {
		for len(out) < excess {
			i := e.offBalance(d, pool)
			if i == nil {
				break
			}
			out = append(out, i)
			pool = slices.DeleteFunc(pool, func(o *instance) bool { return o == i })
		}
	}
	slices.SortStableFunc(pool, func(a, b *instance) int {
		if w := killWeight(a) - killWeight(b); w != 0 {
			return w
		}
		order := a.placedAt().Compare(b.placedAt())
		if d != nil && d.killOldest {
			return order
		}
		return -order
	})
	out = append(out, pool...)
	return out[:min(excess, len(out))]
}

func killWeight(i *instance) int {
	switch i.condition {
	case unreachable:
		return 1
	case staging:
		return 2
	case starting:
		return 3
	case running:
		return 4
	}
	return 5
}

// offBalance picks from the largest of the groups that a GROUP_BY constraint
// makes, as long as one is larger than another.
func (e *engine) offBalance(d *definition, pool []*instance) *instance {
	for _, c := range d.constraints {
		if len(c) < 2 || c[1] != "GROUP_BY" {
			continue
		}
		groups := map[string][]*instance{}
		for _, i := range pool {
			if i.task != nil && i.active() {
				v, _ := i.task.agent.attribute(c[0])
				groups[v] = append(groups[v], i)
			}
		}
		var largest []*instance
		least := -1
		for _, k := range sortedKeys(groups) {
			if len(groups[k]) > len(largest) {
				largest = groups[k]
			}
			if least < 0 || len(groups[k]) < least {
				least = len(groups[k])
			}
		}
		if len(groups) > 1 && len(largest) > least {
			return largest[len(largest)-1]
		}
	}
	return nil
}

// scaleCheck brings an app that no deployment holds to its number, in both
// directions. This, and no deployment, replaces what crashed, repairs a wake
// that was forced, and ends what is too much after a partition.
func (e *engine) scaleCheck(app string) {
	d := e.root[app]
	if d == nil || !e.leading || e.locked(app) {
		return
	}
	have := 0
	for _, i := range e.run(app).instances {
		if i.goal == goalRunning && i.condition != unreachableInactive {
			have++
		}
	}
	switch {
	case have < d.instances:
		e.schedule(d, d.instances-have)
	case have > d.instances:
		for _, i := range e.victims(app, d.instances, nil) {
			e.decommission(i)
		}
	}
}
