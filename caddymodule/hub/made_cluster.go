package hub

import (
	"context"
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"maps"
	"slices"
	"time"

	"go.uber.org/zap"

	"github.com/caddy-usher/usher/cluster"
	"github.com/caddy-usher/usher/registry"
)

// In a cluster, services are changed at the Caddy that leads. It tells the others
// the whole record: they may have storages of their own. One that was not there
// when something was told asks the leader for what it lacks.

const (
	// newsMade is the subject of news about a record of the registry.
	newsMade = "made"

	// newsVariant, before the name of a service, is that of news about params with
	// which a request has come: the Caddy that leads has to run the instances.
	newsVariant = "variant/"

	// newsVariantGone is that of news that the Caddy that leads has ended a variant,
	// which was unused. Its name is the body.
	newsVariantGone = "variant_gone"

	// newsUsed is that of news about services whose instances are a Caddy's own, which
	// had requests there. Their names are the body.
	newsUsed = "used"
)

// namesTold is how many names one message has at most.
const namesTold = 1000

// MadeChange is a change of a service that is made while Caddy runs.
type MadeChange struct {
	Do   string          `json:"do"` // put, patch, delete or rollback
	Name string          `json:"name"`
	Call registry.Call   `json:"call"`
	Body json.RawMessage `json:"body,omitempty"` // of put and patch
	To   int             `json:"to,omitempty"`   // revision, of rollback; 0 is the one before
}

// The values of MadeChange.Do.
const (
	MadePut      = "put"
	MadePatch    = "patch"
	MadeDelete   = "delete"
	MadeRollback = "rollback"
)

// MadeResult is what came of a change.
type MadeResult struct {
	Record  *registry.Record // nil after a deletion
	Created bool
}

// ErrNoRegistry says that the configuration lets no services be made while Caddy
// runs.
var ErrNoRegistry = errors.New("no services can be made at run time: the configuration has no registry")

// ChangeMade changes a service that is made while Caddy runs, at whichever Caddy
// that has to be done. It returns when the change is stored and in force here.
// Errors about the change itself are of the type registry.Error.
func (h *Hub) ChangeMade(ctx context.Context, c MadeChange) (MadeResult, error) {
	k := h.keeper.Load()
	if k == nil || h.Registry() == nil {
		return MadeResult{}, ErrNoRegistry
	}
	m := h.member.Load()
	if m == nil || m.leading() {
		return k.change(ctx, c)
	}
	r, err := m.askLeader(ctx, question{Service: c.Name, Do: askMade, Made: &c})
	if r.Kind != 0 {
		return MadeResult{}, &registry.Error{Kind: registry.Kind(r.Kind), Message: r.Error}
	}
	if err != nil {
		return MadeResult{}, err
	}
	res := MadeResult{Created: r.Created}
	if len(r.Record) > 0 {
		if res.Record, err = registry.DecodeRecord(r.Record); err != nil {
			return MadeResult{}, err
		}
		// It is in force here when the change is answered here.
		err = k.registry.Merge(ctx, res.Record)
	}
	if c.Do == MadeDelete {
		res.Record = nil
	}
	return res, err
}

// change makes the change at this Caddy.
func (k *keeper) change(ctx context.Context, c MadeChange) (res MadeResult, err error) {
	// Reloads, and all other changes, wait for this one.
	ctx, cancel := context.WithTimeout(ctx, madeTimeout)
	defer cancel()
	if c.Call.Now.IsZero() {
		c.Call.Now = time.Now()
	}
	switch c.Do {
	case MadePut:
		res.Record, res.Created, err = k.registry.Put(ctx, c.Call, c.Name, c.Body)
	case MadePatch:
		res.Record, err = k.registry.Patch(ctx, c.Call, c.Name, c.Body)
	case MadeDelete:
		err = k.registry.Delete(ctx, c.Call, c.Name)
	case MadeRollback:
		res.Record, err = k.registry.Rollback(ctx, c.Call, c.Name, c.To)
	default:
		err = fmt.Errorf("there is no change '%s' of a service: use the same Usher on all Caddys of a cluster", c.Do)
	}
	if err == nil {
		k.log().Info("service changed at run time", zap.String("service", c.Name), zap.String("change", c.Do), zap.String("by", c.Call.By))
		k.tellRecord(c.Name)
	}
	if registry.KindOf(err) == registry.StoreFailed && !c.Call.Operator {
		// Where and how Caddy stores is for operators.
		k.log().Error("a service could not be changed at run time", zap.String("service", c.Name), zap.String("change", c.Do), zap.String("by", c.Call.By), zap.Error(err))
		err = &registry.Error{Kind: registry.StoreFailed, Message: "services cannot be changed now, because the storage does not work: try again later"}
	}
	return res, err
}

// replyMade is what another Caddy is answered that has asked for a change.
func (m *membership) replyMade(ctx context.Context, c *MadeChange) (reply, error) {
	k := m.hub.keeper.Load()
	if c == nil || k == nil || m.hub.Registry() == nil {
		return reply{}, conflict(fmt.Sprintf("the Caddy at %s: %v: give all the same configuration", m.cluster.config.Advertise, ErrNoRegistry))
	}
	res, err := k.change(ctx, *c)
	if e, ok := errors.AsType[*registry.Error](err); ok {
		return reply{Kind: int(e.Kind), Error: e.Message}, nil
	}
	if err != nil {
		return reply{}, err
	}
	r := reply{Created: res.Created}
	if rec := k.registry.Stored(c.Name); rec != nil {
		r.Record = registry.EncodeRecord(rec)
	}
	return r, err
}

// tellRecord tells the other Caddys of a cluster what is stored of a service.
func (k *keeper) tellRecord(name string) {
	m := k.hub.member.Load()
	if m == nil {
		return
	}
	if r := k.registry.Stored(name); r != nil {
		m.driver.Tell(newsMade, registry.EncodeRecord(r))
	}
}

// hearRecord takes what another Caddy tells of a service.
func (m *membership) hearRecord(body []byte) {
	r, err := registry.DecodeRecord(body)
	if err != nil {
		m.log().Warn("what another Caddy tells of a service that was made at run time is not understood: use the same Usher on all Caddys of a cluster", zap.Error(err))
		return
	}
	k := m.hub.keeper.Load()
	if k == nil {
		return // it reads its storage, and asks the leader, when it gets a registry
	}
	m.hub.background.Go(func() { k.merge(r) }) // the storage can take its time
}

// merge says whether what another Caddy has of a service is known here now.
func (k *keeper) merge(r *registry.Record) bool {
	ctx, cancel := context.WithTimeout(k.hub.ctx, storageTimeout)
	defer cancel()
	err := k.registry.Merge(ctx, r)
	if err != nil && ctx.Err() == nil {
		k.log().Error("what another Caddy has made of a service could not be taken over: it is asked for again in a moment",
			zap.String("service", r.Name), zap.Error(err))
	}
	return err == nil
}

// fetchMade asks the Caddy that leads for what it has of the services that are made
// while Caddy runs, and tells it what only this one has.
func (m *membership) fetchMade(ctx context.Context) {
	k := m.hub.keeper.Load()
	for more := k != nil; more && !m.leading() && ctx.Err() == nil; {
		known := make(map[string]string)
		for _, r := range k.registry.AllStored() {
			known[r.Name] = r.State()
		}
		r, err := m.askLeader(ctx, question{Do: askAllMade, Known: known})
		if err != nil {
			m.log().Debug("the Caddy that leads does not tell of the services that were made at run time", zap.Error(err))
			return
		}
		more = k.take(ctx, r) && r.More
	}
}

// take takes what the Caddy that leads has answered. It says whether all of it is known
// here now.
func (k *keeper) take(ctx context.Context, r reply) bool {
	all := true
	for _, b := range r.Records {
		if ctx.Err() != nil {
			return false
		}
		rec, err := registry.DecodeRecord(b)
		if err != nil {
			k.log().Warn("what another Caddy tells of a service that was made at run time is not understood: use the same Usher on all Caddys of a cluster", zap.Error(err))
			return false
		}
		all = k.merge(rec) && all
	}
	for _, name := range r.Lacking {
		k.tellRecord(name)
	}
	return all
}

// catchUpMade gets all that was told while this Caddy did not hear it, and tells what
// only this one knows.
func (m *membership) catchUpMade() {
	m.fetchMade(m.hub.ctx)
	m.exchangeVariants(m.hub.ctx)
}

// exchangeVariants makes the variants that the Caddy that leads has, and tells it of
// those that are here.
func (m *membership) exchangeVariants(ctx context.Context) {
	k := m.hub.keeper.Load()
	if k == nil || m.leading() {
		return
	}
	r, err := m.askLeader(ctx, question{Do: askVariants})
	if err != nil {
		m.log().Debug("the Caddy that leads does not tell of the variants of services", zap.Error(err))
		return
	}
	for _, v := range r.Variants {
		k.varyAsTold(v.Service, v.Params)
	}
	for _, v := range k.variantsGiven() {
		m.tellVariant(v.Service, v.Params)
	}
}

// compareMade looks whether this Caddy knows the same as the one that leads, and
// catches up if not: what is told while another Caddy takes the lead is lost.
func (m *membership) compareMade(ctx context.Context) {
	k := m.hub.keeper.Load()
	if k == nil || m.leading() {
		return
	}
	r, err := m.askLeader(ctx, question{Do: askMadeSums})
	own := k.sums()
	if err != nil || len(r.Sums) != len(own) {
		return // the next look is soon
	}
	if r.Sums[0] != own[0] {
		m.fetchMade(ctx)
	}
	if r.Sums[1] != own[1] {
		m.exchangeVariants(ctx)
	}
}

// sums are short hashes of all records that are stored, and of all variants.
func (k *keeper) sums() []string {
	records, variants := sha256.New(), sha256.New()
	for _, r := range k.registry.AllStored() {
		records.Write([]byte(r.Name + " " + r.State() + "\n"))
	}
	var names []string
	k.working.Lock()
	for name, m := range k.made {
		if m.variant {
			names = append(names, name)
		}
	}
	k.working.Unlock()
	slices.Sort(names)
	for _, name := range names {
		variants.Write([]byte(name + "\n"))
	}
	return []string{hex.EncodeToString(records.Sum(nil)), hex.EncodeToString(variants.Sum(nil))}
}

// variantGiven is a service with the params of a request that makes a variant of it.
type variantGiven struct {
	Service string            `json:"service"`
	Params  map[string]string `json:"params"`
}

// variantsGiven are the variants that run.
func (k *keeper) variantsGiven() (all []variantGiven) {
	k.working.Lock()
	defer k.working.Unlock()
	for _, m := range k.made {
		if m.variant {
			all = append(all, variantGiven{m.record.Name, m.params})
		}
	}
	return all
}

// varyAsTold makes a variant that another Caddy has made.
func (k *keeper) varyAsTold(name string, params map[string]string) {
	made := k.names.find(name)
	if made == nil || made.Service == nil {
		return // the record is on its way, or cannot be used here
	}
	if _, _, err := k.vary(made, params); err != nil {
		k.log().Debug("a variant of a service that another Caddy has made cannot be made here", zap.String("service", name), zap.Error(err))
	}
}

// mostRecords is how many bytes of records one answer has at most, unless a single one
// has more. What is sent is a third longer, and a message of more than 8 MiB is refused.
const mostRecords = 2 << 20

// replyAllMade is what a Caddy is answered that knows these states of services.
func (m *membership) replyAllMade(known map[string]string) (r reply, err error) {
	k := m.hub.keeper.Load()
	if k == nil {
		return r, nil
	}
	size := 0
	for _, rec := range k.registry.AllStored() {
		state, has := known[rec.Name]
		delete(known, rec.Name)
		if has && state == rec.State() {
			continue
		}
		b := registry.EncodeRecord(rec)
		if size += len(b); size > mostRecords && len(r.Records) > 0 {
			// It asks again when it knows these.
			return reply{Records: r.Records, Lacking: r.Lacking, More: true}, nil
		}
		r.Records = append(r.Records, b)
		if has {
			r.Lacking = append(r.Lacking, rec.Name) // the newer of the two wins at both
		}
	}
	r.Lacking = append(r.Lacking, slices.Collect(maps.Keys(known))...)
	return r, nil
}

// tellVariant tells the other Caddys of params with which a request has come.
func (m *membership) tellVariant(name string, params map[string]string) {
	if b, err := json.Marshal(params); err == nil { // strings can always be encoded
		m.driver.Tell(newsVariant+name, b)
	}
}

// hearVariant makes the same variant here.
func (m *membership) hearVariant(name string, body []byte) {
	var params map[string]string
	k := m.hub.keeper.Load()
	if k == nil || json.Unmarshal(body, &params) != nil {
		return
	}
	m.hub.background.Go(func() { k.varyAsTold(name, params) })
}

// hearVariantGone ends the variant here, too: the Caddy that leads runs no instance for
// its requests any more. If there are requests meanwhile, the leader is told of it again.
func (m *membership) hearVariantGone(name string) {
	k := m.hub.keeper.Load()
	if k == nil {
		return
	}
	m.hub.background.Go(func() {
		k.working.Lock()
		v := k.made[name]
		again := v != nil && v.variant && !v.unused()
		if v != nil && v.variant && !again {
			k.remove(name)
		}
		k.working.Unlock()
		if again {
			m.tellVariant(v.record.Name, v.params)
		}
	})
}

// tellUsed tells the Caddy that leads of services that were used here: it decides which
// are of use no longer.
func (m *membership) tellUsed(names []string) {
	if b, err := json.Marshal(names); err == nil { // strings can always be encoded
		m.driver.Tell(newsUsed, b)
	}
}

// hearUsed takes note of what was used at another Caddy.
func (m *membership) hearUsed(body []byte) {
	var names []string
	k := m.hub.keeper.Load()
	if k == nil || json.Unmarshal(body, &names) != nil {
		return
	}
	m.hub.background.Go(func() {
		k.working.Lock()
		defer k.working.Unlock()
		now := time.Now()
		for _, name := range names {
			if s := k.made[name]; s != nil {
				s.used = now
			}
		}
	})
}

// tellPause gathers changes of what this Caddy's services are. It is longer where
// there are so many services that telling takes its time.
const tellPause = 50 * time.Millisecond

// tellCluster tells the other Caddys soon what this one says of its services. The
// lock is held.
func (k *keeper) tellCluster() {
	m := k.hub.member.Load()
	if m == nil || k.telling {
		return
	}
	k.telling = true
	time.AfterFunc(max(tellPause, k.tellCost*10), func() {
		k.working.Lock()
		k.telling = false
		k.working.Unlock()
		began := time.Now()
		if err := m.define(); err != nil {
			k.log().Error("the other Caddys are not told what this one says of its services", zap.Error(err))
		}
		k.working.Lock()
		k.tellCost = time.Since(began)
		k.working.Unlock()
	})
}

// define tells the others what this Caddy says of its services: the configuration
// in force, and what was made while Caddy runs.
func (m *membership) define() error {
	all := make(map[string]*Definition)
	if k := m.hub.keeper.Load(); k != nil {
		k.working.Lock()
		for name, s := range k.made {
			if s.definition != nil {
				all[name] = s.definition
			}
		}
		k.working.Unlock()
	}
	m.hub.mu.Lock()
	if n := len(m.hub.generations); n > 0 {
		maps.Copy(all, m.hub.generations[n-1].Definitions)
	}
	m.hub.mu.Unlock()
	list := make([]cluster.Definition, 0, len(all))
	for _, name := range slices.Sorted(maps.Keys(all)) {
		d := all[name]
		if !d.shared() {
			continue
		}
		sum, err := d.sum()
		if err != nil {
			return fmt.Errorf("service %s: %w", name, err)
		}
		list = append(list, cluster.Definition{Service: name, Hash: sum})
	}
	m.driver.Define(list)
	return nil
}

// sum is a short hash of all that d says.
func (d *Definition) sum() (string, error) {
	if s := d.summed.Load(); s != nil {
		return *s, nil
	}
	fields, err := d.Fields()
	if err != nil {
		return "", err
	}
	b, err := json.Marshal(fields)
	if err != nil {
		return "", err
	}
	whole := sha256.Sum256(b)
	sum := hex.EncodeToString(whole[:8])
	d.summed.Store(&sum)
	return sum, nil
}
