package tasks

import (
	"context"
	"crypto/rand"
	"crypto/subtle"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"maps"
	"net"
	"slices"
	"strconv"
	"strings"
	"sync"
	"time"

	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgconn"
	"github.com/jackc/pgx/v5/pgxpool"

	"github.com/caddy-usher/usher/async"
	"github.com/caddy-usher/usher/postgres/server"
)

const (
	// callTimeout bounds what is asked of the database, so that a connection without
	// answers is given up.
	callTimeout = 30 * time.Second

	// openTimeout is how long Open waits for the database.
	openTimeout = 10 * time.Second

	// stillMost is how long a process may leave a transaction alone. Then the server
	// rolls it back.
	stillMost = 3 * time.Second

	// poolSize is how many connections a store has for its calls. It has one more to
	// hear of changes.
	poolSize = 8

	// tries is how often a transaction is begun that fails through no fault of its own.
	tries = 6
)

// ErrWrongKey is returned by Open for a key with which the store was not encrypted.
var ErrWrongKey = errors.New("the key of encryption is wrong: give the one with which the store was made, or another schema")

// Options are those of Open.
type Options struct {
	// Key encrypts what is stored, if it is not empty. It must be the same each time.
	Key string

	// Lease is after what time without a beat an owner is gone. Default:
	// async.LeaseTimeout.
	Lease time.Duration
}

// Store is an open store. It implements async.Store.
type Store struct {
	database *server.Database
	options  Options
	boot     string // names this opening
	session  int64  // the lock that this process has as long as it is connected
	pool     *pgxpool.Pool

	ctx   context.Context // ends with Close
	close context.CancelFunc
	life  sync.WaitGroup

	prepareMu sync.Mutex
	prepared  *secrets // nil until the database was seen

	puts puts
	own  own
	seen beats

	async.Watchers
	news news
}

var _ async.Store = (*Store)(nil)

// Open opens the store. If the database cannot be reached now, it is looked for at
// each call: Caddy starts all the same.
func Open(d *server.Database, o Options) (*Store, error) {
	if o.Lease == 0 {
		o.Lease = async.LeaseTimeout
	}
	config, err := pgxpool.ParseConfig("")
	if err != nil {
		return nil, errors.New("the environment variables for PostgreSQL, such as PGPORT, have a mistake")
	}
	config.ConnConfig = d.Config()
	maps.Copy(config.ConnConfig.RuntimeParams, map[string]string{
		// What is planned for a table that is small is executed when it is large: each
		// statement here has its index.
		"enable_seqscan": "off", "enable_bitmapscan": "off", "jit": "off",
		// A process that stands still in a transaction would hold up all others with its
		// locks.
		"idle_in_transaction_session_timeout": strconv.FormatInt(stillMost.Milliseconds(), 10),
	})
	config.AfterConnect = server.Adjust
	config.MaxConns, config.MinConns = poolSize, 0
	s := &Store{
		database: d, options: o, boot: rand.Text(),
		puts: puts{turn: make(chan struct{}, 1)}, news: news{wake: make(chan struct{}, 1)},
		own: own{attempts: make(map[string]*ownAttempt), claims: make(map[string]bool)},
	}
	session := make([]byte, 8)
	rand.Read(session)
	s.session = int64(binary.BigEndian.Uint64(session))
	s.ctx, s.close = context.WithCancel(context.Background())
	if s.pool, err = pgxpool.NewWithConfig(s.ctx, config); err != nil {
		s.close()
		return nil, fmt.Errorf("%s cannot be used: %w", s, err)
	}
	ctx, cancel := context.WithTimeout(s.ctx, openTimeout)
	defer cancel()
	if _, err := s.secrets(ctx); err != nil && !unreachable(err) {
		s.close()
		s.pool.Close()
		return nil, err
	}
	s.life.Go(s.listen)
	s.life.Go(s.tell)
	s.life.Go(s.observe)
	return s, nil
}

// unreachable reports whether the database could not be asked.
func unreachable(err error) bool {
	if e, ok := errors.AsType[*pgconn.PgError](err); ok {
		return strings.HasPrefix(e.Code, "57P") // it starts or stops
	}
	if _, ok := errors.AsType[*pgconn.ConnectError](err); ok {
		return true
	}
	_, network := errors.AsType[net.Error](err)
	return network || errors.Is(err, context.DeadlineExceeded) || errors.Is(err, io.EOF) || errors.Is(err, io.ErrUnexpectedEOF)
}

// String names the store for people.
func (s *Store) String() string { return "the store of tasks in " + s.database.String() }

// Close implements async.Store.
func (s *Store) Close() error {
	s.close()
	s.life.Wait()
	s.pool.Close()
	return nil
}

// secrets makes the tables, with the first call that reaches the database.
func (s *Store) secrets(ctx context.Context) (*secrets, error) {
	s.prepareMu.Lock()
	defer s.prepareMu.Unlock()
	if s.prepared != nil {
		return s.prepared, nil
	}
	if err := s.over(ctx); err != nil {
		return nil, err
	}
	ctx, end := s.bounded(ctx)
	defer end()
	c, err := s.pool.Acquire(ctx)
	if err != nil {
		return nil, s.failure(ctx, err)
	}
	defer c.Release()
	p, err := s.prepare(ctx, c.Conn())
	if err != nil {
		if newer, ok := errors.AsType[*server.NewerError](err); ok {
			return nil, &async.NewerError{Store: s.String(), Found: newer.Found, Know: newer.Know}
		}
		return nil, s.failure(ctx, err)
	}
	s.prepared = p
	return p, nil
}

func (s *Store) prepare(ctx context.Context, c *pgx.Conn) (*secrets, error) {
	if err := s.database.Make(ctx, c, tables); err != nil {
		return nil, err
	}
	var sync string
	if err := c.QueryRow(ctx, `SHOW fsync`).Scan(&sync); err != nil {
		return nil, err
	}
	if sync != "on" {
		return nil, errors.New("the server has fsync = off, so a task that was accepted would not survive a power loss: set it to on")
	}
	salt := make([]byte, 32)
	rand.Read(salt)
	p, err := newSecrets(s.options.Key, salt)
	if err != nil {
		return nil, err
	}
	// The first one decides. An empty proof is that of a store that is not encrypted.
	if _, err := c.Exec(ctx, `INSERT INTO meta (name, value) SELECT * FROM unnest($1::text[], $2::bytea[]) ON CONFLICT DO NOTHING`,
		[]string{"salt and proof"}, [][]byte{slices.Concat(salt, p.proof())}); err != nil {
		return nil, err
	}
	var stored []byte
	if err := c.QueryRow(ctx, `SELECT value FROM meta WHERE name = 'salt and proof'`).Scan(&stored); err != nil {
		return nil, err
	}
	if len(stored) < len(salt) {
		return nil, errors.New("the table meta is damaged")
	}
	if p, err = newSecrets(s.options.Key, stored[:len(salt)]); err != nil {
		return nil, err
	}
	if subtle.ConstantTimeCompare(p.proof(), stored[len(salt):]) == 0 {
		return nil, ErrWrongKey
	}
	return p, nil
}

// over returns why no more is to be tried, if that is so.
func (s *Store) over(ctx context.Context) error {
	if s.ctx.Err() != nil {
		return async.ErrClosed
	}
	return context.Cause(ctx)
}

// bounded is ctx until the store is closed, and for callTimeout at most.
func (s *Store) bounded(ctx context.Context) (context.Context, func()) {
	ctx, cancel := context.WithTimeout(ctx, callTimeout)
	stop := context.AfterFunc(s.ctx, cancel)
	return ctx, func() { stop(); cancel() }
}

// failure is err as callers see it.
func (s *Store) failure(ctx context.Context, err error) error {
	if s.ctx.Err() != nil {
		return async.ErrClosed
	}
	for _, known := range []error{
		async.ErrNotFound, async.ErrKeyReused, async.ErrFull, async.ErrStale, async.ErrUnfinished, async.ErrFinished,
		async.ErrNoResult, ErrWrongKey,
	} {
		if errors.Is(err, known) {
			return err
		}
	}
	if over := context.Cause(ctx); over != nil && !errors.Is(err, over) {
		return fmt.Errorf("%s has not answered: %w: %w", s, over, err)
	}
	return fmt.Errorf("%s: %w", s, err)
}

// lost reports whether the connection broke, or the server ended it.
func lost(err error) bool {
	e, ok := errors.AsType[*pgconn.PgError](err)
	if ok {
		return e.SeverityUnlocalized != "ERROR"
	}
	return !errors.Is(err, context.Canceled) && !errors.Is(err, context.DeadlineExceeded)
}

// The codes of errors that another try may not have.
const (
	serializationFailure = "40001"
	deadlock             = "40P01"
)

func worthAnother(err error) bool {
	e, ok := errors.AsType[*pgconn.PgError](err)
	return ok && (e.Code == serializationFailure || e.Code == deadlock)
}

// tx is a transaction.
type tx struct {
	pgx.Tx
	ctx     context.Context
	store   *Store
	secrets *secrets
	now     int64 // the time of the store; 0: not asked
	batch   pgx.Batch

	changes []async.Change // to be told after the commit
	then    []func()       // to be called after the commit

	last cursor // of a list
}

// queue lets a statement be sent with the next flush.
func (t *tx) queue(sql string, args ...any) *pgx.QueuedQuery { return t.batch.Queue(sql, args...) }

// flush sends what is queued.
func (t *tx) flush() error {
	if t.batch.Len() == 0 {
		return nil
	}
	err := t.SendBatch(t.ctx, &t.batch).Close()
	t.batch = pgx.Batch{}
	return err
}

// update calls f in a transaction, and again if it fails through no fault of its own.
// f may use nothing of an earlier call. What f has queued is sent.
func (s *Store) update(ctx context.Context, f func(t *tx) error) error {
	return s.transaction(ctx, pgx.TxOptions{}, f)
}

// view calls f in a transaction that sees one moment, and changes nothing.
func (s *Store) view(ctx context.Context, f func(t *tx) error) error {
	return s.transaction(ctx, pgx.TxOptions{IsoLevel: pgx.RepeatableRead, AccessMode: pgx.ReadOnly}, f)
}

func (s *Store) transaction(ctx context.Context, o pgx.TxOptions, f func(t *tx) error) error {
	if err := s.over(ctx); err != nil {
		return err
	}
	secrets, err := s.secrets(ctx)
	if err != nil {
		return err
	}
	ctx, end := s.bounded(ctx)
	defer end()
	for try := 1; ; try++ {
		t := &tx{ctx: ctx, store: s, secrets: secrets}
		again, err := s.attempt(o, t, f)
		if err == nil {
			for _, then := range t.then {
				then()
			}
			s.changed(t.changes)
			return nil
		}
		if !again || try == tries || s.over(ctx) != nil {
			return s.failure(ctx, err)
		}
	}
}

// attempt makes a transaction. again reports that nothing came of it, and that
// another try may succeed.
func (s *Store) attempt(o pgx.TxOptions, t *tx, f func(t *tx) error) (again bool, err error) {
	c, err := s.pool.Acquire(t.ctx)
	if err != nil {
		return false, err
	}
	defer c.Release()
	if t.Tx, err = c.BeginTx(t.ctx, o); err != nil {
		return c.Conn().IsClosed(), err
	}
	if err = f(t); err == nil {
		err = t.flush()
	}
	if err != nil {
		if !c.Conn().IsClosed() {
			_ = t.Rollback(t.ctx) // or the connection is given up
		}
		return worthAnother(err) || c.Conn().IsClosed() && lost(err), err
	}
	err = t.Commit(t.ctx)
	return worthAnother(err), err
}

// locks takes advisory locks, in the order that all have.
func (t *tx) locks(all []int64) {
	if len(all) > 0 {
		t.queue(`SELECT pg_advisory_xact_lock(k) FROM (SELECT DISTINCT k FROM unnest($1::bigint[]) AS k ORDER BY k) AS sorted`, all)
	}
}

// time lets now be the time of the store.
func (t *tx) time() {
	t.queue(`SELECT ` + clock).QueryRow(func(row pgx.Row) error { return row.Scan(&t.now) })
}

// find returns the record with an id, or ErrNotFound.
func (t *tx) find(id string) (*record, error) {
	rows, err := t.Query(t.ctx, `SELECT `+columns+` FROM tasks WHERE id = $1`, id)
	if err != nil {
		return nil, err
	}
	return t.one(rows)
}

func (t *tx) one(rows pgx.Rows) (*record, error) {
	r, err := pgx.CollectExactlyOneRow(rows, scan)
	if errors.Is(err, pgx.ErrNoRows) {
		return nil, async.ErrNotFound
	}
	if err != nil {
		return nil, err
	}
	return r, t.secrets.unseal(r)
}

// lock returns the record with an id for this transaction alone, with the lock of its
// group.
func (t *tx) lock(id string) (r *record, err error) {
	t.queue(`SELECT pg_advisory_xact_lock(group_key) FROM tasks WHERE id = $1 AND group_key IS NOT NULL`, id)
	t.queue(`SELECT `+columns+` FROM tasks WHERE id = $1 FOR UPDATE`, id).Query(func(rows pgx.Rows) (err error) {
		r, err = t.one(rows)
		return err
	})
	t.time()
	return r, t.flush()
}

// lockSome returns those of the records with numbers for which a condition holds, and
// that no other transaction has, with the locks of their groups.
func (t *tx) lockSome(numbers, groups []int64, condition string, args ...any) (all []*record, err error) {
	t.locks(groups)
	t.time()
	t.queue(`SELECT `+columns+` FROM tasks WHERE number = ANY($1) AND `+condition+` ORDER BY number FOR UPDATE SKIP LOCKED`,
		append([]any{numbers}, args...)...).Query(func(rows pgx.Rows) error {
		all, err = pgx.CollectRows(rows, scan)
		return err
	})
	if err := t.flush(); err != nil {
		return nil, err
	}
	for _, r := range all {
		if err := t.secrets.unseal(r); err != nil {
			return nil, err
		}
	}
	return all, nil
}
