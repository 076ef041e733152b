package caddymodule

import (
	"crypto/tls"
	"crypto/x509"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"net"
	"syscall"
	"time"

	"github.com/caddyserver/caddy/v2/modules/caddyhttp/reverseproxy"
	"github.com/quic-go/quic-go"
	"go.uber.org/zap"

	"github.com/caddy-usher/usher/caddymodule/hub"
	"github.com/caddy-usher/usher/scaler"
)

func isDialError(err error) bool {
	_, ok := errors.AsType[reverseproxy.DialError](err)
	return ok
}

// classifyConnection says why there was no connection to write to. Only a failed
// connection to the instance's own address tells something about the instance.
// All else is a mistake in the configuration of the transport, or a lack of
// this machine: another instance would not help, and waiting would not either.
func (s *sender) classifyConnection(a *attempt, dial *dialResult, err error) outcome {
	switch {
	case ofForwardProxy(err):
		return unsendable
	case isDialError(err), dial != nil && dial.err != nil:
		switch {
		case dial == nil:
			return unsendable // no address was found to dial
		case dial.err != nil && (ownShortage(dial.err) || ownMistake(dial.err)):
			return unsendable
		}
		return refused
	case isHandshakeError(err):
		return unsendable
	case brokeOff(err), s.http3 && isTimeout(err):
		if a.connected.Load() && !s.http3 {
			return unwritten
		}
		return brokenOff
	case a.connected.Load():
		return unwritten
	}
	return unsendable
}

func ofForwardProxy(err error) bool {
	op, ok := errors.AsType[*net.OpError](err)
	return ok && op.Op == "proxyconnect"
}

// ownShortage says whether a connection could not be made for want of
// something of this machine.
func ownShortage(err error) bool {
	for _, e := range []error{syscall.EMFILE, syscall.ENFILE, syscall.ENOBUFS, syscall.ENOMEM, syscall.EADDRNOTAVAIL} {
		if errors.Is(err, e) {
			return true
		}
	}
	return false
}

// ownMistake says whether a connection could not be made because Caddy may not
// make it, or because the addresses of its two ends do not fit.
func ownMistake(err error) bool {
	if errors.Is(err, fs.ErrPermission) || errors.Is(err, syscall.EINVAL) || errors.Is(err, syscall.EAFNOSUPPORT) {
		return true
	}
	_, ok := errors.AsType[*net.AddrError](err)
	return ok
}

// isHandshakeError says whether the two sides could not agree on TLS.
func isHandshakeError(err error) bool {
	if isUntrusted(err) {
		return true
	}
	if _, ok := errors.AsType[tls.RecordHeaderError](err); ok {
		return true
	}
	if _, ok := errors.AsType[tls.AlertError](err); ok {
		return true
	}
	e, ok := errors.AsType[*quic.TransportError](err)
	return ok && e.ErrorCode.IsCryptoError()
}

func isUntrusted(err error) bool {
	if _, ok := errors.AsType[*tls.CertificateVerificationError](err); ok {
		return true
	}
	if _, ok := errors.AsType[x509.UnknownAuthorityError](err); ok {
		return true
	}
	_, ok := errors.AsType[x509.HostnameError](err)
	return ok
}

// brokeOff says whether the other side has closed the connection.
func brokeOff(err error) bool {
	for _, e := range []error{io.EOF, io.ErrUnexpectedEOF, syscall.ECONNRESET, syscall.ECONNABORTED, syscall.EPIPE} {
		if errors.Is(err, e) {
			return true
		}
	}
	return false
}

func isTimeout(err error) bool {
	e, ok := errors.AsType[net.Error](err)
	return ok && e.Timeout()
}

// adviceFor says what may be wrong, and what to do about it.
func adviceFor(dial *dialResult, err error) string {
	switch {
	case ofForwardProxy(err):
		return "the forward proxy does not work: see network_proxy in the transport, or HTTP_PROXY and HTTPS_PROXY in Caddy's environment"
	case isUntrusted(err):
		return "Caddy does not trust the certificate: see tls_trust_pool, tls_server_name and tls_insecure_skip_verify in the transport"
	case dial != nil && dial.err != nil && ownShortage(dial.err):
		return "this machine lacks what a connection takes: see its limits, and local_address in the transport"
	case dial != nil && dial.err != nil:
		return "Caddy cannot connect to this address: see its rights, and local_address in the transport"
	case isDialError(err):
		return "there is no address to connect to: see resolvers and local_address in the transport"
	}
	if _, ok := errors.AsType[tls.RecordHeaderError](err); ok {
		return "the instance does not speak TLS: remove tls from the transport"
	}
	return "the transport does not fit the instance: see its tls, versions and proxy options"
}

// repeatTrouble is how long the same trouble is not logged again.
const repeatTrouble = time.Minute

// sendError is why nothing could be sent to an instance. It hides what it
// says, or reverse_proxy would take it for a refused connection and try again.
type sendError struct {
	text    string
	timeout bool
}

// Error implements error.
func (e *sendError) Error() string { return e.text }

// Timeout implements net.Error, by which reverse_proxy chooses between 502 and 504.
func (e *sendError) Timeout() bool { return e.timeout }

// Temporary implements net.Error.
func (*sendError) Temporary() bool { return false }

// cannotSend takes note of why nothing could be sent, and returns it in words.
func (q *request) cannotSend(s *sender, a *attempt, err error) error {
	t := &hub.Trouble{Source: s, Advice: adviceFor(a.dial.Load(), err), Logged: time.Now()}
	t.Message = scaler.Readable(fmt.Sprintf("cannot send requests to instance %s at %s: %v (%s)", a.instance.ID, q.address, err, t.Advice))
	log := true
	if before := q.handler.trouble.Load(); before != nil && before.Advice == t.Advice && t.Logged.Sub(before.Logged) < repeatTrouble {
		log, t.Logged = false, before.Logged
	}
	q.handler.trouble.Store(t)
	q.service.Trouble.Store(t)
	if log {
		q.service.Log().Warn("cannot send requests to an instance", zap.String("instance", a.instance.ID),
			zap.String("address", q.address), zap.Error(err), zap.String("advice", t.Advice))
	}
	return &sendError{"service " + q.service.Name + ": " + t.Message, isTimeout(err)}
}

// sendable takes note that requests get through again.
func (q *request) sendable(t *hub.Trouble) {
	if s := q.service; s.Trouble.CompareAndSwap(t, nil) {
		q.service.Log().Info("requests get through to the instances again")
	}
}
