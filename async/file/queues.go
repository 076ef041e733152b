package file

import (
	"bytes"
	"context"
	"encoding/binary"
	"math"

	"github.com/caddy-usher/usher/async"
)

// Queues implements async.Store.
func (s *Store) Queues(ctx context.Context) (map[string]async.Queue, error) {
	if err := s.promoteAll(ctx); err != nil {
		return nil, err
	}
	queues := make(map[string]async.Queue)
	err := s.view(func(t *tx) error {
		c := t.Bucket(countsBucket).Cursor()
		for k, _ := c.First(); k != nil; k, _ = c.Next() {
			q, err := t.queue(queueOf(k))
			if err != nil {
				return err
			}
			queues[queueOf(k)] = q
		}
		return nil
	})
	return queues, err
}

// promoteAll lets all tasks begin whose time has come.
func (s *Store) promoteAll(ctx context.Context) error {
	for {
		var due []string
		err := s.view(func(t *tx) error {
			c := t.Bucket(countsBucket).Cursor()
			for k, _ := c.First(); k != nil; k, _ = c.Next() {
				first, _ := t.Bucket(delayedBucket).Cursor().Seek(k)
				if bytes.HasPrefix(first, k) && binary.BigEndian.Uint64(first[len(k):]) <= t.now {
					due = append(due, queueOf(k))
				}
			}
			return nil
		})
		if err != nil || len(due) == 0 {
			return err
		}
		err = s.update(ctx, func(t *tx) error {
			for _, queue := range due {
				if _, err := t.promote(queue); err != nil {
					return err
				}
			}
			return nil
		})
		if err != nil {
			return err
		}
	}
}

func (t *tx) queue(name string) (async.Queue, error) {
	c, err := t.countsOf(name)
	if err != nil {
		return async.Queue{}, err
	}
	q := async.Queue{States: c.States, NextDue: -1}
	oldest, first := uint64(math.MaxUint64), []byte(nil)
	for exclusive, n := range c.Ready {
		k, v := t.nextOf(name, exclusive)
		if k == nil {
			continue
		}
		if exclusive != "" {
			n = 1
		}
		q.Runnable += n
		if place := binary.BigEndian.Uint64(k[len(k)-8:]); place < oldest {
			oldest, first = place, v
		}
	}
	if first != nil {
		r, err := t.mustLoad(first)
		if err != nil {
			return q, err
		}
		q.Oldest = fromStamp(t.now).Sub(fromStamp(r.Accepted))
	}
	prefix := appendString(nil, name)
	if k, _ := t.Bucket(delayedBucket).Cursor().Seek(prefix); bytes.HasPrefix(k, prefix) {
		q.NextDue = max(0, fromStamp(binary.BigEndian.Uint64(k[len(prefix):])).Sub(fromStamp(t.now)))
	}
	return q, nil
}
