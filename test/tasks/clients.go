package tasks

import (
	"bytes"
	"context"
	"fmt"
	"io"
	"math/rand/v2"
	"net/http"
	"os"
	"strconv"
	"strings"
	"sync"
	"time"

	"github.com/caddy-usher/usher/test/harness"
)

// promise is what a client was told of its job.
type promise struct {
	url       string // where the task is
	unheard   int    // requests without an answer before
	cancelled int    // status of the answer to DELETE; 0: it was not sent
}

// id is that of the task.
func (p promise) id() string { return p.url[strings.LastIndexByte(p.url, '/')+1:] }

// host is that of all requests: the same request has the same host at each Caddy.
const host = "work.example"

// newClient returns a client without redirects.
func newClient() *http.Client {
	return &http.Client{
		Transport:     &http.Transport{MaxIdleConnsPerHost: clients},
		Timeout:       harness.Slow(5 * time.Second),
		CheckRedirect: func(*http.Request, []*http.Request) error { return http.ErrUseLastResponse },
	}
}

// handInAll lets the clients hand in the jobs. The channel gets the time when all were
// accepted.
func (w *World) handInAll() <-chan time.Time {
	var all sync.WaitGroup
	for k := range clients {
		all.Go(func() {
			c := newClient()
			defer c.CloseIdleConnections()
			r := rand.New(rand.NewPCG(w.seed, 2<<40+uint64(k)))
			for seq := k; seq < len(w.jobs); seq += clients {
				if !w.handIn(c, r, w.jobs[seq]) {
					return
				}
			}
		})
	}
	done := make(chan time.Time, 1)
	go func() {
		all.Wait()
		done <- time.Now()
	}()
	return done
}

// handIn hands in a job until it is accepted.
func (w *World) handIn(c *http.Client, r *rand.Rand, j job) bool {
	var p promise
	for ; p.url == ""; p.unheard++ {
		p.url = w.ask(c, r, j)
		if p.url == "" && w.t.Context().Err() != nil {
			return false // the test has failed
		}
	}
	p.unheard--
	w.accepted.Add(1)
	if j.repeat {
		again := ""
		for again == "" && w.t.Context().Err() == nil {
			again = w.ask(c, r, j)
		}
		if again != p.url {
			w.problem("job %d: the task was %s, and is %s for the same key", j.seq, p.url, again)
		}
	}
	for j.cancel && p.cancelled == 0 && w.t.Context().Err() == nil {
		status, _, _ := w.send(c, r, http.MethodDelete, p.url, job{})
		switch status {
		case http.StatusNoContent, http.StatusAccepted, http.StatusConflict:
			p.cancelled = status
		}
	}
	if p.cancelled == http.StatusNoContent {
		w.note(harness.Entry{Event: cancelled, Task: p.id()})
	}
	w.mu.Lock()
	defer w.mu.Unlock()
	w.promises[j.seq] = p
	return true
}

// ask hands in a job once. It returns where the task is, if there was an answer.
func (w *World) ask(c *http.Client, r *rand.Rand, j job) (url string) {
	status, header, text := w.send(c, r, http.MethodPost, j.path(), j)
	switch status {
	case http.StatusAccepted:
		return header.Get("Location")
	case 0, http.StatusServiceUnavailable:
		return "" // it is not there, or its store is not
	}
	w.problem("job %d: status %d: %s", j.seq, status, text)
	return ""
}

// send sends one request to one of the Caddys. The status is 0 if there was no whole
// answer, and then it has waited for a moment.
func (w *World) send(c *http.Client, r *rand.Rand, method, path string, j job) (status int, header http.Header, text string) {
	var body io.Reader
	if method == http.MethodPost {
		body = strings.NewReader(j.body())
	}
	at := w.Caddys[r.IntN(len(w.Caddys))]
	req, err := http.NewRequestWithContext(context.Background(), method, "http://"+at.Addr+path, body)
	if err != nil {
		w.problem("%v", err)
		return 0, nil, ""
	}
	req.Host = host
	if method == http.MethodPost {
		for name, value := range map[string]string{"Prefer": "respond-async", "Idempotency-Key": strconv.Itoa(j.seq), "X-Seq": strconv.Itoa(j.seq)} {
			req.Header.Set(name, value)
		}
		if j.group != 0 {
			req.Header.Set("X-Group", strconv.Itoa(j.group))
		}
	}
	res, err := c.Do(req)
	if err == nil {
		var b []byte
		b, err = io.ReadAll(res.Body)
		res.Body.Close()
		status, header, text = res.StatusCode, res.Header, string(b)
	}
	if err != nil || status == http.StatusServiceUnavailable {
		time.Sleep(time.Duration(5+r.IntN(20)) * time.Millisecond)
	}
	if err != nil {
		return 0, nil, err.Error()
	}
	return status, header, text
}

// countBegun counts the executions that begin, until stop is called.
func (w *World) countBegun() (stop func()) {
	over := make(chan struct{})
	var counting sync.WaitGroup
	counting.Go(func() {
		file, err := os.Open(w.Caddys[0].Path("journal"))
		if err != nil {
			w.problem("the journal: %v", err)
			return
		}
		defer file.Close()
		word := []byte(`"event":"begin"`)
		rest, piece := []byte(nil), make([]byte, 1<<20)
		for {
			n, err := file.Read(piece)
			if err != nil && err != io.EOF {
				w.problem("the journal: %v", err)
				return
			}
			rest = append(rest, piece[:n]...)
			end := bytes.LastIndexByte(rest, '\n') + 1
			w.begun.Add(int64(bytes.Count(rest[:end], word)))
			rest = append([]byte(nil), rest[end:]...)
			if n > 0 {
				continue
			}
			select {
			case <-over:
				return
			case <-time.After(10 * time.Millisecond):
			}
		}
	})
	return sync.OnceFunc(func() {
		close(over)
		counting.Wait()
	})
}

// tally says what the clients saw.
func (w *World) tally() string {
	unheard, withdrawn := 0, 0
	for _, p := range w.promises {
		unheard += min(1, p.unheard)
		withdrawn += min(1, p.cancelled)
	}
	return fmt.Sprintf("%d were asked for again because there was no answer, %d were cancelled", unheard, withdrawn)
}
