package async

import "sync"

// Watchers are the functions that are called after changes: a Store embeds one, for
// its Watch. The zero value is ready for use, and all methods are safe for
// concurrent use.
type Watchers struct {
	mu  sync.Mutex
	all map[*func(Change)]bool
}

// Watch implements Store.
func (w *Watchers) Watch(f func(Change)) (stop func()) {
	w.mu.Lock()
	defer w.mu.Unlock()
	if w.all == nil {
		w.all = make(map[*func(Change)]bool)
	}
	w.all[&f] = true
	return func() {
		w.mu.Lock()
		defer w.mu.Unlock()
		delete(w.all, &f)
	}
}

// Call calls all of them with each change, without a lock.
func (w *Watchers) Call(changes []Change) {
	if len(changes) == 0 {
		return
	}
	w.mu.Lock()
	all := make([]func(Change), 0, len(w.all))
	for f := range w.all {
		all = append(all, *f)
	}
	w.mu.Unlock()
	for _, c := range changes {
		for _, f := range all {
			f(c)
		}
	}
}
