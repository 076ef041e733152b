package kubeaccess

import (
	"errors"
	"net/http"

	utilnet "k8s.io/apimachinery/pkg/util/net"
)

// TellBreaks returns a transport that tells at once when the connection of a call
// breaks. client-go repeats a read then, each second and up to ten times, and its
// caller learns only afterwards that something is wrong, and not what. The error
// has lost its kind, by which client-go knows it. It wraps next for the config of
// a client.
func TellBreaks(next http.RoundTripper) http.RoundTripper { return tellBreaks{next} }

type tellBreaks struct{ next http.RoundTripper }

// RoundTrip implements http.RoundTripper.
func (t tellBreaks) RoundTrip(r *http.Request) (*http.Response, error) {
	res, err := t.next.RoundTrip(r)
	if err != nil && (utilnet.IsProbableEOF(err) || utilnet.IsConnectionReset(err) || utilnet.IsHTTP2ConnectionLost(err)) {
		return nil, errBroken
	}
	return res, err
}

// WrappedRoundTripper lets client-go find the transport below, whose idle
// connections it closes.
func (t tellBreaks) WrappedRoundTripper() http.RoundTripper { return t.next }

var errBroken = errors.New("the connection to the API server broke")
