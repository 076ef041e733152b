package marathon

import (
	"context"
	"errors"
	"fmt"
	"net/http"
	"net/url"
	"regexp"
	"strings"

	gomarathon "github.com/gambol99/go-marathon"

	"github.com/caddy-usher/usher/scaler"
)

// asFailure words an error of a call.
func asFailure(err error) *scaler.Failure {
	if f, ok := errors.AsType[*scaler.Failure](err); ok {
		return f
	}
	if c, ok := errors.AsType[*credentialError](err); ok {
		return &scaler.Failure{
			Reason: scaler.ReasonForbidden, Short: "no credentials for Marathon",
			Detail: "the token cannot be read; it is read again with the next call", Err: c,
		}
	}
	s, ok := errors.AsType[*statusError](err)
	if !ok {
		f := &scaler.Failure{
			Reason: scaler.ReasonPlatform, Short: "Marathon cannot be reached",
			Detail: "what runs goes on serving; Usher tries again by itself", Err: err,
		}
		switch _, transport := errors.AsType[*url.Error](err); {
		case errors.Is(err, context.DeadlineExceeded):
			f.Short = "Marathon does not answer in time"
		case !transport:
			f.Short = "Marathon's answer is not understood"
		}
		return f
	}
	f := &scaler.Failure{Reason: scaler.ReasonPlatform, Short: fmt.Sprintf("Marathon answers with status %d", s.status), Err: err}
	switch s.code() {
	case gomarathon.ErrCodeUnauthorized:
		f.Reason, f.ForGood, f.Short = scaler.ReasonForbidden, true, "Marathon refuses the credentials"
		f.Detail = "check basic_auth or token_file of the backend"
	case gomarathon.ErrCodeForbidden:
		if strings.Contains(s.text, "running deployments") {
			// Marathon answers forbidden requests with the same status.
			f.Reason, f.Short = scaler.ReasonQuota, "Marathon has too many running deployments"
			f.Detail = "it takes a new one when others have ended (--max_running_deployments)"
			break
		}
		f.Reason, f.ForGood, f.Short = scaler.ReasonForbidden, true, "Marathon does not allow this"
		f.Detail = "the user or token of the backend lacks the right to see or change the app"
	case gomarathon.ErrCodeAppLocked, gomarathon.ErrCodeDuplicateID:
		f.Reason, f.Short = scaler.ReasonConflict, "the app is locked by another deployment"
	case gomarathon.ErrCodeNotFound:
		f.Reason, f.ForGood, f.Short = scaler.ReasonNotFound, true, "Marathon does not know the app"
	case gomarathon.ErrCodeBadRequest, gomarathon.ErrCodeInvalidBean:
		f.Short = "Marathon does not accept the order"
	case gomarathon.ErrCodeServer:
		f.Detail = "what runs goes on serving; Usher tries again by itself"
	}
	if s.status/100 == 3 {
		f.Short = "Marathon redirects to another host"
		f.Detail = "credentials go to the configured urls only; add the leader to them"
	}
	return f
}

// appMissing is the failure of a service whose app is not there.
func appMissing(id string) *scaler.Failure {
	return &scaler.Failure{
		Reason: scaler.ReasonNotFound, ForGood: true, Short: "the Marathon app does not exist",
		Detail: fmt.Sprintf("there is no app %s; Usher scales apps, and does not make them (nor scales pods): create it, or correct the id in the backend", id),
	}
}

var (
	exitStatus = regexp.MustCompile(`(?i)exited with status (\d+)`)
	signal     = regexp.MustCompile(`(?i)terminated with signal ([A-Za-z ]+)`)
)

// taskFailure words the last failure of an app if it is the end of a task. The
// short form is for clients: it holds only what is known to say nothing else.
func taskFailure(last *gomarathon.LastTaskFailure, id string) *scaler.Failure {
	if last == nil || last.TaskID != id || !over(last.State) {
		return nil
	}
	f := &scaler.Failure{Reason: scaler.ReasonExit, Short: "the task failed", Detail: last.Message}
	message := strings.ToLower(last.Message)
	switch m := exitStatus.FindStringSubmatch(last.Message); {
	case m != nil:
		f.Short = "exit status " + m[1]
	case signal.MatchString(last.Message):
		f.Short = "ended by signal " + strings.TrimSpace(signal.FindStringSubmatch(last.Message)[1])
	case strings.Contains(message, "health check"):
		f.Short = "killed by Marathon's health check"
	case strings.Contains(message, "memory limit"):
		f.Short = "memory limit exceeded"
	case strings.Contains(message, "pull") || strings.Contains(message, "image"):
		f.Reason, f.Short = scaler.ReasonImage, "the image cannot be had"
	case last.State == taskKilled:
		// Marathon also reports tasks that were stopped on request.
		return nil
	case last.State == taskFinished:
		f.Short = "exit status 0"
	}
	if f.Detail == "" {
		f.Detail = "Marathon says " + last.State
	}
	f.Detail = fmt.Sprintf("task %s on %s: %s", last.TaskID, last.Host, f.Detail)
	return f
}

// conflict describes an order that a foreign deployment blocks.
func conflict(id string, ids []string, what string, err error) *scaler.Failure {
	return &scaler.Failure{
		Reason: scaler.ReasonConflict, Short: "another deployment holds the app",
		Detail: fmt.Sprintf("%s of app %s is at work (%s), and is not forced aside; the order is given again when it has ended, or cancel it at /v2/deployments", what, id, strings.Join(ids, ", ")),
		Err:    err,
	}
}

// notFound says whether Marathon does not know what a call names.
func notFound(err error) bool {
	s, ok := errors.AsType[*statusError](err)
	return ok && s.status == http.StatusNotFound
}
