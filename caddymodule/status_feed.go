package caddymodule

import (
	"encoding/json"
	"sync"
	"time"
)

const (
	// feedPause is the time between two frames of the live view.
	feedPause = 200 * time.Millisecond

	// frameServices is how many services one frame may have. The rest comes
	// with the following ones, so that a burst over all services does not
	// flood who looks on.
	frameServices = 128

	// shownInstances is how many instances of a service are told one by one.
	shownInstances = 48
)

// serviceView is one service as the live view shows it.
type serviceView struct {
	serviceSummary
	InstanceList []instanceDetails `json:"instance_list"` // the oldest, at most shownInstances
	Suspension   *suspension       `json:"suspension,omitempty"`
	Targets      []targetSpan      `json:"targets"` // all that is remembered
}

func (s *service) view() serviceView {
	list := s.instances()
	return serviceView{
		serviceSummary: s.summary(), InstanceList: list[:min(len(list), shownInstances)],
		Suspension: s.suspended(), Targets: s.chronicle.Load().copy().Targets,
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
}

// still says whether nothing can move inside: the same glance is the same
// view then.
func (s serviceSummary) still() bool {
	return s.Slots.InUse == 0 && s.Waiting == 0 && s.Visitors == 0 && s.Instances == instanceCounts{}
}

func (s *service) glance(sum serviceSummary) glance {
	g := glance{
		state: string(sum.State), target: sum.Target, min: sum.Min, max: sum.Max,
		slots: -1, cold: sum.ColdStarts, entries: s.chronicle.Load().count(),
	}
	if sum.Slots.Total != nil {
		g.slots = *sum.Slots.Total
	}
	if sum.LastError != nil {
		g.failed = *sum.LastError
	}
	if sus := s.suspended(); sus != nil {
		g.paused = sus.Reason
	}
	return g
}

// frame is what has changed since the one before.
type frame struct {
	Time     time.Time         `json:"time"`
	Services []json.RawMessage `json:"services"` // those that are new or have changed, whole
	Gone     []string          `json:"gone"`
	News     []newsItem        `json:"news"`
}

func (f *frame) empty() bool { return len(f.Services)+len(f.Gone)+len(f.News) == 0 }

// feed makes the frames of the live view: one goroutine for all who look on,
// and none while nobody does.
type feed struct {
	hub    *hub
	frames *bus

	mu      sync.Mutex
	viewers int
	stop    chan struct{}
	done    sync.WaitGroup
}

func newFeed(h *hub) *feed { return &feed{hub: h, frames: newBus()} }

// join returns the present, encoded, and a channel with all frames from then
// on. The function that is returned ends it.
func (f *feed) join() (present json.RawMessage, frames <-chan event, leave func(), err error) {
	frames, unsubscribe := f.frames.subscribe()
	f.mu.Lock()
	if f.viewers++; f.viewers == 1 {
		f.stop = make(chan struct{})
		stop, m := f.stop, &frameMaker{hub: f.hub, shown: make(map[string]shownService)}
		// From here on: the present is later than this.
		m.make(0)
		f.done.Go(func() { f.run(stop, m) })
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
	if present, err = json.Marshal(f.hub.present()); err != nil {
		leave()
		return nil, nil, nil, err
	}
	return present, frames, leave, nil
}

// close ends all streams.
func (f *feed) close() { f.frames.close() }

// presentView is everything that the live view shows at first.
type presentView struct {
	Time     time.Time     `json:"time"`
	Services []serviceView `json:"services"`
	News     []newsItem    `json:"news"`
}

func (h *hub) present() presentView {
	p := presentView{Time: time.Now(), Services: []serviceView{}, News: h.news.after(0)}
	for _, s := range h.all() {
		p.Services = append(p.Services, s.view())
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
				f.frames.publish("frame", fr)
			}
		case <-stop:
			return
		}
	}
}

// frameMaker knows what was told last.
type frameMaker struct {
	hub   *hub
	shown map[string]shownService
	news  uint64
	from  int // where the last frame was full
}

type shownService struct {
	glance  glance
	still   bool
	encoded string
}

// make returns what has changed. With the limit 0 it only takes note of what
// there is.
func (m *frameMaker) make(limit int) *frame {
	fr := &frame{Time: time.Now(), Services: []json.RawMessage{}, Gone: []string{}, News: m.hub.news.after(m.news)}
	if n := len(fr.News); n > 0 {
		m.news = fr.News[n-1].Number
	}
	all := m.hub.all()
	there := make(map[string]bool, len(all))
	for k := range all {
		s := all[(m.from+k)%len(all)]
		there[s.name] = true
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
func (m *frameMaker) look(s *service) json.RawMessage {
	sum := s.summary()
	g, still := s.glance(sum), sum.still()
	was, known := m.shown[s.name]
	if known && was.glance == g && was.still && still {
		return nil
	}
	encoded, err := json.Marshal(s.view())
	if err != nil {
		return nil
	}
	m.shown[s.name] = shownService{g, still, string(encoded)}
	if known && was.encoded == string(encoded) {
		return nil
	}
	return encoded
}
