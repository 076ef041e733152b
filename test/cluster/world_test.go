//go:build linux

// Package cluster tests several real Caddys that share the instances of one
// simulated Marathon, whose tasks are real processes, by a real etcd. It looks
// at what clients see, and at what the instances write of the requests inside.
package cluster

import (
	"encoding/json"
	"fmt"
	"net"
	"strings"
	"sync"
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
	peers   []string // where each listens for the others
	cluster string   // further options of the cluster
	web     []string // options of the service web
	name    string   // of the app
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
	w := &town{t: t, sim: sim, etcd: etcdserver.Start(t, etcdserver.Options{}), cluster: clusterOptions, web: web, name: "/web"}
	for range caddys {
		w.caddys = append(w.caddys, harness.New(t))
		w.peers = append(w.peers, freeAddress(t))
	}
	w.app("/web", w.caddys[0].App())
	t.Cleanup(w.report)
	return w
}

// freeAddress is one where nothing listens.
func freeAddress(t *testing.T) string {
	t.Helper()
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	return l.Addr().String()
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
	backend := "backend marathon " + w.name + " {\n\turl " + strings.Join(w.sim.URLs(), " ") + "\n}"
	return harness.Config{
		Usher: fmt.Sprintf("cluster {\n\tcoordinator etcd %s\n\tlisten %s\n\tsecret \"what all of them know\"\n%s\n}", w.etcd.URL, w.peers[k], w.cluster),
		Site:  "log\n" + harness.Usher("web", append(append([]string{backend}, w.web...), change...)...),
	}
}

func (w *town) start() {
	w.t.Helper()
	var starting sync.WaitGroup
	for k, c := range w.caddys {
		starting.Go(func() { c.Start(w.config(k)) })
	}
	starting.Wait()
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
