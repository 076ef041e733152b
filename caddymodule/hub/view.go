package hub

import (
	"context"
	"encoding/json"
	"time"

	"github.com/caddy-usher/usher/scaler/control"
)

// ServiceSummary is one service in a list.
type ServiceSummary struct {
	Name            string         `json:"name"`
	Backend         string         `json:"backend"`
	State           control.State  `json:"state"`
	Target          int            `json:"target"`
	Min             int            `json:"min"`
	Max             int            `json:"max"`
	Instances       InstanceCounts `json:"instances"`
	Slots           SlotCounts     `json:"slots"`
	Waiting         int            `json:"waiting"`
	Visitors        int            `json:"visitors,omitempty"`      // wait in their browser
	Tasks           int            `json:"tasks,omitempty"`         // wait for a slot
	WaitingBound    int            `json:"waiting_bound,omitempty"` // requests that wait for the instance of their session
	SessionKeys     *int           `json:"session_keys,omitempty"`  // those that are remembered; nil where none are
	OldestWaitMS    int64          `json:"oldest_wait_ms"`
	NeededBy        string         `json:"needed_by,omitempty"` // the services that keep it awake
	ColdStarts      int            `json:"cold_starts"`
	LastColdStartMS int64          `json:"last_cold_start_ms"`
	LastError       *string        `json:"last_error"`
	Start           *StartSummary  `json:"start,omitempty"` // while one is in progress, or after some have failed

	// Where it comes from, if not from the configuration: `run_time` or `discovered`;
	// with its owner and the revision in force.
	Origin   string `json:"origin,omitempty"`
	Owner    string `json:"owner,omitempty"`
	Revision int    `json:"revision,omitempty"`

	// FellBack says why a newer revision is not in force; nil if there is none.
	// Trouble says why its definition cannot be used; what it had before stays.
	FellBack *FellBackView `json:"fell_back,omitempty"`
	Trouble  string        `json:"trouble,omitempty"`
}

// Outlook is what a service needs now and what is expected of it.
type Outlook struct {
	// How many instances the requests inside and waiting need.
	Needed int `json:"needed"`

	// How many instances are there because of what the policy expects, and when
	// it expects the next request; nil if it starts none ahead.
	Predicted int       `json:"predicted,omitempty"`
	Expected  *Expected `json:"expected,omitempty"`

	// What the schedule says; nil without one.
	Schedule *ScheduleSummary `json:"schedule,omitempty"`
}

// Expected is the span of time in which the next request is likely.
type Expected struct {
	From time.Time `json:"from"`
	To   time.Time `json:"to"`
}

// ScheduleSummary is the floor of the schedule, and the next one.
type ScheduleSummary struct {
	Min     int       `json:"min"`
	NextMin int       `json:"next_min"`
	Next    time.Time `json:"next,omitzero"` // zero: it never changes
}

// InstanceCounts are the numbers of instances, by state.
type InstanceCounts struct {
	Starting int `json:"starting"`
	Ready    int `json:"ready"`
	Ejected  int `json:"ejected"`
	Draining int `json:"draining"`
}

// SlotCounts are the slots of the instances that take requests.
type SlotCounts struct {
	Total *int `json:"total"` // null: unlimited
	InUse int  `json:"in_use"`
}

// ServiceDetails is one service, whole.
type ServiceDetails struct {
	ServiceSummary
	InstanceList []InstanceDetails `json:"instance_list"`
	Config       json.RawMessage   `json:"config"`
	Suspension   *Suspension       `json:"suspension,omitempty"` // while it is suspended

	// Why the policy wants what it wants now.
	Why string `json:"why,omitempty"`

	// The services for which the last instance stays: those that need it, or
	// one of its group.
	KeptFor string `json:"kept_for,omitempty"`

	// What the target falls to if no request comes; nil where that is not known.
	Next *NextTarget `json:"next,omitempty"`

	// What it needs and cannot have; nil while an instance is ready.
	BlockedBy *BlockedNeed `json:"blocked_by,omitempty"`

	// The Caddys that share the service and have not answered, so that their part
	// is missing.
	Without []string `json:"without,omitempty"`

	// The splits of which it is a side.
	Splits []string `json:"splits,omitempty"`

	// What is kept of it, if it was made while Caddy runs; set by those who ask.
	Made *MadeView `json:"made,omitempty"`

	Outlook
}

// NextTarget is a target, and when it holds.
type NextTarget struct {
	Target int       `json:"target"`
	At     time.Time `json:"at"`
}

// InstanceDetails is one instance.
type InstanceDetails struct {
	ID       string                `json:"id"`
	Address  string                `json:"address"`
	State    control.InstanceState `json:"state"`
	Revision string                `json:"revision"`
	Slots    *int                  `json:"slots"` // null: unlimited
	InUse    int                   `json:"in_use"`
	Since    time.Time             `json:"since"`

	// Until when a session of it may go on, if no further request of one comes;
	// zero if none is known.
	SessionUntil time.Time `json:"session_until,omitzero"`

	// What it works at in the background, which keeps it from being stopped.
	Busy string `json:"busy,omitempty"`
}

// Current returns the definition in force.
func (s *Service) Current() *Definition {
	s.Hub.mu.Lock()
	defer s.Hub.mu.Unlock()
	return s.definition
}

// Summary describes the service as it is now, in short.
func (s *Service) Summary() ServiceSummary {
	d := s.Current()
	stats, st := s.Reserver.Stats(), s.Loop.Status()
	sum := ServiceSummary{
		Name: s.Name, Backend: d.BackendType(), State: st.State, Target: st.Target,
		Min: d.Service.Instances.Min, Max: d.Service.Instances.Max,
		Instances: InstanceCounts{Starting: st.Starting, Ready: st.Ready, Ejected: st.Ejected, Draining: st.Draining},
		Slots:     SlotCounts{InUse: stats.InUse}, Waiting: stats.Waiting,
		ColdStarts: st.ColdStarts, LastColdStartMS: st.ColdStart.Milliseconds(),
	}
	sum.Visitors, sum.Tasks = s.visitorsAndTasks(stats)
	sum.WaitingBound, sum.NeededBy = stats.Bound, st.KeptBy
	if s.Sessions.Load().Remembers() {
		sum.SessionKeys = &stats.Sessions
	}
	if *d.Service.Concurrency != Unlimited {
		total := stats.Slots
		sum.Slots.Total = &total
	}
	if !stats.OldestWait.IsZero() {
		sum.OldestWaitMS = time.Since(stats.OldestWait).Milliseconds()
	}
	if s.shared != nil {
		sum.addOthers(s.shared.whole(s.Name))
	}
	if t := s.Trouble.Load(); t != nil {
		sum.LastError = &t.Message
	} else if st.LastError != nil {
		msg := st.LastError.Error()
		sum.LastError = &msg
	}
	if sum.LastError == nil && (st.State == control.Failing || st.State == control.Waking) {
		if b := s.blockedBy(); b != nil {
			sum.LastError = &b.Trouble
		}
	}
	sum.Start = summarizeStart(st.Start, Cut)
	s.addOrigin(&sum)
	return sum
}

// addOthers adds what other Caddys have of the service.
func (sum *ServiceSummary) addOthers(w whole) {
	sum.Waiting += w.others.Waiting - w.others.Visitors
	sum.Visitors += w.others.Visitors
	sum.Slots.InUse += w.others.InUse
	switch {
	case w.unlimited:
		sum.Slots.Total = nil
	case sum.Slots.Total != nil:
		sum.Slots.Total = &w.slots
	}
	sum.OldestWaitMS = max(sum.OldestWaitMS, w.others.Oldest.Milliseconds())
}

// Details describes the service as it is now, with its instances and its
// configuration. If Caddys share it, it is that of all of them.
func (s *Service) Details(ctx context.Context) (ServiceDetails, error) {
	d, err := s.details()
	if err == nil && s.shared != nil {
		s.shared.wholeDetails(ctx, &d)
	}
	return d, err
}

// details describes the service as this Caddy sees it.
func (s *Service) details() (ServiceDetails, error) {
	config, err := s.Current().Shown()
	if err != nil {
		return ServiceDetails{}, err
	}
	sum := s.Summary()
	// Of one service, all is told.
	sum.Start = summarizeStart(s.Loop.Status().Start, func(message string) string { return message })
	d := ServiceDetails{
		Outlook: s.Outlook(), ServiceSummary: sum, InstanceList: s.Instances(), Config: config, Suspension: s.Suspended(),
	}
	d.Splits = s.Hub.splitsOf(s.Name)
	p := s.Loop.Prospect()
	d.Why, d.KeptFor = p.Reason, p.KeptFor
	if !p.At.IsZero() {
		d.Next = &NextTarget{Target: p.Target, At: p.At.UTC()}
	}
	if sum.Instances.Ready == 0 {
		d.BlockedBy = s.blockedBy()
	}
	return d, nil
}

// Outlook says what the service needs now and what is expected of it.
func (s *Service) Outlook() Outlook {
	st := s.Loop.Status()
	o := st.Outlook
	f := Outlook{Needed: st.Needed, Predicted: o.Predicted}
	if !o.ExpectedFrom.IsZero() {
		f.Expected = &Expected{From: o.ExpectedFrom.UTC(), To: o.ExpectedTo.UTC()}
	}
	if len(s.Current().Service.At) > 0 {
		f.Schedule = &ScheduleSummary{Min: o.Floor, NextMin: o.NextFloor, Next: o.FloorChange}
	}
	return f
}

// Instances describes the instances, oldest first.
func (s *Service) Instances() []InstanceDetails {
	unlimited := *s.Current().Service.Concurrency == Unlimited
	list := []InstanceDetails{}
	for _, i := range s.Loop.Instances() {
		e := InstanceDetails{
			ID: i.ID, Address: DialAddress(i.Network, i.Address), State: i.State, Revision: i.Revision,
			InUse: i.InUse, Since: i.Since, SessionUntil: i.SessionUntil, Busy: i.Busy,
		}
		if !unlimited {
			e.Slots = &i.Slots
		}
		list = append(list, e)
	}
	return list
}

// Suspended returns the suspension, or nil.
func (s *Service) Suspended() *Suspension {
	s.Hub.mu.Lock()
	defer s.Hub.mu.Unlock()
	return s.suspension
}

// DialAddress writes an address as Caddy does.
func DialAddress(network, address string) string {
	if network == "unix" {
		return "unix/" + address
	}
	return address
}
