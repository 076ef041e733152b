package kubernetes

import (
	"errors"
	"fmt"
	"strings"
	"time"

	apierrors "k8s.io/apimachinery/pkg/api/errors"

	"github.com/caddy-usher/usher/scaler"
)

// apiFailure puts into words that a call to the API server failed: what was to
// be done, to what, and what may help.
func apiFailure(err error, verb, what string) *scaler.Failure {
	if err == nil {
		return nil
	}
	if f, ok := errors.AsType[*scaler.Failure](err); ok {
		return f
	}
	f := &scaler.Failure{Err: err}
	switch {
	case apierrors.IsNotFound(err):
		f.Reason, f.ForGood, f.Short = scaler.ReasonNotFound, true, what+" does not exist"
		f.Detail = "create it, or correct its name, namespace or version in the configuration; Usher looks again by itself"
	case apierrors.IsMethodNotSupported(err):
		f.Reason, f.ForGood, f.Short = scaler.ReasonNotFound, true, what+" cannot be scaled"
		f.Detail = "its resource has no scale subresource"
	case apierrors.IsForbidden(err):
		f.Reason, f.ForGood, f.Short = scaler.ReasonForbidden, true, "not permitted to "+verb+" "+what
		if !strings.Contains(err.Error(), "cannot "+verb) {
			// Not a missing right, but a rule about what may be done with it.
			f.Short = "the cluster does not permit to " + verb + " " + what
		}
		f.Detail = "the Role of Usher's service account or user has to allow it (deploy/kubernetes shows one that does)"
	case apierrors.IsUnauthorized(err):
		f.Reason, f.Short = scaler.ReasonPlatform, "the Kubernetes API does not accept Usher's credentials"
		f.Detail = "they are read again from the kubeconfig or the service account's token until they are accepted"
	case apierrors.IsConflict(err):
		f.Reason, f.Short = scaler.ReasonConflict, "another client keeps changing "+what
		f.Detail = "Usher tries again"
	case apierrors.IsInvalid(err), apierrors.IsBadRequest(err):
		f.Reason, f.ForGood, f.Short = scaler.ReasonPlatform, true, "the Kubernetes API refuses to "+verb+" "+what
	case apierrors.IsTooManyRequests(err):
		f.Reason, f.Short = scaler.ReasonPlatform, "the Kubernetes API is overloaded"
	default:
		f.Reason, f.Short = scaler.ReasonPlatform, "the Kubernetes API cannot be asked"
		f.Detail = fmt.Sprintf("trying to %s %s; ready instances go on serving, and it is tried again", verb, what)
	}
	return f
}

// mayPass judges the failure of a call that had succeeded before. A right that
// was there and is missing is no failure for good; and an API server that has
// only begun does not know the Roles yet, so shortly after it was away it is
// said of the API, not of the rights.
func (cl *cluster) mayPass(f *scaler.Failure) {
	switch {
	case f.Reason == scaler.ReasonPlatform:
		cl.away.Store(time.Now().UnixNano())
	case f.Reason != scaler.ReasonForbidden:
	case time.Since(time.Unix(0, cl.away.Load())) < beginning:
		*f = scaler.Failure{
			Reason: scaler.ReasonPlatform, Short: "the Kubernetes API is not complete", Err: f.Err,
			Detail: "it was away, and does not know Usher's rights yet; ready instances go on serving, and it is tried again",
		}
	default:
		f.ForGood = false
	}
}

// beginning is how long after an outage of the API a missing right may be one
// that is not known yet.
const beginning = 30 * time.Second

// passing tells whether a failed call may succeed when it is merely repeated.
func passing(f *scaler.Failure) bool {
	return f != nil && f.Reason == scaler.ReasonPlatform && !f.ForGood
}
