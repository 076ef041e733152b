package file

import (
	"bufio"
	"bytes"
	"encoding/hex"
	"flag"
	"fmt"
	"io"
	"math/rand/v2"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"slices"
	"strconv"
	"strings"
	"sync"
	"testing"

	"go.etcd.io/bbolt"

	"github.com/caddy-usher/usher/async"
)

// The power loss is simulated. strace records what a process with a store asks of the
// system: each write, sync and new name, in its order. A disk is built from a part of
// that, which ends anywhere, and which has lost what was not synced, in whole or in
// part. Then the store on that disk must have what was acknowledged before.

var cuts = flag.Int("file.cuts", 1000, "how many power losses are simulated")

const powerVariable = "USHER_FILE_POWER"

func TestAPowerLossLosesNothingAcknowledged(t *testing.T) {
	if dir := os.Getenv(powerVariable); dir != "" {
		usePower(t, dir)
		return
	}
	strace, err := exec.LookPath("strace")
	if err != nil {
		if os.Getenv("USHER_TEST_STRACE") == "required" {
			t.Fatal("there is no strace")
		}
		t.Skip("there is no strace")
	}
	root := t.TempDir()
	log := filepath.Join(t.TempDir(), "strace")
	c := exec.Command(strace, "-f", "-qq", "-xx", "-s", "1000000", "-o", log,
		"-e", "trace=openat,mkdirat,pwrite64,write,fsync,fdatasync,ftruncate,close,unlinkat,renameat,renameat2",
		os.Args[0], "-test.run", "^"+t.Name()+"$", "-test.timeout", "5m")
	c.Env = append(os.Environ(), powerVariable+"="+root)
	if out, err := c.CombinedOutput(); err != nil {
		if bytes.Contains(out, []byte("ptrace")) {
			if os.Getenv("USHER_TEST_STRACE") == "required" {
				t.Fatalf("strace may not trace here: %s", out)
			}
			t.Skipf("strace may not trace here: %s", out)
		}
		t.Fatalf("%v\n%s", err, out)
	}
	events := readEvents(t, log, root)
	acknowledged, syncs := 0, 0
	for _, e := range events {
		switch e.kind {
		case "ack":
			acknowledged++
		case "sync":
			syncs++
		}
	}
	t.Logf("%d events, %d syncs, %d acknowledgements", len(events), syncs, acknowledged)
	if acknowledged < 100 || syncs < 50 {
		t.Fatal("that is too few to show anything")
	}
	seed := rand.Uint64()
	t.Logf("seed %d", seed)
	random := rand.New(rand.NewPCG(seed, 1))
	torn := 0
	disks, err := os.MkdirTemp("/dev/shm", "usher-disk-") // in memory, if there is that
	if err != nil {
		disks = t.TempDir()
	}
	defer os.RemoveAll(disks)
	for k := range *cuts {
		at := 1 + k*len(events) / *cuts // cuts that are evenly spread
		dir := filepath.Join(disks, "disk")
		torn += buildDisk(t, events[:at], root, dir, random)
		checkDisk(t, dir, events[:at])
		if err := os.RemoveAll(dir); err != nil {
			t.Fatal(err)
		}
		if t.Failed() {
			t.Fatalf("cut %d, after event %d: %v", k, at, events[at-1])
		}
	}
	if torn < *cuts/10 {
		t.Errorf("%d writes were lost in %d cuts: too few to show anything", torn, *cuts)
	}
}

// usePower is the process that uses the store. It says on its standard output what
// it was promised.
func usePower(t *testing.T, root string) {
	s, err := Open(filepath.Join(root, "a", "store"), Options{})
	if err != nil {
		t.Fatal(err)
	}
	defer s.Close()
	var (
		all sync.WaitGroup
		mu  sync.Mutex
	)
	ack := func(words ...any) {
		mu.Lock()
		defer mu.Unlock()
		_, _ = os.Stdout.WriteString("ack " + fmt.Sprintln(words...))
	}
	for w := range 4 {
		all.Go(func() {
			for k := range 40 {
				size := 50
				if k%8 == 0 {
					size = inlineMost + 1000
				}
				n := async.NewTask{Queue: "q", Group: strconv.Itoa(w), Key: fmt.Sprint(w, k)}
				task, _, err := s.Put(t.Context(), n, strings.NewReader(strings.Repeat("b", size)))
				if err != nil {
					t.Error(err)
					return
				}
				ack("put", task.ID, size)
				tasks, err := s.Claim(t.Context(), "owner", "q", 1)
				if err != nil {
					t.Error(err)
					return
				}
				for _, task := range tasks {
					o := async.Outcome{State: async.Done, Answer: &async.Answer{Status: 200, Body: io.NopCloser(strings.NewReader(strings.Repeat("r", size)))}}
					if k%5 == 0 {
						o = async.Outcome{State: async.Pending}
					}
					if _, err := s.Settle(t.Context(), task.ID, task.Attempt, o); err != nil {
						t.Error(err)
						return
					}
					if o.State == async.Done {
						ack("done", task.ID, size)
					}
				}
			}
		})
	}
	all.Wait()
}

// event is what the process has asked of the system.
type event struct {
	kind string // create, write, truncate, sync or ack
	path string
	off  int64
	data []byte
	mark int // of a sync: the event at which it began
}

func (e event) String() string {
	return fmt.Sprintf("%s %s, %d bytes at %d", e.kind, e.path, len(e.data), e.off)
}

var (
	lineForm   = regexp.MustCompile(`^(\d+) +(?:<\.\.\. (\w+) resumed>(.*)|(\w+)\((.*))$`)
	resultForm = regexp.MustCompile(`\) += (-?\d+)`)
	quotedForm = regexp.MustCompile(`"((?:\\x[0-9a-f]{2})*)"`)
	unfinished = " <unfinished ...>"
)

func unquote(t *testing.T, args string) (first string) {
	t.Helper()
	m := quotedForm.FindStringSubmatch(args)
	if m == nil {
		t.Fatalf("strace says %.200s", args)
	}
	b, err := hex.DecodeString(strings.ReplaceAll(m[1], `\x`, ""))
	if err != nil {
		t.Fatal(err)
	}
	return string(b)
}

// readEvents reads what strace has recorded of the files below root.
func readEvents(t *testing.T, log, root string) (events []event) {
	t.Helper()
	f, err := os.Open(log)
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	lines := bufio.NewScanner(f)
	lines.Buffer(nil, 16<<20)
	files := make(map[string]string) // paths by descriptors
	begun := make(map[string]string) // arguments by processes
	marks := make(map[string]int)    // of syncs, by processes
	for lines.Scan() {
		m := lineForm.FindStringSubmatch(lines.Text())
		if m == nil {
			continue // the end of a thread
		}
		pid, call, args := m[1], m[4], m[5]
		if m[2] != "" {
			call, args = m[2], begun[pid]+m[3]
		}
		rest, starts := strings.CutSuffix(args, unfinished)
		if starts {
			begun[pid] = rest
		}
		fd, _, _ := strings.Cut(args, ",")
		fd, _, _ = strings.Cut(fd, ")")
		path := files[strings.TrimSpace(fd)]
		// Writes count from their beginning: they may be on the disk before they end.
		switch first := m[2] == ""; {
		case call == "pwrite64" && first && path != "":
			parts := strings.Split(rest, ", ")
			off, err := strconv.ParseInt(strings.TrimRight(strings.Fields(parts[len(parts)-1])[0], ")"), 10, 64)
			if err != nil {
				t.Fatalf("strace says %.300s", args)
			}
			events = append(events, event{kind: "write", path: path, off: off, data: []byte(unquote(t, args))})
		case call == "write" && first && strings.TrimSpace(fd) == "1":
			if words, ok := strings.CutPrefix(unquote(t, args), "ack "); ok {
				events = append(events, event{kind: "ack", data: []byte(words)})
			}
		case call == "write" && first && path != "":
			events = append(events, event{kind: "write", path: path, off: -1, data: []byte(unquote(t, args))})
		case (call == "fsync" || call == "fdatasync") && first:
			marks[pid] = len(events)
		}
		r := resultForm.FindStringSubmatch(args)
		if starts || r == nil || strings.HasPrefix(r[1], "-") {
			continue
		}
		switch call {
		case "openat":
			name := unquote(t, args)
			if !strings.HasPrefix(name, root) {
				delete(files, r[1])
				continue
			}
			files[r[1]] = name
			if strings.Contains(args, "O_CREAT") {
				events = append(events, event{kind: "create", path: name})
			}
		case "mkdirat":
			events = append(events, event{kind: "create", path: unquote(t, args), off: -1})
		case "ftruncate":
			_, number, _ := strings.Cut(args, ", ")
			number, _, _ = strings.Cut(number, ")")
			size, err := strconv.ParseInt(strings.TrimSpace(number), 10, 64)
			if err != nil {
				t.Fatalf("strace says %.300s", args)
			}
			events = append(events, event{kind: "truncate", path: path, off: size})
		case "fsync", "fdatasync":
			events = append(events, event{kind: "sync", path: path, mark: marks[pid]})
		case "close":
			delete(files, strings.TrimSpace(fd))
		case "unlinkat", "renameat", "renameat2":
			if strings.HasPrefix(unquote(t, args), root) && !strings.HasSuffix(unquote(t, args), compactedName) {
				t.Fatalf("the process has removed or renamed a file: %.300s", args)
			}
		}
	}
	if err := lines.Err(); err != nil {
		t.Fatal(err)
	}
	return events
}

// buildDisk builds what is on the disk after a power loss. It returns how many
// writes are lost, in whole or in part.
func buildDisk(t *testing.T, events []event, root, dir string, random *rand.Rand) (lost int) {
	t.Helper()
	// What was synced: the last sync of each file, and of each directory.
	synced := make(map[string]int)
	for _, e := range events {
		if e.kind == "sync" {
			synced[e.path] = e.mark
		}
	}
	content := make(map[string][]byte)
	var names []string
	missing := make(map[string]bool)
	for k, e := range events {
		durable := k < synced[e.path]
		switch e.kind {
		case "create":
			if slices.Contains(names, e.path) || missing[e.path] {
				continue // it was there
			}
			parent := filepath.Dir(e.path)
			if missing[parent] || k >= synced[parent] && random.IntN(2) == 0 {
				missing[e.path] = true
				continue
			}
			names = append(names, e.path)
			if e.off < 0 {
				content[e.path] = nil
			} else {
				content[e.path] = []byte{}
			}
		case "truncate":
			if durable || random.IntN(2) == 0 {
				content[e.path] = resized(content[e.path], e.off)
			} else {
				lost++
			}
		case "write":
			off := e.off
			if off < 0 {
				off = int64(len(content[e.path]))
			}
			data := e.data
			if !durable {
				switch random.IntN(3) {
				case 0: // all of it was written
				case 1:
					lost++
					continue
				case 2: // a part of it, in sectors
					lost++
					data = data[:random.IntN(len(data)/512+1)*512]
				}
			}
			if end := off + int64(len(data)); end > int64(len(content[e.path])) {
				content[e.path] = resized(content[e.path], end)
			}
			copy(content[e.path][off:], data)
		}
	}
	if err := os.MkdirAll(dir, 0o700); err != nil {
		t.Fatal(err)
	}
	for _, name := range names {
		path := dir + strings.TrimPrefix(name, root)
		var err error
		if content[name] == nil {
			err = os.MkdirAll(path, 0o700)
		} else {
			err = os.WriteFile(path, content[name], 0o600)
		}
		if err != nil {
			t.Fatal(err)
		}
	}
	return lost
}

func resized(b []byte, size int64) []byte {
	if b == nil {
		b = []byte{}
	}
	if int64(len(b)) >= size {
		return b[:size]
	}
	return append(b, make([]byte, size-int64(len(b)))...)
}

// checkDisk opens the store and looks for what was acknowledged.
func checkDisk(t *testing.T, dir string, events []event) {
	t.Helper()
	s, err := Open(filepath.Join(dir, "a", "store"), Options{})
	acks := 0
	for _, e := range events {
		if e.kind == "ack" {
			acks++
		}
	}
	if err != nil {
		if acks > 0 {
			t.Errorf("the store cannot be opened: %v", err)
		}
		return // its first sync had not ended
	}
	defer s.Close()
	for _, e := range events {
		if e.kind != "ack" {
			continue
		}
		w := strings.Fields(string(e.data))
		size, err := strconv.Atoi(w[2])
		if err != nil {
			t.Fatal(err)
		}
		task, err := s.Get(t.Context(), w[1])
		if err != nil || w[0] == "done" && task.State != async.Done {
			t.Errorf("%s: it is %s, error %v", bytes.TrimSpace(e.data), task.State, err)
			continue
		}
		if w[0] == "put" {
			body, err := s.Body(t.Context(), w[1])
			if err != nil {
				t.Errorf("%s: %v", bytes.TrimSpace(e.data), err)
				continue
			}
			if b, err := io.ReadAll(body); err != nil || len(b) != size || strings.Trim(string(b), "b") != "" {
				t.Errorf("%s: the body has %d bytes, error %v", bytes.TrimSpace(e.data), len(b), err)
			}
			body.Close()
			continue
		}
		r, err := s.Result(t.Context(), w[1])
		if err != nil {
			t.Errorf("%s: %v", bytes.TrimSpace(e.data), err)
			continue
		}
		if b, err := io.ReadAll(r.Body); err != nil || len(b) != int(r.Size) || strings.Trim(string(b), "r") != "" {
			t.Errorf("%s: the answer has %d bytes, want %d, error %v", bytes.TrimSpace(e.data), len(b), r.Size, err)
		}
		r.Body.Close()
	}
	err = s.db.View(func(tx *bbolt.Tx) error {
		for err := range tx.Check() {
			t.Errorf("the database: %v", err)
		}
		return nil
	})
	if err != nil {
		t.Error(err)
	}
	if _, err := s.Recover(t.Context(), "owner", func(async.Task) async.Outcome { return async.Outcome{State: async.Pending} }); err != nil {
		t.Error(err)
	}
	if _, _, err := s.Put(t.Context(), async.NewTask{Queue: "q"}, nil); err != nil {
		t.Error(err)
	}
}
