package tasks

import (
	"context"
	"errors"
	"fmt"
	"io"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/jackc/pgx/v5"

	"github.com/caddy-usher/usher/async"
	"github.com/caddy-usher/usher/postgres/pgserver"
)

const patience = 60 * time.Second

func open(t testing.TB, place, key string) *Store {
	t.Helper()
	s, err := opened(place, key)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { s.Close() })
	return s.(*Store)
}

func await(t testing.TB, what string, ok func() bool) {
	t.Helper()
	for end := time.Now().Add(patience); !ok(); time.Sleep(10 * time.Millisecond) {
		if time.Now().After(end) {
			t.Fatalf("after %v there is not %s", patience, what)
		}
	}
}

func put(t testing.TB, s *Store, n async.NewTask, body string) async.Task {
	t.Helper()
	task, _, err := s.Put(t.Context(), n, strings.NewReader(body))
	if err != nil {
		t.Fatal(err)
	}
	return task
}

func claim(t testing.TB, s *Store, owner string) async.Task {
	t.Helper()
	tasks, err := s.Claim(t.Context(), owner, "q", 1)
	if err != nil || len(tasks) != 1 {
		t.Fatalf("%d tasks were claimed, error %v", len(tasks), err)
	}
	return tasks[0]
}

// The checks share a server, each with a schema of its own.
func TestStore(t *testing.T) {
	db := pgserver.Start(t, pgserver.Options{})
	for name, check := range map[string]func(*testing.T, *pgserver.Server){
		"Nothing is lost when the server is restarted under load": checkNothingIsLostWhenTheServerIsRestartedUnderLoad,
		"A task whose claim got no answer is given back":          checkATaskWhoseClaimGotNoAnswerIsGivenBack,
		"Cut connections are no errors":                           checkCutConnectionsAreNoErrors,
		"Changes of other processes are told":                     checkChangesOfOtherProcessesAreTold,
		"Encryption":                                              checkEncryption,
		"Caddy starts without the server":                         checkCaddyStartsWithoutTheServer,
		"A frozen server fails in time":                           checkAFrozenServerFailsInTime,
		"A Caddy that stands still holds up no other":             checkAStillCaddyHoldsUpNoOther,
		"A claim waits for no other":                              checkAClaimWaitsForNoOther,
		"Counts are added up":                                     checkCountsAreAddedUp,
		"No statement looks at all tasks":                         checkNoStatementLooksAtAllTasks,
		"Large bodies leave no files":                             checkLargeBodiesLeaveNoFiles,
	} {
		t.Run(name, func(t *testing.T) { check(t, db) })
	}
}

func checkChangesOfOtherProcessesAreTold(t *testing.T, db *pgserver.Server) {
	a, b := open(t, db.DSN()+" s5", ""), open(t, db.DSN()+" s5", "")
	heard := make(chan async.Change, 100_000)
	defer b.Watch(func(c async.Change) { heard <- c })()
	hears := func(id string, state async.State) {
		t.Helper()
		deadline := time.After(patience)
		for {
			select {
			case c := <-heard:
				if c == (async.Change{Queue: "q", ID: id, State: state}) {
					return
				}
			case <-deadline:
				t.Fatalf("that %s is %s was not told", id, state)
			}
		}
	}
	// It may begin to listen only now.
	await(t, "a listener", func() bool {
		put(t, a, async.NewTask{Queue: "first"}, "")
		return len(heard) > 0
	})
	task := put(t, a, async.NewTask{Queue: "q"}, "")
	hears(task.ID, async.Pending)
	c := claim(t, a, "owner")
	hears(task.ID, async.Running)
	// Also after the server was restarted.
	db.Stop()
	db.Start()
	await(t, "a listener", func() bool {
		put(t, a, async.NewTask{Queue: "again"}, "")
		for len(heard) > 0 {
			if c := <-heard; c.Queue == "again" {
				return true
			}
		}
		return false
	})
	if _, err := a.Settle(t.Context(), task.ID, c.Attempt, async.Outcome{State: async.Done}); err != nil {
		t.Fatal(err)
	}
	hears(task.ID, async.Done)
}

func TestMessagesFit(t *testing.T) {
	s := &Store{boot: "boot"}
	var changes []async.Change
	for k := range 1000 {
		changes = append(changes, async.Change{Queue: strings.Repeat("\x01", 900) + fmt.Sprint(k%3), ID: strings.Repeat("A", idSize), State: async.Pending})
	}
	changes = append(changes, async.Change{Queue: "last", ID: "x", State: async.Done})
	texts := s.messages(changes)
	if len(texts) == 0 || len(texts) > messagesMost+2 || !strings.Contains(strings.Join(texts, ""), `"last"`) {
		t.Errorf("there are %d messages, want a few, and one that tells of the last queue", len(texts))
	}
	for _, text := range texts {
		if len(text) > 7999 {
			t.Errorf("a message has %d bytes", len(text))
		}
	}
}

func checkEncryption(t *testing.T, db *pgserver.Server) {
	place := db.DSN() + " s"
	s := open(t, place, "right")
	secret := "a-secret-of-the-client"
	n := async.NewTask{
		Queue: "q", Key: secret, Group: secret, Client: secret, Fingerprint: secret, Callback: "https://" + secret,
		Request: async.Request{URI: "/" + secret, Header: map[string][]string{"Authorization": {secret}}},
	}
	put(t, s, n, strings.Repeat(secret, 1000))
	c := claim(t, s, "owner")
	answer := &async.Answer{Status: 200, Header: map[string][]string{"Set-Cookie": {secret}}, Body: io.NopCloser(strings.NewReader(secret)), Size: -1}
	if _, err := s.Settle(t.Context(), c.ID, c.Attempt, async.Outcome{State: async.Failed, Reason: secret, Answer: answer}); err != nil {
		t.Fatal(err)
	}
	for _, table := range []string{"tasks", "parts", "meta", "owners", "counts", "exclusives"} {
		rows, err := s.pool.Query(t.Context(), `SELECT convert_from(decode(encode(convert_to(x::text, 'UTF8'), 'hex'), 'hex'), 'UTF8') FROM `+table+` AS x`)
		if err != nil {
			t.Fatal(err)
		}
		texts, err := pgx.CollectRows(rows, pgx.RowTo[string])
		if err != nil {
			t.Fatal(err)
		}
		for _, text := range texts {
			if strings.Contains(text, secret) || strings.Contains(text, fmt.Sprintf("%x", secret)) {
				t.Errorf("the table %s has the secret: %.200s", table, text)
			}
		}
	}
	for _, key := range []string{"wrong", ""} {
		if other, err := opened(place, key); !errors.Is(err, ErrWrongKey) {
			if err == nil {
				other.Close()
			}
			t.Errorf("with the key %q: error %v", key, err)
		}
	}
	plain := open(t, db.DSN()+" plain6", "")
	put(t, plain, n, "")
	if _, err := opened(db.DSN()+" plain6", "right"); !errors.Is(err, ErrWrongKey) {
		t.Errorf("a key for a store that is not encrypted: error %v", err)
	}
}

func TestAServerWithoutFsyncIsRefused(t *testing.T) {
	db := pgserver.Start(t, pgserver.Options{Settings: []string{"fsync=off"}})
	if _, err := opened(db.DSN()+" s6", ""); err == nil || !strings.Contains(err.Error(), "fsync = off") || strings.Contains(err.Error(), pgserver.Password) {
		t.Errorf("error %v", err)
	}
}

// While one Caddy has locked a task, others go on with the next one.
func checkAClaimWaitsForNoOther(t *testing.T, db *pgserver.Server) {
	s := open(t, db.DSN()+" s9", "")
	first := put(t, s, async.NewTask{Queue: "q"}, "")
	second := put(t, s, async.NewTask{Queue: "q"}, "")
	held := put(t, s, async.NewTask{Queue: "q", Exclusive: "x"}, "")
	err := s.update(t.Context(), func(tx *tx) error {
		round := claimRound{owner: "slow", queue: "q", claim: "c"}
		if err := tx.claim(&round, 1); err != nil || len(round.begun) != 1 || round.begun[0].id != first.ID {
			return fmt.Errorf("%d tasks, error %w", len(round.begun), err)
		}
		if err := tx.flush(); err != nil {
			return err
		}
		ctx, cancel := context.WithTimeout(t.Context(), 10*time.Second)
		defer cancel()
		tasks, err := s.Claim(ctx, "fast", "q", 2)
		if err != nil || len(tasks) != 2 || tasks[0].ID != second.ID || tasks[1].ID != held.ID {
			t.Errorf("%d tasks were claimed, error %v; want the others", len(tasks), err)
		}
		return nil
	})
	if err != nil {
		t.Fatal(err)
	}
}

// The table of counts does not grow with each change.
func checkCountsAreAddedUp(t *testing.T, db *pgserver.Server) {
	s := open(t, db.DSN()+" s10", "")
	put(t, s, async.NewTask{Queue: "q"}, "")
	for range 20 {
		c := claim(t, s, "owner")
		if _, err := s.Settle(t.Context(), c.ID, c.Attempt, async.Outcome{State: async.Pending}); err != nil {
			t.Fatal(err)
		}
	}
	rows := func() (n int) {
		if err := s.pool.QueryRow(t.Context(), `SELECT count(*) FROM counts`).Scan(&n); err != nil {
			t.Fatal(err)
		}
		return n
	}
	before := rows()
	if _, err := s.Sweep(t.Context()); err != nil {
		t.Fatal(err)
	}
	if after := rows(); before < 20 || after > 2 {
		t.Errorf("there were %d counts, and there are %d; want 2 at most", before, after)
	}
	if queues, err := s.Queues(t.Context()); err != nil || queues["q"].States[async.Pending] != 1 || queues["q"].Runnable != 1 {
		t.Errorf("the queues are %+v, error %v", queues, err)
	}
}

// Each statement has an index: with many tasks none looks at all of them.
func checkNoStatementLooksAtAllTasks(t *testing.T, db *pgserver.Server) {
	s := open(t, db.DSN()+" s11", "")
	var all sync.WaitGroup
	for w := range 32 {
		all.Go(func() {
			for range 60 {
				put(t, s, async.NewTask{Queue: "q", Group: fmt.Sprint(w), Expires: time.Hour, Keep: time.Hour}, "x")
			}
		})
	}
	all.Wait()
	scans := func() map[string]int64 {
		// What a connection has done is counted when it has been idle for a moment.
		time.Sleep(1500 * time.Millisecond)
		rows, err := s.pool.Query(t.Context(), `SELECT relname, seq_tup_read FROM pg_stat_user_tables WHERE schemaname = 's11' AND relname IN ('tasks', 'parts')`)
		if err != nil {
			t.Fatal(err)
		}
		found := make(map[string]int64)
		var (
			name string
			n    int64
		)
		if _, err := pgx.ForEachRow(rows, []any{&name, &n}, func() error { found[name] = n; return nil }); err != nil {
			t.Fatal(err)
		}
		return found
	}
	before := scans()
	for range 5 {
		c := claim(t, s, "owner")
		if _, err := s.Settle(t.Context(), c.ID, c.Attempt, async.Outcome{State: async.Done}); err != nil {
			t.Fatal(err)
		}
		task := put(t, s, async.NewTask{Queue: "q", Key: c.ID}, "x")
		if _, err := s.Cancel(t.Context(), task.ID); err != nil {
			t.Fatal(err)
		}
		for _, f := range []func() error{
			func() error { _, err := s.Retry(t.Context(), task.ID); return err },
			func() error { _, err := s.Queues(t.Context()); return err },
			func() error { _, err := s.Sweep(t.Context()); return err },
			func() error { _, err := s.Renew(t.Context(), "owner"); return err },
			func() error {
				_, err := s.Recover(t.Context(), "owner", func(async.Task) async.Outcome { return async.Outcome{} })
				return err
			},
			func() error { _, err := s.List(t.Context(), async.Filter{}); return err },
		} {
			if err := f(); err != nil {
				t.Fatal(err)
			}
		}
	}
	after := scans()
	for name, n := range after {
		if n != before[name] {
			t.Errorf("%d rows of %s were looked at one after the other", n-before[name], name)
		}
	}
}

// Bodies above the limit of memory go through a file that is not left behind.
func checkLargeBodiesLeaveNoFiles(t *testing.T, db *pgserver.Server) {
	dir := t.TempDir()
	t.Setenv("TMPDIR", dir)
	for _, key := range []string{"", "key"} {
		s := open(t, db.DSN()+" s12"+key, key)
		text := strings.Repeat("0123456789abcdef", 5<<20/16) + "end"
		task := put(t, s, async.NewTask{Queue: "q", Key: "k", MaxTasks: 1}, text)
		body, err := s.Body(t.Context(), task.ID)
		if err != nil {
			t.Fatal(err)
		}
		got, err := io.ReadAll(body)
		body.Close()
		if err != nil || string(got) != text {
			t.Errorf("the body has %d bytes, error %v; want %d", len(got), err, len(text))
		}
		// Of what is refused nothing stays.
		if _, _, err := s.Put(t.Context(), async.NewTask{Queue: "q", MaxTasks: 1}, strings.NewReader(text)); !errors.Is(err, async.ErrFull) {
			t.Errorf("Put beyond the limit: error %v", err)
		}
		n := 0
		if err := s.pool.QueryRow(t.Context(), `SELECT count(DISTINCT number) FROM parts`).Scan(&n); err != nil || n != 1 {
			t.Errorf("there are parts of %d bodies, error %v; want those of one", n, err)
		}
	}
	files, err := filepath.Glob(filepath.Join(dir, "usher-body-*"))
	if err != nil || len(files) > 0 {
		t.Errorf("there are the files %q, error %v", files, err)
	}
}

// It is judged by beats, and not by a clock: what could not be seen does not count.
func TestAnOwnerIsGoneWhenItWasSeenNotToBeat(t *testing.T) {
	const lease = 20 * time.Second
	var b beats
	now := time.Now()
	look := func(after time.Duration, found map[string]int64) []string {
		now = now.Add(after)
		var gone []string
		for name := range b.note(found, now, lease) {
			gone = append(gone, name)
		}
		slices.Sort(gone)
		return gone
	}
	for n := range int64(6) {
		if gone := look(4*time.Second, map[string]int64{"dead": 1, "alive": n}); n < 5 && len(gone) > 0 || n == 5 && !slices.Equal(gone, []string{"dead"}) {
			t.Errorf("after look %d %q are gone", n, gone)
		}
	}
	// The process or the server stood still for an hour: nothing is known.
	if gone := look(time.Hour, map[string]int64{"dead": 1, "alive": 5}); len(gone) > 0 {
		t.Errorf("after a gap %q are gone", gone)
	}
}
