package registry

import (
	"context"
	"errors"
	"time"
)

const (
	// byForget is who deletes services that are unused.
	byForget = "forget"

	// startGrace is how long after the first Sweep no service is forgotten.
	startGrace = time.Hour

	minUsedGrain = time.Minute
	maxUsedGrain = 24 * time.Hour
)

// usedGrain is how much later a use must be than the stored one to be written: each
// service costs a few writes in the time after which it would be forgotten.
func usedGrain(forget time.Duration) time.Duration {
	return min(max(forget/10, minUsedGrain), maxUsedGrain)
}

// Sweep removes services that were deleted DeletedKept ago from the store. With used it
// also deletes stored services that are unused for as long as the rules say (forget), and
// writes when the others were used. Call it every few minutes; of Caddys that share a
// store or tell each other, one calls it with used.
//
// used returns when a service was used last, zero if that is not known, and whether a
// request is on it or waits for it now.
//
// A service that cannot be written does not keep others from being swept. The errors are
// joined. When ctx has ended, the rest is left to the next call.
func (r *Registry) Sweep(ctx context.Context, now time.Time, used func(name string) (last time.Time, inside bool)) error {
	var errs []error
	for _, record := range r.Deleted() {
		if now.Sub(record.Deleted) >= DeletedKept && ctx.Err() == nil {
			errs = append(errs, r.purge(ctx, record.Name, now))
		}
	}
	forget := r.rules.Load().Forget
	if used == nil || forget == 0 {
		return errors.Join(errs...)
	}
	mayForget, err := r.mayForget(ctx, now, forget)
	if err != nil {
		return errors.Join(append(errs, err)...)
	}
	for _, record := range r.List() {
		if ctx.Err() != nil {
			break
		}
		if record.Origin != RunTime {
			continue
		}
		last, inside := used(record.Name)
		if inside {
			last = now
		}
		if mayForget && record.forgotten(last, now, forget) || last.Sub(record.Used) >= usedGrain(forget) {
			errs = append(errs, r.sweepOne(ctx, record.Name, last, now, forget, mayForget))
		}
	}
	return errors.Join(errs...)
}

// mayForget says whether services can be forgotten: not soon after the program began. It may
// have been away for so long that all services are unused.
func (r *Registry) mayForget(ctx context.Context, now time.Time, forget time.Duration) (bool, error) {
	if err := r.takeTurn(ctx); err != nil {
		return false, err
	}
	defer r.endTurn()
	if r.swept.IsZero() {
		r.swept = now
	}
	return now.Sub(r.swept) >= min(forget, startGrace), nil
}

// forgotten says whether a service is unused for long enough. It was used at last, or
// else when it was changed.
func (r *Record) forgotten(last, now time.Time, forget time.Duration) bool {
	for _, t := range [...]time.Time{r.Used, r.Current().At} {
		if t.After(last) {
			last = t
		}
	}
	return now.Sub(last) >= forget
}

// sweepOne deletes a service or writes its use, by what the store has now.
func (r *Registry) sweepOne(ctx context.Context, name string, last, now time.Time, forget time.Duration, mayForget bool) error {
	end, err := r.begin(ctx)
	if err != nil {
		return err
	}
	defer end()
	record := r.live[name]
	if record == nil || record.Origin != RunTime {
		return nil
	}
	next := record.changedAt(now)
	switch {
	case mayForget && record.forgotten(last, now, forget):
		next.Deleted, next.DeletedBy = instant(now), byForget
	case last.Sub(record.Used) >= usedGrain(forget):
		next.Used = instant(last)
	default:
		return nil
	}
	return r.write(ctx, next.sealed())
}

// purge removes a deleted service from the store.
func (r *Registry) purge(ctx context.Context, name string, now time.Time) error {
	end, err := r.begin(ctx)
	if err != nil {
		return err
	}
	defer end()
	record := r.deleted[name]
	if record == nil || now.Sub(record.Deleted) < DeletedKept {
		return nil
	}
	return r.remove(ctx, name)
}

// remove removes a record from the store.
func (r *Registry) remove(ctx context.Context, name string) error {
	if err := r.store.Remove(context.WithoutCancel(ctx), name); err != nil {
		r.doubtful[name] = true
		return storeFailed("the store did not remove the service "+name, err)
	}
	r.setBroken(name, nil)
	r.publish(name, nil)
	return nil
}
