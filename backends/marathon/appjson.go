package marathon

import (
	"encoding/json"
	"slices"
	"time"

	gomarathon "github.com/gambol99/go-marathon"
)

// appJSON is what is read of an app. It is not go-marathon's Application,
// which has neither `networks` nor `container.portMappings`, so that ports of
// containers cannot be resolved with it, and which refuses an app with a
// secret in its environment, of whose definition nothing is needed here. Tasks
// and failures are go-marathon's.
type appJSON struct {
	ID              string                      `json:"id"`
	Instances       int                         `json:"instances"`
	Version         string                      `json:"version"`
	VersionInfo     *gomarathon.VersionInfo     `json:"versionInfo"`
	Networks        []networkJSON               `json:"networks"`
	PortDefinitions []portDefinitionJSON        `json:"portDefinitions"`
	Container       *containerJSON              `json:"container"`
	IPAddress       *ipAddressJSON              `json:"ipAddress"` // up to 1.4
	HealthChecks    []json.RawMessage           `json:"healthChecks"`
	Tasks           tasksJSON                   `json:"tasks"`
	LastTaskFailure *gomarathon.LastTaskFailure `json:"lastTaskFailure"`
	Deployments     []struct {
		ID string `json:"id"`
	} `json:"deployments"`
}

// tasksJSON is a list of tasks. An entry that is none is left out, and of
// entries with one id all but the first.
type tasksJSON []*gomarathon.Task

// UnmarshalJSON implements json.Unmarshaler.
func (t *tasksJSON) UnmarshalJSON(text []byte) error {
	var all []*gomarathon.Task
	if err := json.Unmarshal(text, &all); err != nil {
		return err
	}
	listed := make(map[string]bool, len(all))
	*t = slices.DeleteFunc(all, func(one *gomarathon.Task) bool {
		if one == nil || one.ID == "" || listed[one.ID] {
			return true
		}
		listed[one.ID] = true
		return false
	})
	return nil
}

type networkJSON struct {
	Mode string `json:"mode"`
}

type portDefinitionJSON struct {
	Name string `json:"name"`
}

type containerJSON struct {
	PortMappings []portMappingJSON `json:"portMappings"`
	Docker       *struct {
		Network      string            `json:"network"`      // up to 1.4
		PortMappings []portMappingJSON `json:"portMappings"` // up to 1.4
	} `json:"docker"`
}

// portMappingJSON tells a mapping without a port of the host from one where
// it is 0, which stands for any: only the latter have a place among the ports
// of a task.
type portMappingJSON struct {
	ContainerPort int    `json:"containerPort"`
	HostPort      *int   `json:"hostPort"`
	Name          string `json:"name"`
}

type ipAddressJSON struct {
	Discovery *struct {
		Ports []struct {
			Number int    `json:"number"`
			Name   string `json:"name"`
		} `json:"ports"`
	} `json:"discovery"`
}

// deploymentJSON is what is read of a deployment. go-marathon's Deployment has steps only
// if its client has read it.
type deploymentJSON struct {
	ID    string     `json:"id"`
	Steps []stepJSON `json:"steps"`
}

// stepJSON is a step of a deployment: an object with actions, or before 1.0 the actions
// alone.
type stepJSON struct{ gomarathon.StepActions }

// UnmarshalJSON implements json.Unmarshaler.
func (s *stepJSON) UnmarshalJSON(text []byte) error {
	if text[0] == '[' {
		return json.Unmarshal(text, &s.Actions)
	}
	return json.Unmarshal(text, &s.StepActions)
}

// queueJSON is what is read of the launch queue. go-marathon's Queue has no
// reasons for which offers were declined, and shows a pod as an app without a
// name.
type queueJSON struct {
	Queue []queueItemJSON `json:"queue"`
}

type queueItemJSON struct {
	Count int `json:"count"`
	Delay struct {
		TimeLeftSeconds int  `json:"timeLeftSeconds"`
		Overdue         bool `json:"overdue"`
	} `json:"delay"`
	Since     string `json:"since"`
	Processed struct {
		Processed int `json:"processedOffersCount"`
		Unused    int `json:"unusedOffersCount"`
		Last      []struct {
			Reason    string `json:"reason"`
			Declined  int    `json:"declined"`
			Processed int    `json:"processed"`
		} `json:"rejectSummaryLastOffers"`
	} `json:"processedOffersSummary"`
	App *struct {
		ID string `json:"id"`
	} `json:"app"`
}

// The states of a task.
const (
	taskStaging     = "TASK_STAGING"
	taskStarting    = "TASK_STARTING"
	taskRunning     = "TASK_RUNNING"
	taskKilling     = "TASK_KILLING"
	taskKilled      = "TASK_KILLED"
	taskFinished    = "TASK_FINISHED"
	taskFailed      = "TASK_FAILED"
	taskError       = "TASK_ERROR"
	taskDropped     = "TASK_DROPPED"
	taskGone        = "TASK_GONE"
	taskLost        = "TASK_LOST"
	taskUnreachable = "TASK_UNREACHABLE"
)

// over says whether a state is the end of a task. A task that is lost or gone
// can come back.
func over(state string) bool {
	switch state {
	case taskKilled, taskFinished, taskFailed, taskError, taskDropped:
		return true
	}
	return false
}

// lost says whether Mesos has lost sight of a task.
func lost(state string) bool {
	switch state {
	case taskUnreachable, taskLost, taskGone:
		return true
	}
	return false
}

// when reads a time of Marathon's, the zero time if it is none.
func when(text string) time.Time {
	t, err := time.Parse(time.RFC3339Nano, text)
	if err != nil {
		return time.Time{}
	}
	return t
}
