//go:build linux

// Package cluster tests several real Caddys that share the instances of one
// simulated Marathon, whose tasks are real processes, by a real etcd. It looks
// at what clients see, and at what the instances write of the requests inside.
//
// Between the Caddys, and between each of them and etcd, are proxies of the
// tests, by which the network can be cut.
//
// TestChaos does everything to them at once, by a plan that is drawn from a
// seed, and then holds the books of clients and instances against each other:
//
//	go test ./test/cluster -run Chaos -cluster.duration 10m -cluster.seed 42
package cluster

import (
	"encoding/json"
	"fmt"
	"os"
	"slices"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"github.com/caddy-usher/usher/test/etcdserver"
	"github.com/caddy-usher/usher/test/harness"
	"github.com/caddy-usher/usher/test/marathonsim"
)

func TestMain(m *testing.M) { harness.Main(m) }

// soon is the time for what has to happen by itself.
var soon = harness.Slow(20 * time.Second)

// town is a Marathon, an etcd, and the Caddys of one cluster.
type town struct {
	t       *testing.T
	sim     *marathonsim.Sim
	etcd    *etcdserver.Server
	caddys  []*harness.Caddy
	network *network
	peers   []string // where each is reached by the others: its name as a member
	doors   []*door  // there
	etcds   []*door  // where each reaches etcd
	listens []string // where each listens for the others, behind its door
	cluster string   // further options of the cluster
	secret  string   // the option for it
	web     []string // options of the service web
	name    string   // of the app
	more    []service
	changes int // of the configuration that change nothing

	tune func(k int, cfg *harness.Config) // what is particular to one Caddy; may be nil
}

// service is one more service of a town, with an app of its name. With more than
// one, each has its name as the first part of the path.
type service struct {
	name    string
	options []string
}

func newTown(t *testing.T, caddys int, clusterOptions string, web ...string) *town {
	t.Helper()
	sim, err := marathonsim.New(marathonsim.Config{
		OfferInterval: 50 * time.Millisecond, ReviveInterval: 20 * time.Millisecond,
		LaunchDelay: marathonsim.Range{Min: 20 * time.Millisecond, Max: 100 * time.Millisecond},
	})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(sim.Close)
	w := &town{
		t: t, sim: sim, etcd: etcdserver.Start(t, etcdserver.Options{}),
		cluster: clusterOptions, secret: `secret "what all of them know"`, web: web, name: "/web",
	}
	w.network, w.caddys = newNetwork(t, caddys)
	for k, c := range w.caddys {
		// These ports are not used otherwise, and no outgoing connection gets one.
		w.peers, w.listens = append(w.peers, c.SpareAddr), append(w.listens, c.TLSAddr)
		w.doors = append(w.doors, w.network.toPeer(k, w.peers[k], w.listens[k]))
		w.etcds = append(w.etcds, w.network.toEtcd(t, k, w.etcd.Address))
	}
	w.app("/web", w.caddys[0].App())
	t.Cleanup(w.report)
	return w
}

func (w *town) report() {
	if !w.t.Failed() {
		return
	}
	for k, c := range w.caddys {
		for line := range strings.Lines(c.RawLog()) {
			if strings.Contains(line, `"logger":"usher`) || strings.Contains(line, `"level":"error"`) {
				w.t.Logf("%d: %s", k, strings.TrimSpace(line))
			}
		}
	}
}

// app makes an app that runs a program. All instances write to one journal.
func (w *town) app(id, program string) {
	w.t.Helper()
	text, err := json.Marshal(fmt.Sprintf("USHER_INSTANCE=$MESOS_TASK_ID APP_JOURNAL=%s exec %s", w.caddys[0].Path("journal"), program))
	if err != nil {
		w.t.Fatal(err)
	}
	def := fmt.Sprintf(`{"id":%q,"cmd":%s,"instances":0,"cpus":0.1,"mem":16,"backoffSeconds":1,"taskKillGracePeriodSeconds":5}`, id, text)
	if err := w.sim.CreateApp(json.RawMessage(def)); err != nil {
		w.t.Fatal(err)
	}
}

// config is that of one Caddy.
func (w *town) config(k int, change ...string) harness.Config {
	site := w.usher("web", w.name, append(slices.Clip(w.web), change...))
	if w.more != nil {
		site = handle("web", site)
		for _, s := range w.more {
			site += handle(s.name, w.usher(s.name, "/"+s.name, s.options))
		}
	}
	cfg := harness.Config{
		Usher: fmt.Sprintf("cluster {\n\tcoordinator etcd http://%s\n\tlisten %s\n\tadvertise %s\n\t%s\n%s\n}", w.etcds[k].address, w.listens[k], w.peers[k], w.secret, w.cluster),
		Site:  fmt.Sprintf("log\nheader X-Change %d\n%s", w.changes, site),
	}
	if w.tune != nil {
		w.tune(k, &cfg)
	}
	return cfg
}

// path is where a service is, without a slash at the end.
func (w *town) path(service string) string {
	if w.more == nil {
		return ""
	}
	return "/" + service
}

func (w *town) usher(name, app string, options []string) string {
	backend := "backend marathon " + app + " {\n\turl " + strings.Join(w.sim.URLs(), " ") + "\n}"
	return harness.Usher(name, append([]string{backend}, options...)...)
}

func handle(name, directive string) string {
	return fmt.Sprintf("handle_path /%s/* {\n%s\n}\n", name, directive)
}

// start starts all Caddys at the same moment.
func (w *town) start() {
	w.t.Helper()
	var starting sync.WaitGroup
	for _, d := range w.doors {
		d.unlock(w.t)
	}
	for k, c := range w.caddys {
		starting.Go(func() { c.Start(w.config(k)) })
	}
	starting.Wait()
}

// startOne starts a Caddy.
func (w *town) startOne(k int, change ...string) {
	w.t.Helper()
	w.doors[k].unlock(w.t) // what is refused here counts as ended
	w.caddys[k].Start(w.config(k, change...))
}

// stop ends a Caddy as a service manager does.
func (w *town) stop(k int) {
	w.t.Helper()
	w.caddys[k].Stop()
	w.doors[k].lock()
}

// kill ends a Caddy with SIGKILL.
func (w *town) kill(k int) {
	w.t.Helper()
	w.caddys[k].Kill()
	w.doors[k].lock()
}

// reload loads another configuration, in which nothing matters that is new.
func (w *town) reload(k int, d *done) {
	w.t.Helper()
	w.changes++
	s := span{what: fmt.Sprintf("Caddy %d was reloaded", k), caddy: k, from: time.Now()}
	w.caddys[k].MustReload(w.config(k))
	s.to = time.Now()
	d.reloads = append(d.reloads, s)
}

// freeze lets a Caddy stand still as a whole.
func (w *town) freeze(k int) {
	w.t.Helper()
	p, err := os.FindProcess(w.caddys[k].PID())
	if err == nil {
		err = harness.Freeze(p)
	}
	if err != nil {
		w.t.Fatal(err)
	}
}

// thaw lets a frozen Caddy go on.
func (w *town) thaw(k int) {
	w.t.Helper()
	w.caddys[k].Signal(syscall.SIGCONT)
}

// status is what a Caddy says of its cluster.
type status struct {
	Member   string
	View     uint64
	Leader   string
	Isolated bool
	Members  []struct {
		Member                  string
		Leader, Connected, Lost bool
	}
	Services []struct {
		Service       string
		Held, Waiting int
		InUse         int `json:"in_use"`
	}
}

// status asks a Caddy, and reports whether it answered.
func (w *town) status(k int) (s status, ok bool) {
	r := w.caddys[k].Admin("GET", "/usher/cluster", "")
	return s, r.Err == nil && json.Unmarshal([]byte(r.Body), &s) == nil
}

// leader is the number of the Caddy that leads.
func (w *town) leader() (k int) {
	w.t.Helper()
	harness.Eventually(w.t, soon, func() bool {
		for k = range w.caddys {
			if !w.caddys[k].Running() {
				continue
			}
			if s, ok := w.status(k); ok && s.Leader == s.Member && !s.Isolated {
				return true
			}
		}
		return false
	}, "one of them leads")
	return k
}

// awaitAll waits until these Caddys, all that run, are one cluster again.
func (w *town) awaitAll(ks ...int) {
	w.t.Helper()
	var last []status
	if harness.WaitFor(soon, func() bool {
		last = nil
		for _, k := range ks {
			s, ok := w.status(k)
			last = append(last, s)
			if !ok || s.Isolated || len(s.Members) != len(ks) || s.View != last[0].View {
				return false
			}
		}
		return true
	}) {
		return
	}
	w.t.Fatalf("they are not one cluster of %d within %s: %+v", len(ks), soon, last)
}

// each sends one request to each Caddy, and returns the answers.
func (w *town) each(path string) (all []harness.Response) {
	var waits []*harness.Pending
	for _, c := range w.caddys {
		waits = append(waits, c.Send(harness.Request{Path: path}))
	}
	for _, p := range waits {
		all = append(all, p.Wait(w.t, soon))
	}
	return all
}

// wantNoMoreThan looks at the books of the instances.
func (w *town) wantNoMoreThan(slots int) {
	w.t.Helper()
	j := w.caddys[0].Journal()
	if n := j.MaxInside(); n > slots {
		w.t.Errorf("%d requests were inside an instance with %d slots", n, slots)
	}
}

func wantAllOK(t *testing.T, all []harness.Response) {
	t.Helper()
	if bad := harness.Failed(all); len(bad) > 0 {
		t.Errorf("%d of %d failed, the first with status %d (%s), error %v, body %q",
			len(bad), len(all), bad[0].Status, bad[0].UsherError(), bad[0].Err, bad[0].Body)
	}
	if len(all) == 0 {
		t.Error("no request was made")
	}
}
