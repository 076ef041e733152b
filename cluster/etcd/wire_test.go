package etcd

import (
	"bytes"
	"encoding/hex"
	"testing"

	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"
)

// An answer that says nothing must not be taken for one that says that there is
// no key, or that the comparison failed.
func TestAnEmptyAnswerIsAnError(t *testing.T) {
	header := field(nil, 1, integer(nil, 1, 7))
	if kv, err := rangeResponse(header); err != nil || kv.revision != 0 {
		t.Errorf("no key: %+v, error %v", kv, err)
	}
	if done, err := txnResponse(header); err != nil || done {
		t.Errorf("a comparison that failed: %v, error %v", done, err)
	}
	for _, answer := range [][]byte{
		nil,
		{0xff},
		field(nil, 2, []byte{8}), field(nil, 4, nil),
		field(header, 2, nil),             // a key without a revision
		field(header, 2, []byte{0x18}),    // a revision that is cut off
		append(header, 0x12, 5, 0x18, 10), // a key that is cut off
	} {
		if kv, err := rangeResponse(answer); err == nil {
			t.Errorf("the answer %x is taken for %+v", answer, kv)
		}
	}
	for _, answer := range [][]byte{nil, {0xff}, integer(nil, 2, 1)} {
		if done, err := txnResponse(answer); err == nil {
			t.Errorf("the answer %x is taken for %v", answer, done)
		}
	}
	if token, err := authenticateResponse(header); err == nil {
		t.Errorf("the token is %q", token)
	}
}

func FuzzAnswers(f *testing.F) {
	f.Add([]byte{})
	f.Add(field(field(nil, 1, integer(nil, 1, 7)), 2, field(integer(nil, 3, 9), 5, []byte("value"))))
	f.Fuzz(func(t *testing.T, b []byte) {
		before := bytes.Clone(b)
		kv, err := rangeResponse(b)
		if err != nil && (kv.revision != 0 || kv.value != nil) {
			t.Errorf("an answer is an error and a key: %+v, %v", kv, err)
		}
		_, _ = txnResponse(b)
		_, _ = authenticateResponse(b)
		if !bytes.Equal(b, before) {
			t.Errorf("the answer %s was changed", hex.EncodeToString(before))
		}
	})
}

// Only what is certain makes a write fail; all other errors leave it unknown.
func TestVerdicts(t *testing.T) {
	for _, c := range []struct {
		code             codes.Code
		message          string
		certain, refused bool
	}{
		{codes.PermissionDenied, "etcdserver: permission denied", true, true},
		{codes.InvalidArgument, "etcdserver: request is too large", true, true},
		{codes.ResourceExhausted, "etcdserver: mvcc: database space exceeded", true, true},
		{codes.ResourceExhausted, "etcdserver: too many requests", true, true},
		{codes.ResourceExhausted, "grpc: received message larger than max", false, false},
		{codes.Unavailable, "etcdserver: no leader", true, false},
		{codes.Unavailable, "etcdserver: request timed out", false, false},
		{codes.Unavailable, "etcdserver: request timed out, possibly due to previous leader failure", false, false},
		{codes.Unavailable, "etcdserver: leader changed", false, false},
		{codes.Unavailable, "etcdserver: server stopped", false, false},
		{codes.Unavailable, "error reading from server: EOF", false, false},
		{codes.Unimplemented, "unknown service etcdserverpb.KV", true, false},
		{codes.DeadlineExceeded, "context deadline exceeded", false, false},
		{codes.Canceled, "context canceled", false, false},
		{codes.Internal, "stream terminated by RST_STREAM", false, false},
		{codes.Unknown, "anything", false, false},
	} {
		if certain, refused := verdict(status.Error(c.code, c.message)); certain != c.certain || refused != c.refused {
			t.Errorf("%v %s: certain %v, refused %v", c.code, c.message, certain, refused)
		}
	}
}
