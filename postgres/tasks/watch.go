package tasks

import (
	"context"
	"encoding/json"
	"sync"
	"time"

	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgconn"

	"github.com/caddy-usher/usher/async"
	"github.com/caddy-usher/usher/postgres/server"
)

// Changes are told to other processes after the commit and not with it: PostgreSQL lets
// all commits that tell something wait for each other.
const (
	// newsPause is how long changes are collected.
	newsPause = 10 * time.Millisecond

	// newsMost is the length of the longest message, in bytes. PostgreSQL takes 7999.
	newsMost = 7000

	// messagesMost is how many messages go at once. Of the rest only one change of each
	// queue is told.
	messagesMost = 4

	// silenceMost is after what time without a message the connection is tried, and
	// silencePatience how long that may take.
	silenceMost     = 10 * time.Second
	silencePatience = 5 * time.Second

	// The pauses between attempts to connect.
	listenFrom = 100 * time.Millisecond
	listenTo   = 5 * time.Second

	// foldAfter is after how many transactions of this process counts are added up.
	foldAfter = 500
)

// news are changes that other processes are to be told.
type news struct {
	wake chan struct{}

	mu      sync.Mutex
	changes []async.Change
	commits int // since counts were added up
}

// message is what processes tell each other.
type message struct {
	From    string         `json:"from"`
	Changes []async.Change `json:"changes"`
}

// changed tells of changes.
func (s *Store) changed(changes []async.Change) {
	if len(changes) == 0 {
		return
	}
	s.Call(changes)
	s.news.mu.Lock()
	s.news.changes = append(s.news.changes, changes...)
	s.news.commits++
	s.news.mu.Unlock()
	select {
	case s.news.wake <- struct{}{}:
	default:
	}
}

// tell tells other processes of changes, as long as the store is open. What cannot be
// told they find when they look.
func (s *Store) tell() {
	for {
		select {
		case <-s.ctx.Done():
			return
		case <-s.news.wake:
		}
		if !s.pause(newsPause) {
			return
		}
		s.news.mu.Lock()
		changes, fold := s.news.changes, s.news.commits >= foldAfter
		s.news.changes = nil
		if fold {
			s.news.commits = 0
		}
		s.news.mu.Unlock()
		ctx, end := s.bounded(s.ctx)
		for _, text := range s.messages(changes) {
			if _, err := s.pool.Exec(ctx, `SELECT pg_notify($1, $2)`, s.channel(), text); err != nil {
				break
			}
		}
		end()
		if fold {
			_ = s.fold(s.ctx) // or Sweep does
		}
	}
}

// pause waits, and reports whether the store is still open.
func (s *Store) pause(d time.Duration) bool {
	t := time.NewTimer(d)
	defer t.Stop()
	select {
	case <-s.ctx.Done():
		return false
	case <-t.C:
		return true
	}
}

// channel is that of the messages. Its name has 63 bytes at most.
func (s *Store) channel() string {
	name := "usher_" + s.database.Schema()
	return name[:min(len(name), 63)]
}

// messages are the texts that tell of changes.
func (s *Store) messages(changes []async.Change) (texts []string) {
	told := make(map[string]bool)
	rest := make(map[string]async.Change)
	m, size := message{From: s.boot}, 0
	end := func() {
		if len(m.Changes) > 0 {
			if text, err := json.Marshal(m); err == nil && len(text) <= newsMost+500 {
				texts = append(texts, string(text))
			}
		}
		m.Changes, size = nil, 0
	}
	add := func(c async.Change) {
		// Signs that JSON writes in another way have at most six bytes for one.
		n := 6*len(c.Queue) + len(c.ID) + 50
		if size+n > newsMost {
			end()
		}
		m.Changes, size = append(m.Changes, c), size+n
	}
	for _, c := range changes {
		if len(texts) >= messagesMost {
			if !told[c.Queue] {
				rest[c.Queue] = c
			}
			continue
		}
		told[c.Queue] = true
		add(c)
	}
	for _, c := range rest {
		add(c)
	}
	end()
	return texts
}

// listen hears of the changes of other processes, as long as the store is open.
func (s *Store) listen() {
	for pause := listenFrom; ; {
		heard := s.hear()
		if s.ctx.Err() != nil {
			return
		}
		if pause = min(2*pause, listenTo); heard {
			pause = listenFrom
		}
		if !s.pause(pause) {
			return
		}
	}
}

// hear hears of changes until the connection is lost. It reports whether there was one.
func (s *Store) hear() bool {
	ctx, cancel := context.WithTimeout(s.ctx, callTimeout)
	defer cancel()
	c, err := s.database.Connect(ctx)
	if err != nil {
		return false
	}
	defer server.Drop(c)
	if _, err := c.Exec(ctx, `SELECT pg_advisory_lock_shared($1)`, pgx.QueryExecModeExec, s.session); err != nil {
		return false
	}
	if _, err := c.Exec(ctx, `LISTEN `+pgx.Identifier{s.channel()}.Sanitize(), pgx.QueryExecModeExec); err != nil {
		return false
	}
	for {
		n, err := s.next(c)
		if err != nil {
			return true
		}
		if n == nil {
			continue
		}
		var m message
		if err := json.Unmarshal([]byte(n.Payload), &m); err == nil && m.From != s.boot {
			s.Call(m.Changes)
		}
	}
}

// next waits for a message. It returns none if there was none for a while, and the
// connection is good.
func (s *Store) next(c *pgx.Conn) (*pgconn.Notification, error) {
	ctx, cancel := context.WithTimeout(s.ctx, silenceMost)
	defer cancel()
	n, err := c.WaitForNotification(ctx)
	if err == nil || s.ctx.Err() != nil || !pgconn.Timeout(err) {
		return n, err
	}
	ctx, cancel = context.WithTimeout(s.ctx, silencePatience)
	defer cancel()
	return nil, c.Ping(ctx)
}
