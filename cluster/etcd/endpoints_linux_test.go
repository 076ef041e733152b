package etcd

import (
	"context"
	"net"
	"strings"
	"testing"
	"time"

	"github.com/caddy-usher/usher/cluster"
	"github.com/caddy-usher/usher/test/addr"
	"github.com/caddy-usher/usher/test/etcdserver"
	"github.com/caddy-usher/usher/test/harness"
)

// brief is the deadline of calls that cannot succeed, and patience that of all
// others.
const (
	brief    = time.Second
	patience = 30 * time.Second
)

func within(t testing.TB, d time.Duration) context.Context {
	ctx, cancel := context.WithTimeout(t.Context(), d)
	t.Cleanup(cancel)
	return ctx
}

// at opens a store with these endpoints. It is closed with the test.
func at(t testing.TB, urls ...string) *store {
	t.Helper()
	return closed(t, opened(t, &Coordinator{URLs: urls, Prefix: "/" + strings.ReplaceAll(t.Name(), "/", ".")}))
}

func closed(t testing.TB, s *store) *store {
	t.Cleanup(func() { s.Close() })
	return s
}

func put(t testing.TB, s *store, value, revision string) (cluster.SwapResult, error) {
	t.Helper()
	return s.Put(within(t, patience), []byte(value), revision)
}

func wantPut(t testing.TB, s *store, value, revision string) {
	t.Helper()
	if result, err := put(t, s, value, revision); result != cluster.Swapped || err != nil {
		t.Fatalf("Put: result %d, error %v; want it swapped", result, err)
	}
}

func get(t testing.TB, s *store, want string) (revision string) {
	t.Helper()
	value, revision, err := s.Get(within(t, patience))
	if err != nil || string(value) != want {
		t.Fatalf("Get returned %q, error %v; want %q", value, err, want)
	}
	return revision
}

func wantWords(t testing.TB, err error, words ...string) {
	t.Helper()
	if err == nil {
		t.Fatal("there is no error")
	}
	for _, w := range words {
		if !strings.Contains(err.Error(), w) {
			t.Errorf("the error %q does not say %q", err, w)
		}
	}
}

// refusing returns the URL of an address where nothing listens.
func refusing(t testing.TB) string {
	t.Helper()
	return "http://" + addr.Refusing(t).String()
}

// silent returns the URL of a listener that takes connections and says nothing.
func silent(t testing.TB) string {
	t.Helper()
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { l.Close() })
	return "http://" + l.Addr().String()
}

func TestTheNextEndpointIsAskedIfOneCannotBeReached(t *testing.T) {
	server := etcdserver.Start(t, etcdserver.Options{})
	for name, dead := range map[string]string{"refused": refusing(t), "silent": silent(t)} {
		t.Run(name, func(t *testing.T) {
			// Each store is new, so each begins with the dead one.
			if result, err := at(t, dead, server.URL).Put(within(t, 4*brief), []byte("1"), ""); result != cluster.Swapped {
				t.Fatalf("Put: result %d, error %v", result, err)
			}
			s := at(t, dead, server.URL)
			value, revision, err := s.Get(within(t, 4*brief))
			if string(value) != "1" || err != nil {
				t.Fatalf("Get returned %q, error %v", value, err)
			}
			// From now on the one that answers is asked first.
			if result, err := s.Put(within(t, patience), []byte("2"), revision); result != cluster.Swapped {
				t.Fatalf("Put: result %d, error %v", result, err)
			}
			if s.first != 1 {
				t.Error("the endpoint that cannot be reached is still asked first")
			}
		})
	}
}

func TestIfNoEndpointCanBeReachedTheErrorNamesAllAndAPutHasFailed(t *testing.T) {
	a, b := refusing(t), refusing(t)
	s := at(t, a, b)
	_, _, err := s.Get(within(t, patience))
	wantWords(t, err, a+": ", b+": ", "connection refused")
	result, err := s.Put(within(t, patience), []byte("1"), "")
	wantWords(t, err, a+": ", b+": ", "connection refused")
	if result != cluster.Failed {
		t.Errorf("result %d, want failed: nothing was sent", result)
	}
}

func TestAWriteThatMayHaveBeenSentGoesToNoOtherEndpoint(t *testing.T) {
	members := etcdserver.StartCluster(t, 3, etcdserver.Options{})
	s := at(t, members[0].URL, members[1].URL)
	other := at(t, members[1].URL)
	wantPut(t, s, "1", "")
	one := get(t, s, "1")

	members[0].Freeze()
	result, err := s.Put(within(t, 2*brief), []byte("2"), one)
	if result != cluster.Unknown {
		t.Errorf("result %d, error %v; want unknown", result, err)
	}
	wantWords(t, err, members[0].URL+": no answer in time")
	// Another member would have taken it at once.
	var value []byte
	harness.Eventually(t, patience, func() bool {
		var err error
		value, _, err = other.Get(within(t, brief))
		return err == nil
	}, "the others have a leader")
	if string(value) != "1" {
		t.Errorf("the value is %q: another member was asked to write it", value)
	}
	// The next call goes to the one that answers, and is no second attempt.
	if get(t, s, "1") != one {
		t.Error("the value was written again")
	}
	members[0].Thaw()
}

func TestAReadGoesToTheNextEndpointIfOneDoesNotAnswer(t *testing.T) {
	members := etcdserver.StartCluster(t, 3, etcdserver.Options{})
	s := at(t, members[0].URL, members[1].URL)
	wantPut(t, s, "1", "")
	get(t, s, "1")
	members[0].Freeze()
	defer members[0].Thaw()
	// One call has time for both, unless the frozen one has led the others.
	harness.Eventually(t, patience, func() bool {
		s.prefer(0)
		value, _, err := s.Get(within(t, 4*brief))
		return err == nil && string(value) == "1"
	}, "a read that begins at the frozen member succeeds")
}

func TestAMemberThatHasLostTheOthersFailsInTime(t *testing.T) {
	members := etcdserver.StartCluster(t, 3, etcdserver.Options{})
	s := at(t, members[0].URL)
	wantPut(t, s, "1", "")
	one := get(t, s, "1")
	members[1].Stop()
	members[2].Stop()
	harness.Eventually(t, patience, func() bool {
		_, _, err := s.Get(within(t, patience))
		return err != nil && strings.Contains(err.Error(), "etcdserver: no leader")
	}, "reads fail, and the error says why")
	// It says so before it looks at the write.
	result, err := put(t, s, "2", one)
	if result != cluster.Failed {
		t.Errorf("result %d, error %v; want failed", result, err)
	}
	wantWords(t, err, "etcdserver: no leader")
	members[1].Start()
	harness.Eventually(t, patience, func() bool {
		value, _, err := s.Get(within(t, brief))
		return err == nil && string(value) == "1"
	}, "with a majority it is of use again")
}
