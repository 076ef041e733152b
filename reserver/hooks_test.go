package reserver

// hooks are those that a test is interested in.
type hooks struct {
	demand                       func()
	ejected, questioned, drained func(*Instance)
}

func (h hooks) Demand() {
	if h.demand != nil {
		h.demand()
	}
}

func (h hooks) Ejected(i *Instance)    { call(h.ejected, i) }
func (h hooks) Questioned(i *Instance) { call(h.questioned, i) }
func (h hooks) Drained(i *Instance)    { call(h.drained, i) }

func call(f func(*Instance), i *Instance) {
	if f != nil {
		f(i)
	}
}
