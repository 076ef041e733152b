package docker

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"net"
	"os"
	"regexp"
	"strings"
	"syscall"

	cerrdefs "github.com/containerd/errdefs"
	"github.com/docker/go-units"
	"github.com/moby/moby/api/types/container"
	"github.com/moby/moby/client"

	"github.com/caddy-usher/usher/scaler"
)

// isNotFound says whether the engine does not know what a call names.
func isNotFound(err error) bool { return cerrdefs.IsNotFound(err) }

// unreached says whether a call did not get an answer of the engine's.
func unreached(err error) bool {
	if errors.Is(err, context.DeadlineExceeded) || errors.Is(err, context.Canceled) || client.IsErrConnectionFailed(err) {
		return true
	}
	if _, ok := errors.AsType[net.Error](err); ok {
		return true
	}
	text := err.Error()
	return strings.HasSuffix(text, "EOF") || strings.Contains(text, "connection reset by peer") || strings.Contains(text, "broken pipe")
}

// denied says whether the socket may not be used. The client hides the error of
// the system.
func denied(err error) bool {
	return errors.Is(err, fs.ErrPermission) || client.IsErrConnectionFailed(err) && strings.Contains(err.Error(), "permission denied")
}

// words is what the engine says, without what the client puts before it.
func words(err error) string {
	return strings.TrimSpace(strings.TrimPrefix(err.Error(), "Error response from daemon: "))
}

// callFailure words an error of a call that is about no container's program.
func callFailure(err error) *scaler.Failure {
	if f, ok := errors.AsType[*scaler.Failure](err); ok {
		return f
	}
	f := &scaler.Failure{Reason: scaler.ReasonPlatform, Short: "the container engine refuses the order", Err: err}
	switch {
	case denied(err), cerrdefs.IsPermissionDenied(err), cerrdefs.IsUnauthorized(err):
		f.Reason, f.Short = scaler.ReasonForbidden, "access to the container engine is forbidden"
	case errors.Is(err, context.DeadlineExceeded):
		f.Short = "the container engine does not answer in time"
		f.Detail = "what runs goes on serving; Usher tries again by itself"
	case unreached(err):
		f.Short = "the container engine cannot be reached"
		f.Detail = "what runs goes on serving; Usher tries again by itself"
	}
	return f
}

// hint says what an operator can do about an engine that cannot be asked.
func (a access) hint(err error) string {
	path, isUnix := strings.CutPrefix(a.Host, "unix://")
	switch {
	case denied(err) && isUnix:
		group := ""
		if id, ok := groupOf(path); ok {
			group = fmt.Sprintf(" (its number is %d: `group_add: [\"%d\"]` in a compose file)", id, id)
		}
		return fmt.Sprintf("the user of Caddy may not use %s: add that user to the group of the socket%s, or name a socket proxy with `host`; access to the socket is as good as being root on its machine", path, group)
	case isUnix && (errors.Is(err, fs.ErrNotExist) || strings.Contains(err.Error(), "no such file or directory")):
		return fmt.Sprintf("there is no %s: is the engine running, and is the socket mounted into Caddy's container? `host` names another", path)
	case errors.Is(err, syscall.ECONNREFUSED), strings.Contains(err.Error(), "connection refused"):
		return a.Host + " refuses connections: is the engine running? What runs goes on serving; Usher tries again by itself"
	case cerrdefs.IsPermissionDenied(err):
		return a.Host + " forbids a call that Usher needs; the page of the docker backend lists the calls that a socket proxy has to let through: " + words(err)
	}
	return ""
}

// text has what the engine's messages say about a start, and what that means.
var startTexts = []struct {
	pattern *regexp.Regexp
	reason  scaler.Reason
	forGood bool
	short   string
	hint    string
}{
	{
		regexp.MustCompile(`(?i)port is already allocated|address already in use|ports are not available|cannot expose (privileged )?port|failed to bind`), scaler.ReasonConflict, false,
		"a port of the container is taken", "another container or program on the engine's machine has the port that this container publishes",
	},
	{
		regexp.MustCompile(`(?i)unable to find (user|group)|no matching entries in (passwd|group) file|user: unknown`), scaler.ReasonNotFound, true,
		"the container's user does not exist", "the image has no such user; give a number, or a user that it has",
	},
	{
		regexp.MustCompile(`(?i)executable file (.* )?not found|exec: .*no such file or directory|exec .*: no such file or directory|stat .*: no such file or directory: unknown|crun: .*No such file or directory`), scaler.ReasonExec, true,
		"exit status 127: the command does not exist in the container", "check the command and the image's entrypoint",
	},
	{
		regexp.MustCompile(`(?i)exec: .*permission denied|exec .*: permission denied|starting container process.*permission denied|exec format error|crun: .*(Permission denied|Exec format)`), scaler.ReasonExec, true,
		"exit status 126: the command cannot be executed", "the file is not executable for the container's user, or was built for another machine",
	},
	{
		regexp.MustCompile(`(?i)network .*not found|network .* does not exist|unable to find network|could not find (the )?(attached )?network`), scaler.ReasonNotFound, true,
		"a network of the container does not exist", "create the network, or recreate the container without it",
	},
	{
		regexp.MustCompile(`(?i)no such image|image not known|image .*not found`), scaler.ReasonImage, true,
		"the image does not exist on the engine", "pull it, or let Usher pull it: `pull missing`",
	},
	{
		regexp.MustCompile(`(?i)invalid mount|bind source path does not exist|error mounting|no such volume|statfs .*no such file`), scaler.ReasonNotFound, true,
		"a volume of the container cannot be mounted", "check the volumes: the engine's words are above",
	},
	{
		regexp.MustCompile(`(?i)no space left on device|cannot allocate memory|resource temporarily unavailable|too many open files`), scaler.ReasonQuota, false,
		"the engine's machine has run out of something", "",
	},
}

// startFailure words the error of a call that makes or starts a container.
func startFailure(err error, what string) *scaler.Failure {
	f := callFailure(err)
	if unreached(err) || f.Reason == scaler.ReasonForbidden || f.Err == nil {
		return f
	}
	text := words(err)
	out := &scaler.Failure{Reason: scaler.ReasonPlatform, Short: "the container engine cannot start the container", Detail: what + ": " + text, Err: nil}
	for _, known := range startTexts {
		if known.pattern.MatchString(text) {
			out.Reason, out.ForGood, out.Short = known.reason, known.forGood, known.short
			if known.hint != "" {
				out.Detail += "; " + known.hint
			}
			return out
		}
	}
	switch {
	case isNotFound(err):
		out.Reason, out.Short = scaler.ReasonNotFound, "the container does not exist any more"
	case cerrdefs.IsInvalidArgument(err):
		out.ForGood, out.Short = true, "the container engine does not accept the container's definition"
	}
	return out
}

// pullFailure words the failure of a pull.
func pullFailure(image string, err error) *scaler.Failure {
	f := &scaler.Failure{Reason: scaler.ReasonImage, Short: "the image cannot be pulled", Detail: fmt.Sprintf("pulling %s: %s", image, words(err))}
	text := strings.ToLower(err.Error())
	switch {
	case unreached(err) && !cerrdefs.IsNotFound(err) && !strings.Contains(text, "registry"):
		return callFailure(err)
	case strings.Contains(text, "manifest unknown"), strings.Contains(text, "not found"), strings.Contains(text, "name unknown"), strings.Contains(text, "repository does not exist"):
		f.ForGood, f.Short = true, "the image does not exist in its registry"
	case strings.Contains(text, "denied"), strings.Contains(text, "unauthorized"), strings.Contains(text, "authentication required"):
		f.ForGood, f.Short = true, "the registry refuses to give the image"
		f.Detail += "; give credentials with registry_auth"
	}
	return f
}

// exitFailure words the end of a container that nothing has asked for. output
// has its last lines.
func exitFailure(v *view, output string) *scaler.Failure {
	f := &scaler.Failure{Reason: scaler.ReasonExit, Short: fmt.Sprintf("exit status %d", v.exitCode)}
	limit := ""
	if v.memory > 0 {
		limit = " (limit " + units.BytesSize(float64(v.memory)) + ")"
	}
	details := []string{"container " + v.name}
	switch {
	case v.oom:
		f.Short = "killed: out of memory" + limit
		details = append(details, "raise the container's limit of memory, or lower `concurrency`")
	case v.exitCode == 137 && v.memory > 0:
		f.Short = "killed (exit status 137)"
		details = append(details, "perhaps it was out of memory"+limit)
	case v.exitCode == 137:
		f.Short = "killed (exit status 137)"
	case v.exitCode == 127 || v.exitCode == 126:
		f.Reason, f.ForGood = scaler.ReasonExec, true
		f.Short += map[int]string{127: ": a command does not exist in the container", 126: ": a command cannot be executed"}[v.exitCode]
	}
	if v.problem != "" {
		details = append(details, v.problem)
	}
	if fights(v) {
		details = append(details, fmt.Sprintf("the engine starts it again by its restart policy (%s); with `restart: \"no\"` Usher alone decides", v.restart))
	}
	f.Detail = strings.Join(details, "; ")
	if output != "" {
		f.Detail += "\nlast output:\n" + output
	}
	return f
}

// fights says whether the engine starts the container by itself.
func fights(v *view) bool {
	return v.restart == container.RestartPolicyAlways || v.restart == container.RestartPolicyUnlessStopped || v.restart == container.RestartPolicyOnFailure
}

// goneFailure is the failure of an instance whose container was removed.
func goneFailure(name string) *scaler.Failure {
	return &scaler.Failure{Reason: scaler.ReasonExit, Short: "the container was removed", Detail: "container " + name + " was removed while it ran"}
}

// missing is the failure of a service for which no container exists.
func (p *plan) missing() *scaler.Failure {
	f := &scaler.Failure{Reason: scaler.ReasonNotFound, ForGood: true, Short: "the container does not exist"}
	switch p.form {
	case formContainer:
		f.Detail = fmt.Sprintf("the engine has no container %s: create it (docker create, docker compose up --no-start), or correct the name", p.name)
	case formCompose:
		f.Short = "no container of the Compose service exists"
		f.Detail = fmt.Sprintf("the engine has no container of the %s: create it with docker compose up --no-start (-p %s)", p, strings.SplitN(p.name, "/", 2)[0])
	case formLabel:
		f.Short = "no container has the label"
		f.Detail = fmt.Sprintf("the engine has no container with the %s: create one, or correct the label", p)
	}
	return f
}

// inUse is the failure of a service whose containers another one runs.
func inUse(p *plan, service string) *scaler.Failure {
	return &scaler.Failure{
		Reason: scaler.ReasonConflict, Short: "another service runs the container",
		Detail: fmt.Sprintf("%s is run by service %s, too, and a container belongs to one service at a time: let both sites use one service", p, service),
	}
}

// groupOf returns the group of a file.
func groupOf(path string) (int, bool) {
	info, err := os.Stat(path)
	if err != nil {
		return 0, false
	}
	return fileGroup(info)
}
