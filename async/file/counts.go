package file

import (
	"encoding/binary"
	"encoding/json"
	"fmt"

	"github.com/caddy-usher/usher/async"
)

// counts are those of one queue.
type counts struct {
	States  [async.Cancelled + 1]int `json:"states"`
	Ready   map[string]int           `json:"ready,omitempty"` // by exclusive name
	Delayed int                      `json:"delayed,omitempty"`

	changed bool
}

func (c *counts) empty() bool {
	for _, n := range c.States {
		if n > 0 {
			return false
		}
	}
	return true
}

func (c *counts) addReady(exclusive string, n int) {
	if c.Ready == nil {
		c.Ready = make(map[string]int)
	}
	if c.Ready[exclusive] += n; c.Ready[exclusive] <= 0 {
		delete(c.Ready, exclusive)
	}
}

// countsOf returns the counts of a queue. Who changes them sets changed.
func (t *tx) countsOf(queue string) (*counts, error) {
	if c := t.counts[queue]; c != nil {
		return c, nil
	}
	c := new(counts)
	if b := t.Bucket(countsBucket).Get(countsKey(queue)); b != nil {
		if err := json.Unmarshal(b, c); err != nil {
			return nil, failed(fmt.Errorf("the counts of %s are damaged: %w", queue, err))
		}
	}
	t.counts[queue] = c
	return c, nil
}

// putCounts writes what has changed.
func (t *tx) putCounts() error {
	for queue, c := range t.counts {
		if !c.changed {
			continue
		}
		if c.empty() {
			if err := t.remove(countsBucket, countsKey(queue)); err != nil {
				return err
			}
			continue
		}
		b, err := json.Marshal(c)
		if err != nil {
			return failed(err)
		}
		if err := t.put(countsBucket, countsKey(queue), b); err != nil {
			return err
		}
	}
	return nil
}

// countsKey is queue with its length, for an empty key is none.
func countsKey(queue string) []byte { return appendString(nil, queue) }

func queueOf(key []byte) string { return string(key[2 : 2+binary.BigEndian.Uint16(key)]) }
