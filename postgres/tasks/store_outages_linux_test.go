package tasks

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/caddy-usher/usher/async"
	"github.com/caddy-usher/usher/postgres/pgserver"
)

// The server is restarted, in order and as by a crash, while several Caddys accept and
// execute.
func checkNothingIsLostWhenTheServerIsRestartedUnderLoad(t *testing.T, db *pgserver.Server) {
	const (
		caddys   = 3
		writers  = 8
		runners  = 4
		restarts = 6
	)
	place := db.DSN() + " load"
	var (
		mu       sync.Mutex
		accepted = make(map[string]bool)
		running  = make(map[string]int) // by id, to the attempt that has a slot
		ended    = make(map[string]int) // how often a final outcome was confirmed
		last     = make(map[string]int) // of a group, the number that was begun last
		stopping atomic.Bool
		work     sync.WaitGroup
	)
	stores := make([]*Store, caddys)
	for c := range caddys {
		stores[c] = open(t, place, "")
		s, owner := stores[c], fmt.Sprint("caddy ", c)
		for w := range writers {
			work.Go(func() {
				for k := 0; !stopping.Load(); k++ {
					n := async.NewTask{Queue: "q", Key: fmt.Sprint(c, w, k), Client: fmt.Sprint(k), MaxTasks: 100_000}
					if w%2 == 0 {
						n.Group = fmt.Sprint(c, w)
					}
					if w == 1 {
						n.Exclusive = "one"
					}
					// A client that got no answer asks again, with the same key.
					for {
						task, _, err := s.Put(context.Background(), n, strings.NewReader(n.Key))
						if err == nil {
							mu.Lock()
							accepted[task.ID] = true
							mu.Unlock()
							break
						}
						if stopping.Load() {
							return
						}
						time.Sleep(10 * time.Millisecond)
					}
				}
			})
		}
		work.Go(func() {
			for !stopping.Load() {
				_, _ = s.Renew(context.Background(), owner)
				time.Sleep(lease / 5)
			}
		})
		for range runners {
			work.Go(func() {
				for !stopping.Load() {
					tasks, err := s.Claim(context.Background(), owner, "q", 1)
					if err != nil || len(tasks) == 0 {
						time.Sleep(5 * time.Millisecond)
						continue
					}
					task := tasks[0]
					mu.Lock()
					if other, ok := running[task.ID]; ok {
						t.Errorf("task %s: attempt %d begins while attempt %d is under way", task.ID, task.Attempt, other)
					}
					running[task.ID] = task.Attempt
					if task.Group != "" {
						var n int
						fmt.Sscan(task.Client, &n)
						if before, ok := last[task.Group]; ok && n < before {
							t.Errorf("group %s: %d follows %d", task.Group, n, before)
						}
						last[task.Group] = n
					}
					mu.Unlock()
					for {
						mu.Lock()
						delete(running, task.ID) // whether it is recorded or not, the instance is free
						mu.Unlock()
						_, err := s.Settle(context.Background(), task.ID, task.Attempt, async.Outcome{State: async.Done})
						if err == nil || errors.Is(err, async.ErrStale) {
							mu.Lock()
							if err == nil {
								ended[task.ID]++
							}
							mu.Unlock()
							break
						}
						if stopping.Load() {
							return
						}
						time.Sleep(10 * time.Millisecond)
					}
				}
			})
		}
	}
	confirmed := func() int {
		mu.Lock()
		defer mu.Unlock()
		return len(ended)
	}
	for k := range restarts {
		before := confirmed()
		await(t, "progress before a restart", func() bool { return confirmed() > before+50 })
		if k%2 == 0 {
			db.Stop()
		} else {
			db.Shutdown()
		}
		db.Start()
	}
	before := confirmed()
	await(t, "progress after the last restart", func() bool { return confirmed() > before+50 })
	stopping.Store(true)
	work.Wait()

	s := stores[0]
	for {
		// What a lost answer has left under way is given back.
		for c := range caddys {
			if _, err := stores[c].Renew(t.Context(), fmt.Sprint("caddy ", c)); err != nil {
				t.Fatal(err)
			}
		}
		tasks, err := s.Claim(t.Context(), "caddy 0", "q", 100)
		if err != nil {
			t.Fatal(err)
		}
		for _, task := range tasks {
			if _, err := s.Settle(t.Context(), task.ID, task.Attempt, async.Outcome{State: async.Done}); err != nil {
				t.Fatal(err)
			}
		}
		if len(tasks) == 0 {
			break
		}
	}
	queues, err := s.Queues(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	if q := queues["q"]; q.Unfinished() != 0 {
		t.Errorf("at the end the queue is %+v", q)
	}
	for id := range accepted {
		task, err := s.Get(t.Context(), id)
		if err != nil || task.State != async.Done {
			t.Fatalf("task %s was accepted, and is %s, error %v", id, task.State, err)
		}
		if ended[id] > 1 {
			t.Errorf("task %s has %d outcomes", id, ended[id])
		}
	}
	t.Logf("%d tasks were accepted, %d outcomes confirmed under load", len(accepted), len(ended))
}

// proxy forwards connections, and cuts them. With hold set, what the server says does
// not arrive any more.
type proxy struct {
	address string
	mu      sync.Mutex
	conns   []net.Conn
	hold    bool
}

func startProxy(t testing.TB, server string) *proxy {
	t.Helper()
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	p := &proxy{address: l.Addr().String()}
	var life sync.WaitGroup
	life.Go(func() {
		for {
			client, err := l.Accept()
			if err != nil {
				return
			}
			up, err := net.Dial("tcp", server)
			if err != nil {
				client.Close()
				continue
			}
			p.mu.Lock()
			p.conns = append(p.conns, client, up)
			p.mu.Unlock()
			life.Go(func() { _, _ = io.Copy(up, client); up.Close() })
			life.Go(func() {
				defer client.Close()
				b := make([]byte, 32<<10)
				for {
					n, err := up.Read(b)
					if err != nil {
						return
					}
					p.mu.Lock()
					hold := p.hold
					p.mu.Unlock()
					if hold {
						continue
					}
					if _, err := client.Write(b[:n]); err != nil {
						return
					}
				}
			})
		}
	})
	t.Cleanup(func() {
		l.Close()
		p.cut()
		life.Wait()
	})
	return p
}

func (p *proxy) cut() {
	p.mu.Lock()
	defer p.mu.Unlock()
	for _, c := range p.conns {
		c.Close()
	}
	p.conns = nil
}

func (p *proxy) deafen(hold bool) {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.hold = hold
}

// The answer to a claim gets lost, and the claim was committed.
func checkATaskWhoseClaimGotNoAnswerIsGivenBack(t *testing.T, db *pgserver.Server) {
	p := startProxy(t, db.Address)
	direct := open(t, db.DSN()+" s3", "")
	behind := open(t, pgserver.DSN(p.address)+" s3", "")
	task := put(t, direct, async.NewTask{Queue: "q"}, "")
	// A transaction that is committed, and whose commit is not answered.
	err := behind.update(t.Context(), func(tx *tx) error {
		round := claimRound{owner: "behind", queue: "q", claim: "lost"}
		if err := tx.claim(&round, 1); err != nil {
			return err
		}
		if err := tx.flush(); err != nil {
			return err
		}
		p.deafen(true)
		time.AfterFunc(200*time.Millisecond, p.cut)
		return nil
	})
	if err == nil {
		t.Fatal("the commit was answered")
	}
	p.deafen(false)
	if got, err := direct.Get(t.Context(), task.ID); err != nil || got.State != async.Running || got.Owner != "behind" {
		t.Fatalf("it is %+v, error %v; want its claim committed", got, err)
	}
	await(t, "a task that was given back", func() bool {
		if _, err := behind.Renew(t.Context(), "behind"); err != nil {
			return false
		}
		got, err := direct.Get(t.Context(), task.ID)
		return err == nil && got.State == async.Pending && got.Counted == 0
	})
	if again := claim(t, direct, "direct"); again.Attempt != 2 {
		t.Errorf("attempt %d follows the one that never was", again.Attempt)
	}
}

func checkCutConnectionsAreNoErrors(t *testing.T, db *pgserver.Server) {
	p := startProxy(t, db.Address)
	s := open(t, pgserver.DSN(p.address)+" s4", "")
	for range 5 {
		task := put(t, s, async.NewTask{Queue: "q"}, "x")
		p.cut()
		if _, err := s.Get(t.Context(), task.ID); err != nil {
			t.Errorf("Get: %v", err)
		}
		p.cut()
		c := claim(t, s, "owner")
		p.cut()
		if _, err := s.Settle(t.Context(), c.ID, c.Attempt, async.Outcome{State: async.Done}); err != nil {
			t.Errorf("Settle: %v", err)
		}
		p.cut()
	}
}

func checkCaddyStartsWithoutTheServer(t *testing.T, db *pgserver.Server) {
	db.Stop()
	s := open(t, db.DSN()+" s7", "")
	_, err := s.Queues(t.Context())
	if err == nil || strings.Contains(err.Error(), "s3cret") || !strings.Contains(err.Error(), db.Address) {
		t.Errorf("without the server: error %v, want one that names it, and no password", err)
	}
	db.Start()
	put(t, s, async.NewTask{Queue: "q"}, "")
}

func checkAFrozenServerFailsInTime(t *testing.T, db *pgserver.Server) {
	s := open(t, db.DSN()+" s8", "")
	task := put(t, s, async.NewTask{Queue: "q"}, "")
	db.Freeze()
	defer db.Thaw()
	ctx, cancel := context.WithTimeout(t.Context(), time.Second)
	defer cancel()
	began := time.Now()
	if _, err := s.Get(ctx, task.ID); err == nil || time.Since(began) > 10*time.Second {
		t.Errorf("Get took %v, error %v", time.Since(began), err)
	}
	db.Thaw()
	await(t, "an answer", func() bool {
		_, err := s.Get(t.Context(), task.ID)
		return err == nil
	})
}

// A process stands still with the locks of a queue and of a group.
func checkAStillCaddyHoldsUpNoOther(t *testing.T, db *pgserver.Server) {
	still, other := open(t, db.DSN()+" still", ""), open(t, db.DSN()+" still", "")
	n := async.NewTask{Queue: "q", Group: "g", MaxTasks: 10}
	put(t, other, n, "")
	locked, wake, woken := make(chan struct{}), make(chan struct{}), make(chan error)
	go func() {
		tries := 0
		woken <- still.update(t.Context(), func(tx *tx) error {
			if tries++; tries > 1 {
				return errors.New("the server has ended the transaction")
			}
			secrets, err := still.secrets(t.Context())
			if err != nil {
				return err
			}
			a, err := accepting(secrets, n, strings.NewReader(""))
			if err != nil {
				return err
			}
			if err := tx.accept([]*acceptance{a}); err != nil {
				return err
			}
			if err := tx.flush(); err != nil {
				return err
			}
			close(locked)
			<-wake
			return nil
		})
	}()
	<-locked
	began := time.Now()
	put(t, other, n, "")
	if took := time.Since(began); took > 3*stillMost {
		t.Errorf("another one has waited for %v", took)
	}
	close(wake)
	if err := <-woken; err == nil {
		t.Error("what stood still was committed all the same")
	}
}
