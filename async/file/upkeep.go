package file

import (
	"context"
	"encoding/binary"

	"github.com/caddy-usher/usher/async"
)

// Recover implements async.Store.
func (s *Store) Recover(ctx context.Context, _ string, decide func(async.Task) async.Outcome) (n int, err error) {
	const most = 100
	if s.recovered.Load() {
		return 0, nil
	}
	err = s.update(ctx, func(t *tx) error {
		n = 0
		var lost []*record
		c := t.Bucket(runningBucket).Cursor()
		for k, _ := c.First(); k != nil && len(lost) < most; k, _ = c.Next() {
			r, err := t.mustLoad(k)
			if err != nil {
				return err
			}
			if r.Boot != s.boot {
				lost = append(lost, r)
			}
		}
		for _, r := range lost {
			if err := t.settle(r, decide(s.task(r)), nil); err != nil {
				return err
			}
		}
		n = len(lost)
		if n < most {
			t.then = append(t.then, func() { s.recovered.Store(true) })
		}
		return nil
	})
	return n, err
}

// Sweep implements async.Store.
func (s *Store) Sweep(ctx context.Context) (n int, err error) {
	const most = 200
	due := false
	err = s.view(func(t *tx) error {
		due = t.isDue(expiryBucket) || t.isDue(endsBucket)
		return nil
	})
	if err != nil {
		return 0, err
	}
	if !due {
		return 0, s.compact()
	}
	err = s.update(ctx, func(t *tx) error {
		for n = 0; n < most && t.isDue(expiryBucket); n++ {
			r, err := t.firstOf(expiryBucket)
			if err != nil {
				return err
			}
			if err := t.expire(r); err != nil {
				return err
			}
		}
		for ; n < most && t.isDue(endsBucket); n++ {
			r, err := t.firstOf(endsBucket)
			if err != nil {
				return err
			}
			if err := t.erase(r); err != nil {
				return err
			}
		}
		return nil
	})
	return n, err
}

// isDue reports whether the first time of a bucket has come.
func (t *tx) isDue(bucket []byte) bool {
	k, _ := t.Bucket(bucket).Cursor().First()
	return k != nil && binary.BigEndian.Uint64(k) <= t.now
}

func (t *tx) firstOf(bucket []byte) (*record, error) {
	k, _ := t.Bucket(bucket).Cursor().First()
	return t.mustLoad(k[8:])
}

// expire ends r, which is pending and whose time has passed.
func (t *tx) expire(r *record) error { return t.finish(r, async.Dead, async.ReasonExpired) }
