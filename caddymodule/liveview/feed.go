package liveview

import (
	"context"
	"encoding/json"
	"reflect"
	"sync"
	"time"

	"github.com/caddy-usher/usher/caddymodule/answer"
	"github.com/caddy-usher/usher/caddymodule/hub"
)

const (
	// feedPause is the time between two frames of the live view.
	feedPause = 200 * time.Millisecond

	// frameServices is how many services one frame may have. The rest comes
	// with the following ones, so that a burst over all services does not
	// flood the viewers.
	frameServices = 128

	// shownInstances is how many instances of a service are told one by one.
	shownInstances = 48
)

// serviceView is one service as the live view shows it.
type serviceView struct {
	hub.ServiceSummary
	InstanceList []hub.InstanceDetails `json:"instance_list"` // the oldest, at most shownInstances
	Suspension   *hub.Suspension       `json:"suspension,omitempty"`
	Targets      []hub.Span            `json:"targets"` // all that is remembered
	hub.Outlook
}

func viewOf(s *hub.Service) serviceView {
	list := s.Instances()
	return serviceView{
		ServiceSummary: s.Summary(), InstanceList: list[:min(len(list), shownInstances)],
		Suspension: s.Suspended(), Targets: s.History().Targets, Outlook: s.Outlook(),
	}
}

// glance is what tells cheaply whether a service is worth a second look.
type glance struct {
	state          string
	target         int
	min, max       int
	slots          int
	cold, entries  int
	failed, paused string
	origin, owner  string
	revision       int
	unused         string // why it does not run as it was defined last
}

// still says whether nothing can move inside: the same glance is the same
// view then.
func isStill(s hub.ServiceSummary) bool {
	return s.Slots.InUse == 0 && s.Waiting == 0 && s.Visitors == 0 && s.Instances == hub.InstanceCounts{}
}

func glanceAt(s *hub.Service, sum hub.ServiceSummary) glance {
	g := glance{
		state: string(sum.State), target: sum.Target, min: sum.Min, max: sum.Max,
		slots: -1, cold: sum.ColdStarts, entries: s.Happened(), origin: sum.Origin, owner: sum.Owner, revision: sum.Revision, unused: sum.Trouble,
	}
	if sum.FellBack != nil {
		g.unused += sum.FellBack.At.String()
	}
	if sum.Slots.Total != nil {
		g.slots = *sum.Slots.Total
	}
	if sum.LastError != nil {
		g.failed = *sum.LastError
	}
	if sus := s.Suspended(); sus != nil {
		g.paused = sus.Reason
	}
	return g
}

// frame is what has changed since the one before.
type frame struct {
	Time     time.Time         `json:"time"`
	Services []json.RawMessage `json:"services"` // those that are new or have changed, whole
	Gone     []string          `json:"gone"`
	Cluster  *clusterView      `json:"cluster,omitempty"` // if it has changed
	Tasks    *tasksView        `json:"tasks,omitempty"`   // if they have changed
	News     []newsItem        `json:"news"`
}

func (f *frame) empty() bool {
	return len(f.Services)+len(f.Gone)+len(f.News) == 0 && f.Cluster == nil && f.Tasks == nil
}

// clusterView is the cluster as the live view shows it.
type clusterView struct {
	Member   string              `json:"member"` // this Caddy
	Isolated bool                `json:"isolated"`
	Members  []hub.ClusterMember `json:"members"`
	Slots    map[string]int      `json:"slots"` // that this Caddy holds, by service
}

// clusterOf returns nil if this Caddy is in none.
func clusterOf(h *hub.Hub) *clusterView {
	st := h.ClusterStatus()
	if st == nil {
		return nil
	}
	v := &clusterView{Member: st.Member, Isolated: st.Isolated, Members: st.Members, Slots: make(map[string]int, len(st.Services))}
	for _, s := range st.Services {
		v.Slots[s.Service] = s.Held
	}
	return v
}

// feed makes the frames of the live view. One goroutine serves all viewers, and
// none runs without a viewer.
type feed struct {
	hub    *hub.Hub
	frames *audience

	mu      sync.Mutex
	viewers int
	stop    chan struct{}
	done    sync.WaitGroup
}

// feedOf returns the feed of h.
func feedOf(h *hub.Hub) *feed {
	return h.Attach(feedKey{}, func() any { return &feed{hub: h, frames: newAudience()} }).(*feed)
}

type feedKey struct{}

// join returns the present, encoded, and a channel with all frames from then
// on. The function that is returned ends it.
func (f *feed) join() (present json.RawMessage, frames <-chan answer.Event, leave func(), err error) {
	frames, unsubscribe := f.frames.join()
	f.mu.Lock()
	if f.viewers++; f.viewers == 1 {
		f.stop = make(chan struct{})
		stop, m := f.stop, &frameMaker{hub: f.hub, tasks: new(taskCounter), shown: make(map[string]shownService)}
		// From here on: the present is later than this.
		m.make(0)
		f.done.Go(func() { f.run(stop, m) })
		f.done.Go(func() { m.tasks.run(f.hub, stop) })
	}
	f.mu.Unlock()
	leave = func() {
		unsubscribe()
		f.mu.Lock()
		defer f.mu.Unlock()
		if f.viewers--; f.viewers == 0 {
			close(f.stop)
			f.done.Wait()
		}
	}
	// What changes while this is put together comes again with a frame.
	if present, err = json.Marshal(presentOf(f.hub)); err != nil {
		leave()
		return nil, nil, nil, err
	}
	return present, frames, leave, nil
}

// Close ends all streams.
func (f *feed) Close() { f.frames.close() }

// presentView is everything that the live view shows at first.
type presentView struct {
	Time     time.Time     `json:"time"`
	Services []serviceView `json:"services"`
	News     []newsItem    `json:"news"`
	Cluster  *clusterView  `json:"cluster,omitempty"`
	Tasks    *tasksView    `json:"tasks,omitempty"`
}

func presentOf(h *hub.Hub) presentView {
	p := presentView{Time: time.Now(), Services: []serviceView{}, Cluster: clusterOf(h), Tasks: tasksOf(context.Background(), h)}
	p.News, _ = newsAfter(h, 0)
	for _, s := range h.All() {
		p.Services = append(p.Services, viewOf(s))
	}
	return p
}

// run publishes a frame whenever something has changed.
func (f *feed) run(stop <-chan struct{}, m *frameMaker) {
	tick := time.NewTicker(feedPause)
	defer tick.Stop()
	for {
		select {
		case <-tick.C:
			if fr := m.make(frameServices); !fr.empty() {
				f.frames.tell("frame", fr)
			}
		case <-stop:
			return
		}
	}
}

// frameMaker knows what was told last.
type frameMaker struct {
	hub   *hub.Hub
	shown map[string]shownService
	ofAll *clusterView // that was told last
	tasks *taskCounter
	count *tasksView // that was told last
	told  uint64     // the number of the last entry of the activity that was looked at
	from  int        // where the last frame was full
}

type shownService struct {
	glance  glance
	still   bool
	encoded string
}

// make returns what has changed. With the limit 0 it only takes note of what
// there is.
func (m *frameMaker) make(limit int) *frame {
	fr := &frame{Time: time.Now(), Services: []json.RawMessage{}, Gone: []string{}}
	fr.News, m.told = newsAfter(m.hub, m.told)
	if c := clusterOf(m.hub); !reflect.DeepEqual(c, m.ofAll) {
		fr.Cluster, m.ofAll = c, c
	}
	if t := m.tasks.latest.Load(); t != nil && !t.sameCounts(m.count) {
		fr.Tasks, m.count = t, t
	}
	all := m.hub.All()
	there := make(map[string]bool, len(all))
	for k := range all {
		s := all[(m.from+k)%len(all)]
		there[s.Name] = true
		if limit > 0 && len(fr.Services) == limit {
			continue
		}
		if encoded := m.look(s); encoded != nil {
			fr.Services = append(fr.Services, encoded)
			if len(fr.Services) == limit {
				m.from = (m.from + k + 1) % len(all)
			}
		}
	}
	for name := range m.shown {
		if !there[name] {
			delete(m.shown, name)
			fr.Gone = append(fr.Gone, name)
		}
	}
	return fr
}

// look returns the service as it is now if it is not what was shown last.
func (m *frameMaker) look(s *hub.Service) json.RawMessage {
	sum := s.Summary()
	g, still := glanceAt(s, sum), isStill(sum)
	was, known := m.shown[s.Name]
	if known && was.glance == g && was.still && still {
		return nil
	}
	encoded, err := json.Marshal(viewOf(s))
	if err != nil {
		return nil
	}
	m.shown[s.Name] = shownService{g, still, string(encoded)}
	if known && was.encoded == string(encoded) {
		return nil
	}
	return encoded
}
