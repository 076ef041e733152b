package reserver

// hooks are those that a test is interested in.
type hooks struct {
	demand                                   func()
	ejected, verifyRequested, drained, spent func(*Instance)
}

func (h hooks) Demand() {
	if h.demand != nil {
		h.demand()
	}
}

func (h hooks) Ejected(i *Instance)         { call(h.ejected, i) }
func (h hooks) VerifyRequested(i *Instance) { call(h.verifyRequested, i) }
func (h hooks) Drained(i *Instance)         { call(h.drained, i) }

func (hooks) Abandoned() {}

func (h hooks) Spent(i *Instance) { call(h.spent, i) }

func call(f func(*Instance), i *Instance) {
	if f != nil {
		f(i)
	}
}
