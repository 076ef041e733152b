package load

import (
	"fmt"
	"sync"
	"time"
)

// Held are requests that were sent, each on a connection of its own, and that
// wait for their answers.
type Held struct{ conns []*Conn }

// Hold sends n requests and does not wait.
func Hold(n int, address, path string) (*Held, error) {
	h := new(Held)
	for range n {
		c, err := Dial(address, path)
		if err == nil {
			h.conns = append(h.conns, c)
			err = c.Send()
		}
		if err != nil {
			h.Leave()
			return nil, fmt.Errorf("request %d of %d: %w", len(h.conns), n, err)
		}
	}
	return h, nil
}

// Answers waits until all are answered and returns when the last one was.
func (h *Held) Answers(timeout time.Duration) (last time.Time, err error) {
	var (
		mu     sync.Mutex
		wg     sync.WaitGroup
		failed int
	)
	for _, c := range h.conns {
		wg.Go(func() {
			one := c.Receive(timeout)
			now := time.Now()
			mu.Lock()
			defer mu.Unlock()
			if one != nil {
				failed++
				err = one
			} else if now.After(last) {
				last = now
			}
		})
	}
	wg.Wait()
	if err != nil {
		err = fmt.Errorf("%d of %d held requests failed: %w", failed, len(h.conns), err)
	}
	return last, err
}

// Leave closes all connections.
func (h *Held) Leave() {
	for _, c := range h.conns {
		c.Close()
	}
	h.conns = nil
}
