package kubernetes

import (
	"fmt"
	"net"
	"strconv"
	"strings"
	"time"

	"github.com/caddy-usher/usher/scaler"
)

// finished tells whether p will never run again.
func (p *pod) finished() bool { return p.phase == "Succeeded" || p.phase == "Failed" }

// live tells whether p counts as a replica of its workload.
func (p *pod) live() bool { return !p.deleting && !p.finished() }

// servingPort finds the port of p that serves: by its number, its name, or,
// where none is named, the first that is declared. The containers are those
// that declare it; none if none does.
func (p *pod) servingPort(wanted string) (number int, declaring []string, ok bool) {
	n, isNumber := portNumber(wanted)
	for _, c := range p.containers {
		for _, pt := range c.ports {
			switch {
			case isNumber && pt.number != n, !isNumber && wanted != "" && pt.name != wanted:
				continue
			case wanted == "" && (!pt.tcp || c.init):
				continue
			}
			return pt.number, []string{c.name}, true
		}
	}
	return n, nil, isNumber
}

// address returns where p serves, empty where that is not known yet.
func (p *pod) address(wanted string) (string, *scaler.Failure) {
	n, _, ok := p.servingPort(wanted)
	switch {
	case !ok && wanted == "":
		return "", &scaler.Failure{
			Reason: scaler.ReasonNotFound, ForGood: true, Short: "the pod declares no port",
			Detail: fmt.Sprintf("pod %s: no container declares a TCP port; say which one serves with the option port of the backend", p.name),
		}
	case !ok:
		return "", &scaler.Failure{
			Reason: scaler.ReasonNotFound, ForGood: true, Short: "the pod has no port " + wanted,
			Detail: fmt.Sprintf("pod %s: no container declares a port of the name %s; correct the option port of the backend, or the pod template", p.name, wanted),
		}
	case p.ip == "", n < 1, n > 65535:
		return "", nil
	}
	return net.JoinHostPort(p.ip, strconv.Itoa(n)), nil
}

// run counts how often the container that serves was begun again, and tells how
// the run before ended and since when it is in this one. Where no container
// declares the port, all count.
func (p *pod) run(wanted string) (n int, before *termination, since time.Time) {
	_, declaring, _ := p.servingPort(wanted)
	for _, c := range p.containers {
		if c.init && declaring == nil || declaring != nil && c.name != declaring[0] {
			continue
		}
		st := c.status
		n += st.restarts
		end := st.last
		switch {
		case st.terminated != nil:
			// The next run is another instance, and it is the one to wait for.
			n++
			end = st.terminated
		case st.waiting != nil && st.last != nil:
			n++
		}
		if end != nil {
			before, since = end, end.at
		}
		if st.restarts > 0 && st.started.After(since) {
			since = st.started
		}
	}
	if n == 0 || since.IsZero() {
		since = p.created
	}
	return n, before, since
}

// id names the instance that p is in its nth run.
func (p *pod) id(n int, suffix string) string {
	uid := strings.ReplaceAll(p.uid, "-", "")
	id := p.name + "." + uid[:min(8, len(uid))]
	if n > 0 {
		id += ".run" + strconv.Itoa(n+1)
	}
	return id + suffix
}

// instance describes p.
func (p *pod) instance(wanted, suffix string) scaler.Instance {
	n, _, since := p.run(wanted)
	in := scaler.Instance{ID: p.id(n, suffix), Since: since, StopRank: p.stopRank()}
	address, fault := p.address(wanted)
	if address != "" {
		in.Network, in.Address = "tcp", address
	}
	switch {
	case p.deleting:
		in.Phase = scaler.PhaseStopping
		return in
	case p.ready:
		in.Phase = scaler.PhaseReady
	}
	if in.Failure = p.failure(); in.Failure == nil {
		in.Failure = fault
	}
	in.Delay = p.delay()
	return in
}

// stopRank is the place of p in the order in which a StatefulSet stops its
// pods: from the highest ordinal down. Others have none.
func (p *pod) stopRank() int {
	if p.owner.kind != "StatefulSet" {
		return 0
	}
	n, err := strconv.Atoi(p.name[strings.LastIndexByte(p.name, '-')+1:])
	if err != nil {
		return 0
	}
	return n + 1
}

// The reasons of the kubelet for a container that waits, as far as they will
// not pass by themselves.
var waitingReasons = map[string]struct {
	reason  scaler.Reason
	forGood bool
}{
	// The first failure to pull may be a hiccup; the back-off comes after more.
	"ErrImagePull":               {scaler.ReasonImage, false},
	"RegistryUnavailable":        {scaler.ReasonImage, false},
	"ImagePullBackOff":           {scaler.ReasonImage, true},
	"InvalidImageName":           {scaler.ReasonImage, true},
	"ErrImageNeverPull":          {scaler.ReasonImage, true},
	"ImageInspectError":          {scaler.ReasonImage, true},
	"SignatureValidationFailed":  {scaler.ReasonImage, true},
	"CrashLoopBackOff":           {scaler.ReasonCrashLoop, true},
	"CreateContainerConfigError": {scaler.ReasonExec, true},
	"CreateContainerError":       {scaler.ReasonExec, true},
	"RunContainerError":          {scaler.ReasonExec, true},
}

// failure says what keeps p from starting, in the words of the kubelet.
func (p *pod) failure() *scaler.Failure {
	for _, c := range p.containers {
		w := c.status.waiting
		if w == nil {
			continue
		}
		kind, ok := waitingReasons[w.reason]
		if !ok {
			continue
		}
		f := &scaler.Failure{Reason: kind.reason, ForGood: kind.forGood, Short: w.reason, Detail: fmt.Sprintf("pod %s, container %s: %s", p.name, c.name, w.message)}
		if last := c.status.last; last != nil {
			f.Short += ", " + last.words()
			if last.message != "" {
				f.Detail += "\nits last words: " + last.message
			}
		}
		return f
	}
	return nil
}

// delay says what p waits for that may come by itself: room on a node.
func (p *pod) delay() *scaler.Failure {
	if c := p.scheduled; c.status == "False" && p.node == "" {
		return &scaler.Failure{
			Reason: scaler.ReasonUnschedulable, ForGood: true, Short: c.reason,
			Detail: fmt.Sprintf("pod %s: %s", p.name, c.message),
		}
	}
	return nil
}

// exit says how the run before the present one ended, or how the pod did.
func (p *pod) exit(end *termination) *scaler.Failure {
	switch {
	case end != nil && (end.reason == "StartError" || end.reason == "ContainerCannotRun"):
		return &scaler.Failure{Reason: scaler.ReasonExec, ForGood: true, Short: "the container's command cannot be executed", Detail: fmt.Sprintf("pod %s: %s", p.name, end.message)}
	case p.phase == "Failed" && p.reason != "":
		// Evicted, or refused by the node: that says more than an exit status.
		return &scaler.Failure{Reason: scaler.ReasonExit, Short: p.reason, Detail: fmt.Sprintf("pod %s: %s", p.name, p.message)}
	case end == nil:
		return &scaler.Failure{Reason: scaler.ReasonExit, Short: "the pod has ended", Detail: fmt.Sprintf("pod %s: phase %s", p.name, p.phase)}
	}
	return &scaler.Failure{Reason: scaler.ReasonExit, Short: end.words(), Detail: strings.TrimSuffix(fmt.Sprintf("pod %s: %s", p.name, end.message), ": ")}
}

// words says in short how a container ended.
func (t *termination) words() string {
	status := fmt.Sprintf("exit status %d", t.exit)
	if t.signal != 0 {
		status = fmt.Sprintf("signal %d", t.signal)
	}
	if t.reason == "" || t.reason == "Error" || t.reason == "Completed" {
		return status
	}
	return t.reason + ", " + status
}

// refused says what keeps the controller from making pods, from a message of
// the API server's.
func refused(message string) *scaler.Failure {
	f := &scaler.Failure{Reason: scaler.ReasonForbidden, ForGood: true, Short: "the cluster admits no pod of it", Detail: message}
	switch {
	case strings.Contains(message, "quota"):
		f.Reason, f.Short = scaler.ReasonQuota, "exceeded quota"
	case strings.Contains(message, "error looking up service account"):
		// A namespace gets its default one a moment after it was made, and the
		// controller tries again.
		f.ForGood, f.Short = false, "its service account does not exist"
	}
	return f
}

// shutOut says why the ReplicaSets of the workload cannot make pods, if one
// says so.
func shutOut(sets []*replicaSet) *scaler.Failure {
	for _, s := range sets {
		if s.replicas > 0 && s.refusal.message != "" {
			return refused(s.refusal.message)
		}
	}
	return nil
}
