package harness

import (
	"fmt"
	"net/http"
	"strings"
	"sync"
	"time"
)

// A Load is a number of clients that ask again and again.
type Load struct {
	stop chan struct{}
	wg   sync.WaitGroup
	once sync.Once
	mu   sync.Mutex
	all  []Response
}

// Load lets n clients ask for the path without pause, until Stop. Every
// request has a number of its own in X-Seq.
func (c *Caddy) Load(n int, path string) *Load {
	l := &Load{stop: make(chan struct{})}
	number := c.loads.Add(1)
	for i := range n {
		client := c.HTTP1()
		client.Timeout = 30 * time.Second
		l.wg.Go(func() {
			for k := 0; ; k++ {
				select {
				case <-l.stop:
					return
				default:
				}
				l.one(client, "http://"+c.Addr+path, fmt.Sprintf("load%d-%d-%d", number, i, k))
			}
		})
	}
	c.t.Cleanup(func() { l.Stop() })
	return l
}

func (l *Load) one(client *http.Client, url, seq string) {
	p := new(Pending)
	start := time.Now()
	req, err := http.NewRequest(http.MethodGet, url, nil)
	if err == nil {
		req.Header.Set("X-Seq", seq)
		p.fill(client.Do(req))
	} else {
		p.fill(nil, err)
	}
	p.res.Took, p.res.Seq = time.Since(start), seq
	l.mu.Lock()
	l.all = append(l.all, p.res)
	l.mu.Unlock()
	if p.res.Err != nil {
		// Do not spin on a server that is not there.
		time.Sleep(5 * time.Millisecond)
	}
}

// Len is the number of answers so far.
func (l *Load) Len() int {
	l.mu.Lock()
	defer l.mu.Unlock()
	return len(l.all)
}

// Stop ends the load when the requests under way have their answers, and
// returns all answers.
func (l *Load) Stop() []Response {
	l.once.Do(func() { close(l.stop) })
	l.wg.Wait()
	return l.all
}

// Failed returns the answers that are not a 200 with a whole body.
func Failed(all []Response) []Response {
	var bad []Response
	for _, r := range all {
		if r.Err != nil || r.Status != http.StatusOK || strings.TrimSpace(r.Body) == "" {
			bad = append(bad, r)
		}
	}
	return bad
}

// Lost returns those failed answers to requests that Caddy had read. When a
// listener is replaced, as any reload does, the kernel drops connections that
// are not accepted yet; such a request never reached a handler and is in
// no log, and a client can tell that there was not one byte of an answer.
// The site must have an access log.
func (c *Caddy) Lost(all []Response) []Response {
	c.t.Helper()
	read := make(map[string]bool)
	for _, e := range c.AccessLog() {
		read[logged(e, "request", "headers", "X-Seq")] = true
	}
	for _, seq := range c.Journal().Seqs() {
		read[seq] = true
	}
	var lost []Response
	for _, r := range Failed(all) {
		if r.Status != 0 || read[r.Seq] {
			lost = append(lost, r)
		}
	}
	return lost
}

// logged digs a text out of the fields of a log entry.
func logged(e LogEntry, keys ...string) string {
	var value any = e.Fields
	for _, key := range keys {
		fields, _ := value.(map[string]any)
		value = fields[key]
	}
	if list, ok := value.([]any); ok && len(list) == 1 {
		value = list[0]
	}
	text, _ := value.(string)
	return text
}
