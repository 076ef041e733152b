package hub

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"slices"
	"sync"
	"time"
)

// What an operator asks one Caddy of a cluster is asked of the one that knows: the
// Caddy that leads. No request of a client waits for such a question.

// questionTimeout bounds how long an operator waits for another Caddy.
const questionTimeout = 5 * time.Second

var errQuestionTimeout = fmt.Errorf("it has not answered within %s", questionTimeout)

// question is what one Caddy asks another.
type question struct {
	Service string `json:"service"`

	// Do is a verb of Operate, or one of those below.
	Do     string `json:"do"`
	Reason string `json:"reason,omitempty"` // with suspend

	Instance string `json:"instance,omitempty"` // with askStop

	Made  *MadeChange       `json:"made,omitempty"`  // with askMade
	Known map[string]string `json:"known,omitempty"` // with askAllMade: states of records by the names of services
}

const (
	askStop     = "stop_instance" // drain and stop one instance
	askDetails  = "details"       // the service as the one that is asked sees it
	askInside   = "inside"        // how many requests of the one that is asked are inside each instance
	askPlaced   = "placed"        // the keys of sessions, with their instances
	askMade     = "made"          // change a service that is made while Caddy runs
	askAllMade  = "all_made"      // all records of such services that are not as known
	askVariants = "variants"      // the variants of such services
	askMadeSums = "made_sums"     // hashes of those records and variants
)

// reply is what it is answered.
type reply struct {
	Error    string          `json:"error,omitempty"`
	Conflict bool            `json:"conflict,omitempty"` // Error is one of ErrConflict
	Missing  bool            `json:"missing,omitempty"`  // there is no such instance
	Details  *ServiceDetails `json:"details,omitempty"`
	Inside   map[string]int  `json:"inside,omitempty"`
	Placed   []byte          `json:"placed,omitempty"`

	Kind    int      `json:"kind,omitempty"`    // of an error of the registry
	Created bool     `json:"created,omitempty"` // with askMade
	Record  []byte   `json:"record,omitempty"`
	Records [][]byte `json:"records,omitempty"` // with askAllMade
	More    bool     `json:"more,omitempty"`    // there are more records than those
	Lacking []string `json:"lacking,omitempty"` // services of which the one that asked knows something newer

	Variants []variantGiven `json:"variants,omitempty"` // with askVariants
	Sums     []string       `json:"sums,omitempty"`     // with askMadeSums
}

// ErrNoInstance says that a service has no such instance.
var ErrNoInstance = errors.New("there is no such instance")

func (r reply) err() error {
	switch {
	case r.Missing:
		return ErrNoInstance
	case r.Error == "":
		return nil
	case r.Conflict:
		return conflict(r.Error)
	}
	return errors.New(r.Error)
}

// replyTo is the reply that err makes of r.
func replyTo(r reply, err error) reply {
	if err != nil {
		r.Error, r.Conflict, r.Missing = err.Error(), errors.Is(err, ErrConflict), errors.Is(err, ErrNoInstance)
	}
	return r
}

// ask asks another member.
func (m *membership) ask(ctx context.Context, member string, q question) (reply, error) {
	b, err := json.Marshal(q)
	if err != nil {
		return reply{}, err
	}
	ctx, cancel := context.WithTimeoutCause(ctx, questionTimeout, errQuestionTimeout)
	defer cancel()
	if b, err = m.driver.Ask(ctx, member, b); err != nil {
		return reply{}, err
	}
	var r reply
	if err := json.Unmarshal(b, &r); err != nil {
		return reply{}, fmt.Errorf("the answer of member %s is not understood: %w", member, err)
	}
	return r, r.err()
}

// askLeader asks the Caddy that leads, which is another one.
func (m *membership) askLeader(ctx context.Context, q question) (reply, error) {
	leader := m.leader()
	if leader == "" || leader == m.cluster.config.Advertise {
		return reply{}, conflict(fmt.Sprintf("the instances of service %s are shared, and no Caddy leads at the moment: see 'caddy usher cluster'", q.Service))
	}
	r, err := m.ask(ctx, leader, q)
	if err != nil && r.err() == nil {
		return r, conflict(fmt.Sprintf("the instances of service %s are shared, and the Caddy that leads could not be asked: %v", q.Service, err))
	}
	return r, err
}

// leader returns the ID of the Caddy that leads; empty if there is none.
func (m *membership) leader() string {
	v := m.driver.Status().View
	p, _ := v.Peer(v.Leader)
	return p.ID
}

// answer answers another member. It implements the driver's Answer.
func (m *membership) answer(ctx context.Context, asked []byte) []byte {
	var q question
	err := json.Unmarshal(asked, &q)
	var r reply
	if err == nil {
		r, err = m.reply(ctx, q)
	}
	b, err := json.Marshal(replyTo(r, err))
	if err != nil {
		return []byte(`{"error":"the answer cannot be encoded"}`)
	}
	return b
}

func (m *membership) reply(ctx context.Context, q question) (r reply, err error) {
	switch q.Do {
	case askMade, askAllMade, askVariants, askMadeSums:
		if !m.leading() {
			return r, conflict(fmt.Sprintf("the Caddy at %s leads no longer: try again in a moment", m.cluster.config.Advertise))
		}
		switch q.Do {
		case askMade:
			return m.replyMade(ctx, q.Made)
		case askMadeSums:
			if k := m.hub.keeper.Load(); k != nil {
				r.Sums = k.sums()
			}
			return r, nil
		case askVariants:
			if k := m.hub.keeper.Load(); k != nil {
				r.Variants = k.variantsGiven()
			}
			return r, nil
		}
		return m.replyAllMade(q.Known)
	}
	_, s := m.of(q.Service, nil)
	if s == nil {
		return r, conflict(fmt.Sprintf("the Caddy at %s has no service %s: give all the same configuration", m.cluster.config.Advertise, q.Service))
	}
	switch {
	case q.Do == askInside:
		r.Inside = make(map[string]int)
		for _, i := range s.Loop.Instances() {
			r.Inside[i.ID] = i.InUse
		}
		return r, nil
	case !m.leading():
		return r, conflict(fmt.Sprintf("the Caddy at %s leads no longer: try again in a moment", m.cluster.config.Advertise))
	case q.Do == askPlaced:
		r.Placed = encodePlaced(s.Reserver.Placements())
		return r, nil
	case q.Do == askStop:
		return r, s.stopInstance(q.Instance)
	case q.Do == askDetails:
		d, err := s.details()
		d.Config = nil
		return reply{Details: &d}, err
	case IsOperation(q.Do):
		return r, m.hub.operateHere(ctx, s, q.Do, q.Reason)
	}
	return r, fmt.Errorf("'%s' is not understood: use the same Usher on all Caddys of a cluster", q.Do)
}

// StopInstance drains and stops one instance of s for good, at whichever Caddy
// that can be done.
func (h *Hub) StopInstance(ctx context.Context, s *Service, id string) error {
	if s.follows() {
		_, err := s.shared.askLeader(ctx, question{Service: s.Name, Do: askStop, Instance: id})
		return err
	}
	return s.stopInstance(id)
}

func (s *Service) stopInstance(id string) error {
	if !s.Loop.StopInstance(id) {
		return ErrNoInstance
	}
	return nil
}

// follows reports whether another Caddy decides what becomes of the instances.
func (s *Service) follows() bool { return s.shared != nil && !s.shared.leading() }

// wholeDetails adds to d, which is the service as this Caddy sees it, what other Caddys
// know of it.
func (m *membership) wholeDetails(ctx context.Context, d *ServiceDetails) {
	missing := make(map[string]bool)
	if !m.leading() {
		r, err := m.askLeader(ctx, question{Service: d.Name, Do: askDetails})
		if err == nil && r.Details != nil {
			own := inside(d.InstanceList)
			l := r.Details
			d.InstanceList, d.Why, d.KeptFor, d.Next, d.BlockedBy, d.Outlook, d.Start = l.InstanceList, l.Why, l.KeptFor, l.Next, l.BlockedBy, l.Outlook, l.Start
			for k := range d.InstanceList {
				d.InstanceList[k].InUse = own[d.InstanceList[k].ID]
			}
		} else if leader := m.leader(); leader != "" {
			missing[leader] = true
		}
	}
	st := m.status()
	answers := make([]reply, len(st.Members))
	errs := make([]error, len(st.Members))
	var asking sync.WaitGroup
	for k, member := range st.Members {
		if member.Member == st.Member || member.Lost || missing[member.Member] {
			continue
		}
		asking.Go(func() { answers[k], errs[k] = m.ask(ctx, member.Member, question{Service: d.Name, Do: askInside}) })
	}
	asking.Wait()
	for k, r := range answers {
		if errs[k] != nil {
			missing[st.Members[k].Member] = true
		}
		for j := range d.InstanceList {
			d.InstanceList[j].InUse += r.Inside[d.InstanceList[j].ID]
		}
	}
	for member := range missing {
		d.Without = append(d.Without, member)
	}
	slices.Sort(d.Without)
}

func inside(all []InstanceDetails) map[string]int {
	n := make(map[string]int, len(all))
	for _, i := range all {
		n[i.ID] = i.InUse
	}
	return n
}
