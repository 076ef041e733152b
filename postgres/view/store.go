package view

import (
	"context"
	"errors"
	"fmt"
	"strconv"
	"sync"
	"time"

	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgconn"

	"github.com/caddy-usher/usher/cluster"
	"github.com/caddy-usher/usher/cluster/coordinator"
	"github.com/caddy-usher/usher/postgres/server"
)

// callTimeout bounds calls, also those whose context has a later deadline.
const callTimeout = 10 * time.Second

// tables has a row for each cluster. A revision comes from a sequence, so that one of
// a row that was deleted does not come again.
var tables = server.Tables{Name: "views", Steps: []string{
	`
	CREATE SEQUENCE view_revisions;
	CREATE TABLE views (
		cluster  text PRIMARY KEY,
		value    bytea NOT NULL,
		revision bigint NOT NULL DEFAULT nextval('view_revisions')
	)`,
}}

// store is one row.
type store struct {
	database *server.Database
	cluster  string

	ctx   context.Context // ends with Close
	close context.CancelCauseFunc
	life  sync.WaitGroup // calls

	mu     sync.Mutex
	idle   *pgx.Conn // which no call uses; nil if there is none
	made   bool      // the tables are there
	closed bool
}

func open(d *server.Database, cluster string) *store {
	s := &store{database: d, cluster: cluster}
	s.ctx, s.close = context.WithCancelCause(context.Background())
	return s
}

// String names the row for people.
func (s *store) String() string {
	return fmt.Sprintf("the view of %s in %s", s.cluster, s.database)
}

// Get implements coordinator.Store.
func (s *store) Get(ctx context.Context) (value []byte, revision string, err error) {
	var number int64
	for again := false; ; again = true {
		reused := false
		err = s.call(ctx, func(ctx context.Context, c *pgx.Conn, used bool) error {
			reused = used
			return c.QueryRow(ctx, `SELECT value, revision FROM views WHERE cluster = $1`, pgx.QueryExecModeExec, s.cluster).Scan(&value, &number)
		})
		switch {
		case err == nil:
			return value, strconv.FormatInt(number, 10), nil
		case errors.Is(err, pgx.ErrNoRows):
			return nil, "", nil
		case again || !reused || refused(err) || s.over(ctx) != nil:
			return nil, "", err
		}
		// The connection was lost since it was used last, with a restart of the
		// server for example.
	}
}

// Put implements coordinator.Store.
func (s *store) Put(ctx context.Context, value []byte, revision string) (cluster.SwapResult, error) {
	var number int64
	if revision != "" {
		var err error
		if number, err = strconv.ParseInt(revision, 10, 64); err != nil {
			return cluster.Failed, err
		}
	}
	sent, written := false, int64(0)
	err := s.call(ctx, func(ctx context.Context, c *pgx.Conn, _ bool) error {
		sent = true
		var (
			tag pgconn.CommandTag
			err error
		)
		if revision == "" {
			tag, err = c.Exec(ctx, `INSERT INTO views (cluster, value) VALUES ($1, $2) ON CONFLICT (cluster) DO NOTHING`, pgx.QueryExecModeExec, s.cluster, value)
		} else {
			tag, err = c.Exec(ctx, `UPDATE views SET value = $2, revision = nextval('view_revisions') WHERE cluster = $1 AND revision = $3`,
				pgx.QueryExecModeExec, s.cluster, value, number)
		}
		written = tag.RowsAffected()
		return err
	})
	switch {
	case err != nil && (!sent || pgconn.SafeToRetry(err) || refused(err)):
		return cluster.Failed, err
	case err != nil:
		return cluster.Unknown, err
	case written == 0:
		return cluster.Conflict, nil
	}
	return cluster.Swapped, nil
}

// refused reports whether the server has answered that it did not carry out the
// statement, and never will. When it ends a connection it may have.
func refused(err error) bool {
	e, ok := errors.AsType[*pgconn.PgError](err)
	return ok && e.SeverityUnlocalized == "ERROR"
}

// Close implements coordinator.Store. Calls end with their connections.
func (s *store) Close() error {
	s.close(errClosed)
	s.mu.Lock()
	c := s.idle
	s.idle, s.closed = nil, true
	s.mu.Unlock()
	if c != nil {
		server.Drop(c)
	}
	s.life.Wait()
	return nil
}

var errClosed = errors.New("the coordinator is closed")

var errNoAnswer = errors.New("no answer in time")

// over returns why no more is to be tried, if that is so.
func (s *store) over(ctx context.Context) error {
	if s.ctx.Err() != nil {
		return context.Cause(s.ctx)
	}
	return context.Cause(ctx)
}

// call calls f with a connection for it alone. reused says that it was open before.
func (s *store) call(ctx context.Context, f func(ctx context.Context, c *pgx.Conn, reused bool) error) error {
	ctx, cancel := context.WithTimeoutCause(ctx, callTimeout, errNoAnswer)
	defer cancel()
	ctx, end := context.WithCancelCause(ctx)
	defer end(nil)
	defer context.AfterFunc(s.ctx, func() { end(errClosed) })()
	c, reused, err := s.take()
	if err != nil {
		return err
	}
	defer s.life.Done()
	if err := s.over(ctx); err != nil {
		s.put(c)
		return err
	}
	if c == nil {
		if c, err = s.connect(ctx); err != nil {
			return s.because(ctx, err)
		}
	}
	err = f(ctx, c, reused)
	s.put(c)
	return s.because(ctx, err)
}

// because adds the reason why ctx has ended, if it has.
func (s *store) because(ctx context.Context, err error) error {
	if over := s.over(ctx); err != nil && over != nil {
		return fmt.Errorf("%w: %w", over, err)
	}
	return err
}

// take begins a call. c is nil if there is no connection.
func (s *store) take() (c *pgx.Conn, reused bool, err error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.closed {
		return nil, false, errClosed
	}
	s.life.Add(1)
	c = s.idle
	s.idle = nil
	return c, c != nil, nil
}

// put gives a connection back.
func (s *store) put(c *pgx.Conn) {
	if c == nil || c.IsClosed() {
		return
	}
	s.mu.Lock()
	keep := s.idle == nil && !s.closed
	if keep {
		s.idle = c
	}
	s.mu.Unlock()
	if !keep {
		server.Drop(c)
	}
}

// connect opens a connection, and makes the tables if they are missing.
func (s *store) connect(ctx context.Context) (*pgx.Conn, error) {
	c, err := s.database.Connect(ctx)
	if err != nil {
		return nil, err
	}
	s.mu.Lock()
	made := s.made
	s.mu.Unlock()
	if made {
		return c, nil
	}
	if err := s.database.Make(ctx, c, tables); err != nil {
		server.Drop(c)
		return nil, err
	}
	s.mu.Lock()
	s.made = true
	s.mu.Unlock()
	return c, nil
}

var _ coordinator.Store = (*store)(nil)
