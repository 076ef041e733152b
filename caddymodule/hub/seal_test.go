package hub

import (
	"bytes"
	"context"
	"errors"
	"net/http"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/caddyserver/caddy/v2"
	"go.uber.org/zap"
	logged "go.uber.org/zap/zaptest/observer"
)

// lockable is a storage in memory with a lock. Its Load shows nothing until a
// Caddy has the lock, as if all were at it in the same moment.
type lockable struct {
	*memory
	lock   sync.Mutex
	locked chan struct{}
	once   sync.Once
}

func (m *lockable) Lock(context.Context, string) error {
	m.lock.Lock()
	m.once.Do(func() { close(m.locked) })
	return nil
}

func (m *lockable) Unlock(context.Context, string) error {
	m.lock.Unlock()
	return nil
}

func newLockable() *lockable {
	return &lockable{memory: &memory{files: make(map[string][]byte)}, locked: make(chan struct{})}
}

// withCookie is a generation with a service that has a cookie.
func withCookie(g *Generation) *Generation {
	s := ServiceConfig{Affinity: &Affinity{Cookie: &AffinityCookie{}}}.WithDefaults()
	g.Definitions = map[string]*Definition{"web": {Options: &Options{Service: s}}}
	if g.Logger == nil {
		g.Logger = zap.NewNop()
	}
	return g
}

func cookieBy(h *Hub) string {
	return newSealedCookies(h.seal.Load(), "web").sealed(7, time.Time{})
}

func TestCaddysWithOneStorageMakeOneKey(t *testing.T) {
	t.Parallel()
	storage := newLockable()
	cookies := make([]string, 8)
	var all sync.WaitGroup
	for k := range cookies {
		all.Go(func() {
			h := newHub()
			h.loadSeal(withCookie(&Generation{Storage: storage}))
			cookies[k] = cookieBy(h)
		})
	}
	all.Wait()
	for _, c := range cookies {
		if c != cookies[0] {
			t.Errorf("two keys: %v", cookies)
		}
	}
	if key := storage.files[sealKeyName]; len(key) != sealKeySize || bytes.Equal(key, make([]byte, sealKeySize)) {
		t.Errorf("%x", key)
	}
	another := newHub()
	another.loadSeal(withCookie(&Generation{Storage: newLockable()}))
	if cookieBy(another) == cookies[0] {
		t.Error("all keys are the same")
	}
}

func TestNoKeyIsMadeWithoutACookie(t *testing.T) {
	t.Parallel()
	h, storage := newHub(), newLockable()
	s := ServiceConfig{Affinity: &Affinity{Keys: []AffinityKey{{Value: "{http.request.host}"}}}}.WithDefaults()
	h.loadSeal(&Generation{Storage: storage, Logger: zap.NewNop(), Definitions: map[string]*Definition{"web": {Options: &Options{Service: s}}}})
	if len(storage.files) != 0 || h.seal.Load() != nil {
		t.Errorf("%v", storage.files)
	}
}

func TestAStorageThatFailsLeavesAKeyOfThisProcess(t *testing.T) {
	t.Parallel()
	for name, break1 := range map[string]func(*lockable){
		"broken":         func(m *lockable) { m.fail = errors.New("disk full") },
		"a cut-off file": func(m *lockable) { m.files[sealKeyName] = []byte("short") },
	} {
		t.Run(name, func(t *testing.T) {
			storage := newLockable()
			break1(storage)
			core, logs := logged.New(zap.ErrorLevel)
			h := newHub()
			h.loadSeal(withCookie(&Generation{Storage: storage, Logger: zap.New(core)}))
			if h.seal.Load() == nil || logs.Len() != 1 || !strings.Contains(logs.All()[0].Message, "the key of session cookies") {
				t.Errorf("%v", logs.All())
			}
			if name == "a cut-off file" && string(storage.files[sealKeyName]) != "short" {
				t.Error("what is there was overwritten")
			}
			// It stays, so that cookies hold as long as the process does.
			before := cookieBy(h)
			storage.fail = nil
			h.loadSeal(withCookie(&Generation{Storage: newLockable()}))
			if cookieBy(h) != before {
				t.Error("another key")
			}
		})
	}
}

func testCookie(maxAge time.Duration) *SessionCookie {
	return newSessionCookie("web", &AffinityCookie{MaxAge: caddy.Duration(maxAge), SameSite: "lax", Path: "/"}, newSeal(make([]byte, sealKeySize)))
}

func header(t *testing.T, set string) http.Header {
	t.Helper()
	c, err := http.ParseSetCookie(set)
	if err != nil {
		t.Fatal(err)
	}
	return http.Header{"Cookie": {"a=b; " + c.Name + "=" + c.Value}}
}

// A request of a session pays nothing for its cookie, once that was seen.
func TestACookieIsReadWithoutAllocations(t *testing.T) {
	c := testCookie(0)
	h := header(t, c.Set(7, time.Now(), false))
	now := time.Now()
	if n := testing.AllocsPerRun(100, func() {
		if i, renew := c.Find(h, now); i != 7 || renew {
			t.Error(i, renew)
		}
	}); n != 0 {
		t.Errorf("%v allocations", n)
	}
	strange := http.Header{"Cookie": {"usher_web=hello"}}
	if n := testing.AllocsPerRun(100, func() { c.Find(strange, now) }); n != 0 {
		t.Errorf("%v allocations for a cookie that cannot be one", n)
	}
}

func TestCookiesAreKeptForABoundedNumberOfInstances(t *testing.T) {
	t.Parallel()
	c := testCookie(0)
	first := header(t, c.Set(1, time.Now(), false))
	for i := range uint64(3 * cookiesKnown) {
		c.Set(i+2, time.Now(), false)
	}
	if n := len(c.seal.values); n > cookiesKnown || len(c.seal.opened) > cookiesKnown {
		t.Errorf("%d are kept", n)
	}
	if i, _ := c.Find(first, time.Now()); i != 1 {
		t.Error("a cookie that is not kept does not hold")
	}
}

func TestACookieHoldsWhenItsAgeIsConfiguredOrNoMore(t *testing.T) {
	t.Parallel()
	without, with := testCookie(0), testCookie(time.Hour)
	now := time.Now()
	if i, renew := with.Find(header(t, without.Set(7, now, false)), now); i != 7 || !renew {
		t.Error("max_age was added", i, renew)
	}
	if i, renew := without.Find(header(t, with.Set(7, now.Add(-2*time.Hour), false)), now); i != 7 || renew {
		t.Error("max_age was taken away", i, renew)
	}
}

func FuzzCookie(f *testing.F) {
	c := testCookie(time.Hour)
	now := time.Now()
	parsed, _ := http.ParseSetCookie(c.Set(7, now, false))
	f.Add("usher_web=" + parsed.Value)
	f.Add("usher_web=" + parsed.Value + "=; usher_web")
	f.Add("usher_web=" + strings.Repeat("A", cookieLength))
	f.Fuzz(func(t *testing.T, line string) {
		if i, _ := c.Find(http.Header{"Cookie": {line}}, now); i != 0 && !strings.Contains(line, parsed.Value) {
			t.Errorf("%q names %d", line, i)
		}
	})
}
