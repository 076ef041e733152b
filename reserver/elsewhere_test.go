package reserver

import (
	"errors"
	"testing"
)

func TestWhoWaitsElsewhereCountsForTheLimit(t *testing.T) {
	s := New(Options{MaxWaiting: 3}, nil, hooks{})
	s.SetElsewhere(2)
	first := new(Reservation)
	if has, err := s.Reserve(first, Ask{}); has || err != nil {
		t.Fatal(has, err)
	}
	if _, err := s.Reserve(new(Reservation), Ask{}); !errors.Is(err, ErrQueueFull) {
		t.Errorf("%v", err)
	}
	s.SetElsewhere(9) // the first one waits on
	select {
	case err := <-first.Granted():
		t.Errorf("it was told %v", err)
	default:
	}
	s.SetElsewhere(0)
	if _, err := s.Reserve(new(Reservation), Ask{}); err != nil {
		t.Errorf("%v", err)
	}
}
