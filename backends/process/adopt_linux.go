package process

import (
	"errors"
	"fmt"
	"net"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"sync"

	"go.uber.org/zap"
	"golang.org/x/sys/unix"

	"github.com/caddy-usher/usher/scaler"
)

// estate is what dead Caddys left in a data directory, to be adopted: the
// instances that were started to outlive them and that still run. It is looked
// at once in the life of a Caddy. Until Recover closes it, every revision that
// is opened may claim what is its own.
type estate struct {
	dir string

	mu      sync.Mutex
	looked  bool
	closed  bool
	records map[revisionKey][]*record
	ports   map[string]int // those of the records, by instance
}

// revisionKey names a revision over the lives of several Caddys.
type revisionKey struct{ service, fingerprint string }

var (
	estatesLock sync.Mutex
	estates     = make(map[string]*estate) // by directory
)

// estateOf returns what was left in a directory of records.
func estateOf(dir string) *estate {
	estatesLock.Lock()
	defer estatesLock.Unlock()
	e := estates[dir]
	if e == nil {
		e = &estate{dir: dir}
		estates[dir] = e
	}
	return e
}

// claim returns the records of a revision, to nobody else.
func (e *estate) claim(service string, fingerprint func() string) []*record {
	e.mu.Lock()
	defer e.mu.Unlock()
	if e.closed {
		return nil
	}
	if !e.looked {
		e.looked = true
		e.look()
	}
	if len(e.records) == 0 {
		return nil
	}
	key := revisionKey{service, fingerprint()}
	claimed := e.records[key]
	delete(e.records, key)
	return claimed
}

// look reads the records. What cannot be read is Recover's business. The ports
// of all that still runs are taken at once: before a service can start anything
// at the port of another's instance, which may not listen yet.
func (e *estate) look() {
	entries, err := os.ReadDir(e.dir)
	if err != nil {
		return
	}
	own, err := ownIdentity()
	if err != nil {
		return
	}
	e.records, e.ports = make(map[revisionKey][]*record), make(map[string]int)
	for _, entry := range entries {
		if !strings.HasSuffix(entry.Name(), recordSuffix) {
			continue
		}
		r, err := readRecord(filepath.Join(e.dir, entry.Name()))
		if err != nil || !r.Keep || !r.sameSystem(own) || !r.orphaned(own) || !r.leader().alive() {
			continue
		}
		if port := r.port(); port != 0 {
			ports.reserve(port)
			e.ports[r.Instance] = port
		}
		key := revisionKey{r.Service, r.Fingerprint}
		e.records[key] = append(e.records[key], r)
	}
}

// close ends the time in which something can be adopted.
func (e *estate) close() {
	e.mu.Lock()
	defer e.mu.Unlock()
	e.closed, e.records = true, nil
}

// keepPort leaves the port of an instance to who has adopted it.
func (e *estate) keepPort(instance string) {
	e.mu.Lock()
	defer e.mu.Unlock()
	delete(e.ports, instance)
}

// leavePort gives back the port of an instance that was ended.
func (e *estate) leavePort(instance string) {
	e.mu.Lock()
	defer e.mu.Unlock()
	if port, ok := e.ports[instance]; ok {
		ports.give(port, true)
		delete(e.ports, instance)
	}
}

// leader is the main process of the recorded instance.
func (r *record) leader() identity { return identity{PID: r.PID, StartTime: r.StartTime} }

// port is the loopback port of the recorded instance, or 0.
func (r *record) port() int {
	host, text, err := net.SplitHostPort(r.Address)
	port, numberErr := strconv.Atoi(text)
	if r.Network != "tcp" || err != nil || numberErr != nil || host != loopback || port < 1 || port > 65535 {
		return 0
	}
	return port
}

// adopt takes over the instances of this very revision that an earlier Caddy
// started to outlive it, if instances are to outlive Caddy now as well: one that
// was adopted would survive a kill of this Caddy. They are reported as what they
// are, and get slots when they have answered a probe.
func (r *runner) adopt() {
	if !r.env.Local().Keep {
		return
	}
	left := estateOf(recordDir(r.env.DataDir))
	for _, rec := range left.claim(r.env.Service, r.plan.Load().fingerprint) {
		in := &instance{id: rec.Instance, since: rec.Since, keep: true, adopted: true, wasReady: rec.Ready, record: rec}
		switch err := r.takeIn(in); {
		case err == nil:
			left.keepPort(in.id)
			r.env.Logger().Info("instance adopted: an earlier Caddy had started it",
				zap.String("instance", in.id), zap.String("address", rec.Address), zap.Int("pid", rec.PID))
		case errors.Is(err, errOwned):
		default:
			r.env.Logger().Warn("an instance that an earlier Caddy had started is not adopted, but ended",
				zap.String("instance", in.id), zap.Int("pid", rec.PID), zap.Error(err))
		}
	}
}

// takeIn makes a recorded instance one of the runner's. It does not touch the
// process before it is certain whose it is, and changes nothing on an error.
func (r *runner) takeIn(in *instance) error {
	rec := in.record
	if err := in.findPlace(r.plan.Load().listen); err != nil {
		return err
	}
	child, err := adoptChild(rec)
	if err != nil {
		return err
	}
	in.child = child
	dir := recordDir(r.env.DataDir)
	in.output = newOutput(in.outputLogger(r.plan.Load(), r.env.Logger()))
	source, err := reopenFollowed(in.output, outputFilesOf(dir, in.id), r.env.Logger().With(zap.String("instance", in.id)))
	if err != nil {
		child.close()
		return fmt.Errorf("opening the files of its output: %w", err)
	}
	in.source = source
	own, err := ownIdentity()
	if err == nil {
		err = rec.takeOver(dir, own, r.env.Revision)
	}
	if err != nil {
		source.closeFiles()
		child.close()
		return err
	}
	source.begin()

	r.mu.Lock()
	defer r.mu.Unlock()
	r.instances = append(r.instances, in)
	if in.socket == "" || isSocket(in.socket) {
		in.network, in.address = in.where()
	} else {
		in.appears = watchFor(in.socket)
		r.life.Go(func() { r.awaitSocket(in) })
	}
	r.life.Go(func() { r.watch(in) })
	return nil
}

// findPlace finds out what a recorded instance listens on.
func (in *instance) findPlace(listen string) error {
	rec := in.record
	if listen != listenUnix {
		if in.port = rec.port(); in.port == 0 {
			return fmt.Errorf("the record names no port of this machine: %s %q", rec.Network, rec.Address)
		}
		return nil
	}
	// The path comes from a file: only a socket of this instance will do.
	if filepath.Base(rec.Socket) != socketName || filepath.Base(filepath.Dir(rec.Socket)) != rec.Instance {
		return fmt.Errorf("the record names no socket of the instance: %q", rec.Socket)
	}
	in.socket = rec.Socket
	return nil
}

// adoptChild takes hold of the process of a record, and makes sure that it is
// the one which the record means.
func adoptChild(r *record) (*child, error) {
	pidfd, err := unix.PidfdOpen(r.PID, 0)
	if err != nil {
		return nil, fmt.Errorf("process %d: %w", r.PID, os.NewSyscallError("pidfd_open", err))
	}
	// What is looked at now is the process of the pidfd, if it has not ended.
	if stat, err := readStat(r.PID); err != nil || stat.startTime != r.StartTime || stat.dead() || stat.group != r.PID || !r.marked() {
		unix.Close(pidfd)
		return nil, fmt.Errorf("process %d is not the one that was recorded, or is about to end", r.PID)
	}
	c := &child{
		pid: r.PID, startTime: r.StartTime,
		adopted: &search{instance: r.Instance, group: r.PID, reserved: r.leader().alive},
	}
	return c, c.hold(pidfd)
}

// marked tells whether the process shows the marks of its instance: its
// variable, or, where a program has written its title over its environment,
// the file that it writes its output to.
func (r *record) marked() bool {
	if found := variable(r.PID, varInstance); found != "" {
		return found == r.Instance
	}
	for fd := 1; fd <= 2; fd++ {
		file, err := os.Readlink(fmt.Sprintf("/proc/%d/fd/%d", r.PID, fd))
		if err == nil && slices.Contains(r.Output, file) {
			return true
		}
	}
	return false
}

// confirmAdopted tells whether a probe has reached an instance that was passed
// its listening socket by an earlier Caddy. Usher has no copy of that socket any
// more, but the system shows how many connections wait to be accepted.
func (r *runner) confirmAdopted(in *instance) error {
	if err := checkOwner(in.port, in.child, in.id); err != nil {
		return err
	}
	if unaccepted(in.port) > 0 {
		return scaler.ErrNotYet
	}
	return nil
}
