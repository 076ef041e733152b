package marathonsim

import (
	"fmt"
	"slices"
	"time"
)

// A profile is what differs between the versions of Marathon, as far as a
// client that scales apps can notice.
type profile struct {
	name    string
	version string

	// Since 1.8 an instance is stable and a task is one incarnation of it,
	// "web.instance-<uuid>._app.<n>"; before, each task was a new instance
	// with an id of its own, "web.<uuid>", and nothing of a dead one stayed
	// in the lists.
	incarnations bool

	redirectEvents  bool // standbys answer /v2/events with 302 instead of proxying
	networks        bool // networks[] and container.portMappings
	heavyPlans      bool // plans in events carry original and target, unless asked to be light
	lightOnly       bool // plan-format is ignored
	unknownURI      int  // status of an address that does not exist
	typeErrors      int  // status of well-formed JSON of the wrong types
	maxLaunchDelay  time.Duration
	reviveInterval  time.Duration
	tasksStatsField string
	slowConsumer    bool // a consumer that falls 1024 events behind is disconnected
}

var profiles = []profile{
	{
		name: "1.4", version: "1.4.13", heavyPlans: true, unknownURI: 404, typeErrors: 400,
		maxLaunchDelay: time.Hour, reviveInterval: 5 * time.Second, tasksStatsField: "taskStats",
	},
	{
		name: "1.5", version: "1.5.16", networks: true, heavyPlans: true, unknownURI: 404, typeErrors: 422,
		maxLaunchDelay: time.Hour, reviveInterval: 5 * time.Second, tasksStatsField: "taskStats",
	},
	{
		name: "1.6", version: "1.6.610", networks: true, heavyPlans: true, unknownURI: 500, typeErrors: 422,
		maxLaunchDelay: time.Hour, reviveInterval: 5 * time.Second, tasksStatsField: "taskStats",
	},
	{
		name: "1.7", version: "1.7.216", networks: true, redirectEvents: true, unknownURI: 500, typeErrors: 422,
		maxLaunchDelay: time.Hour, reviveInterval: 5 * time.Second, tasksStatsField: "taskStats",
	},
	{
		name: "1.8", version: "1.8.244", networks: true, redirectEvents: true, unknownURI: 500, typeErrors: 422,
		incarnations: true, lightOnly: true, slowConsumer: true,
		maxLaunchDelay: 5 * time.Minute, reviveInterval: 30 * time.Second, tasksStatsField: "taskStats",
	},
	{
		name: "1.9", version: "1.9.124", networks: true, redirectEvents: true, unknownURI: 500, typeErrors: 422,
		incarnations: true, lightOnly: true, slowConsumer: true,
		maxLaunchDelay: 5 * time.Minute, reviveInterval: 5 * time.Second, tasksStatsField: "tasksStats",
	},
}

// Profiles names the versions of Marathon that can be simulated.
func Profiles() []string {
	var names []string
	for _, p := range profiles {
		names = append(names, p.name)
	}
	return names
}

func findProfile(name string) (profile, error) {
	if name == "" {
		return profiles[len(profiles)-1], nil
	}
	i := slices.IndexFunc(profiles, func(p profile) bool { return p.name == name })
	if i < 0 {
		return profile{}, fmt.Errorf("marathonsim: no profile %q; there are %v", name, Profiles())
	}
	return profiles[i], nil
}
