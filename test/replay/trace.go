package main

import (
	"slices"
	"time"
)

// A Request comes At so long after the beginning of its trace, and keeps a slot
// for Service.
type Request struct{ At, Service time.Duration }

// A Trace is the requests for one service.
type Trace struct {
	Family, Name string
	Real         bool
	Concurrency  int
	Length       time.Duration
	Requests     []Request // by time
}

// sorted returns the trace with its requests in order.
func (t Trace) sorted() Trace {
	slices.SortStableFunc(t.Requests, func(a, b Request) int {
		switch {
		case a.At < b.At:
			return -1
		case a.At > b.At:
			return 1
		}
		return 0
	})
	return t
}

// A step is a change of the number of requests inside if none of them ever
// waits.
type step struct {
	at     time.Duration
	change int
}

// steps returns the changes of demand if no request waits, in order.
func (t Trace) steps() []step {
	all := make([]step, 0, 2*len(t.Requests))
	for _, r := range t.Requests {
		all = append(all, step{r.At, 1}, step{r.At + r.Service, -1})
	}
	slices.SortFunc(all, func(a, b step) int {
		switch {
		case a.at < b.at:
			return -1
		case a.at > b.at:
			return 1
		}
		return a.change - b.change // an end comes before a beginning
	})
	return all
}
