package file

import (
	"bytes"
	"context"
	"encoding/hex"
	"errors"
	"slices"

	"github.com/caddy-usher/usher/async"
)

// List implements async.Store.
func (s *Store) List(_ context.Context, f async.Filter) (page async.Page, err error) {
	if f.Limit <= 0 {
		f.Limit = async.PageSize
	}
	from, err := cursorKey(f.After)
	if err != nil {
		return page, err
	}
	states := async.States
	if f.State != 0 {
		states = []async.State{f.State}
	}
	err = s.view(func(t *tx) error {
		var queues []string
		if f.Queue != "" {
			queues = []string{f.Queue}
		} else {
			c := t.Bucket(countsBucket).Cursor()
			for k, _ := c.First(); k != nil; k, _ = c.Next() {
				queues = append(queues, queueOf(k))
			}
			slices.Sort(queues)
		}
		return t.list(&page, f.Limit, queues, states, from)
	})
	return page, err
}

// A cursor is the key in statesBucket of the last task of a page, in hexadecimal
// digits.
func cursorKey(after string) ([]byte, error) {
	k, err := hex.DecodeString(after)
	if err != nil || len(k) > 0 && len(k) < 2+1+8 {
		return nil, errors.New("the place in the list from which to go on is not one that a list has told")
	}
	return k, nil
}

// list adds to a page the tasks of the queues in the states, after a key. The
// queues are sorted.
func (t *tx) list(page *async.Page, limit int, queues []string, states []async.State, from []byte) error {
	started := len(from) == 0
	var last []byte
	for _, queue := range queues {
		for _, state := range states {
			prefix := statesPrefix(queue, state)
			c := t.Bucket(statesBucket).Cursor()
			seek := prefix
			if !started {
				at := from[:len(from)-8]
				switch where := compareStates(prefix, at); {
				case where < 0:
					continue
				case where == 0:
					seek = from
				}
				started = true
			}
			for k, _ := c.Seek(seek); bytes.HasPrefix(k, prefix); k, _ = c.Next() {
				if bytes.Equal(k, from) {
					continue
				}
				if len(page.Tasks) == limit {
					page.Next = hex.EncodeToString(last)
					return nil
				}
				r, err := t.mustLoad(k[len(prefix):])
				if err != nil {
					return err
				}
				page.Tasks = append(page.Tasks, t.store.task(r))
				last = slices.Clone(k)
			}
		}
	}
	return nil
}

// compareStates compares what statesPrefix has returned, by the names of the queues,
// then by the states.
func compareStates(a, b []byte) int {
	if c := bytes.Compare(a[2:len(a)-1], b[2:len(b)-1]); c != 0 {
		return c
	}
	return int(a[len(a)-1]) - int(b[len(b)-1])
}
