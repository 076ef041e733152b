package process

import (
	"errors"
	"fmt"
	"log/slog"
	"net/netip"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"

	"golang.org/x/sys/unix"

	"github.com/caddy-usher/usher/scaler"
)

// orphanedInstances are the instances in a data directory that outlived the
// Caddy which started them, still run, and may be adopted. The directory is
// read once in the life of a Caddy. Until Recover closes it, every revision
// that is opened may claim its own instances.
type orphanedInstances struct {
	dir string

	mu      sync.Mutex
	looked  bool
	closed  bool
	records map[revisionKey][]*record
	taken   map[string]netip.AddrPort // the addresses of the records, by instance
}

// revisionKey names a revision over the lives of several Caddys.
type revisionKey struct{ service, fingerprint string }

var (
	orphanedLock  sync.Mutex
	orphanedByDir = make(map[string]*orphanedInstances) // by directory
)

// orphanedIn returns the orphaned instances of a directory of records.
func orphanedIn(dir string) *orphanedInstances {
	orphanedLock.Lock()
	defer orphanedLock.Unlock()
	o := orphanedByDir[dir]
	if o == nil {
		o = &orphanedInstances{dir: dir}
		orphanedByDir[dir] = o
	}
	return o
}

// claim returns the records of a revision. A second call returns none.
func (o *orphanedInstances) claim(service string, fingerprint func() string) []*record {
	o.mu.Lock()
	defer o.mu.Unlock()
	if o.closed {
		return nil
	}
	if !o.looked {
		o.looked = true
		o.look()
	}
	if len(o.records) == 0 {
		return nil
	}
	key := revisionKey{service, fingerprint()}
	claimed := o.records[key]
	delete(o.records, key)
	return claimed
}

// look reads the records. Recover deals with unreadable ones. It takes the ports
// of all running instances at once, so that no service can start something at
// the port of another service's instance, which may not listen yet.
func (o *orphanedInstances) look() {
	entries, err := os.ReadDir(o.dir)
	if err != nil {
		return
	}
	own, err := ownIdentity()
	if err != nil {
		return
	}
	o.records, o.taken = make(map[revisionKey][]*record), make(map[string]netip.AddrPort)
	for _, entry := range entries {
		if !strings.HasSuffix(entry.Name(), recordSuffix) {
			continue
		}
		r, err := readRecord(filepath.Join(o.dir, entry.Name()))
		if err != nil || !r.Keep || !r.sameSystem(own) || !r.orphaned(own) || !r.leader().alive() {
			continue
		}
		if at := r.loopbackAddress(); at.IsValid() {
			ports.reserve(at)
			o.taken[r.Instance] = at
		}
		key := revisionKey{r.Service, r.Fingerprint}
		o.records[key] = append(o.records[key], r)
	}
}

// close ends the time in which instances can be adopted.
func (o *orphanedInstances) close() {
	o.mu.Lock()
	defer o.mu.Unlock()
	o.closed, o.records = true, nil
}

// keepPort leaves the port of an instance to the runner that adopted it.
func (o *orphanedInstances) keepPort(instance string) {
	o.mu.Lock()
	defer o.mu.Unlock()
	delete(o.taken, instance)
}

// leavePort gives back the port of an instance that has been ended.
func (o *orphanedInstances) leavePort(instance string) {
	o.mu.Lock()
	defer o.mu.Unlock()
	if at, ok := o.taken[instance]; ok {
		ports.give(at, true)
		delete(o.taken, instance)
	}
}

// leader is the main process of the recorded instance.
func (r *record) leader() identity { return identity{PID: r.PID, StartTime: r.StartTime} }

// loopbackAddress is the address of the recorded instance. It is invalid if the
// record has no address that an instance could have.
func (r *record) loopbackAddress() netip.AddrPort {
	at, err := netip.ParseAddrPort(r.Address)
	if r.Network != "tcp" || err != nil || at.Port() == 0 || !isFixedHost(at.Addr()) {
		return netip.AddrPort{}
	}
	return at
}

// adopt takes over the instances of this revision that an earlier Caddy started
// with `on_exit keep`. It does so only if that option is set now, because an
// adopted instance survives a kill of this Caddy. The runner reports adopted
// instances in their true state. They get slots once they have answered a probe.
func (r *runner) adopt() {
	if !r.env.Local().Keep {
		return
	}
	left := orphanedIn(recordDir(r.env.DataDir))
	for _, rec := range left.claim(r.env.Service, r.plan.Load().fingerprint) {
		in := &instance{id: rec.Instance, since: rec.Since, keep: true, uid: r.plan.Load().socketUser(), adopted: true, wasReady: rec.Ready, record: rec}
		switch err := r.takeIn(in); {
		case err == nil:
			left.keepPort(in.id)
			r.env.Logger().Info("instance adopted: an earlier Caddy had started it",
				slog.String("instance", in.id), slog.String("address", rec.Address), slog.Int("pid", rec.PID))
		case errors.Is(err, errOwned):
		default:
			r.env.Logger().Warn("an instance that an earlier Caddy had started is not adopted, but ended",
				slog.String("instance", in.id), slog.Int("pid", rec.PID), slog.Any("error", err))
		}
	}
}

// takeIn makes a recorded instance one of the runner's. It first makes sure that
// the process is that instance, and changes nothing on an error.
func (r *runner) takeIn(in *instance) error {
	rec := in.record
	if err := in.findAddress(r.plan.Load()); err != nil {
		return err
	}
	child, err := adoptChild(rec)
	if err != nil {
		return err
	}
	in.child = child
	dir := recordDir(r.env.DataDir)
	in.output = in.newOutput(r.plan.Load(), r.env)
	source, err := reopenFollowed(in.output, outputFilesOf(dir, in.id), r.env.Logger().With(slog.String("instance", in.id)))
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
	r.boundOutput()

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

// findAddress finds the address or socket of a recorded instance.
func (in *instance) findAddress(p *plan) error {
	rec := in.record
	if p.listen != listenUnix {
		at := rec.loopbackAddress()
		if !at.IsValid() {
			return fmt.Errorf("the record names no port of this machine: %s %q", rec.Network, rec.Address)
		}
		in.fixed, in.port = p.fixed, int(at.Port())
		if told := in.told(); at != told {
			return fmt.Errorf("it listens on %s, and not on %s", at, told)
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

// adoptChild opens the process of a record, and makes sure that it is the
// recorded one.
func adoptChild(r *record) (*child, error) {
	pidfd, err := unix.PidfdOpen(r.PID, 0)
	if err != nil {
		return nil, fmt.Errorf("process %d: %w", r.PID, os.NewSyscallError("pidfd_open", err))
	}
	// If the process has not ended, /proc now shows the process of the pidfd.
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

// marked tells whether the process shows that it is part of the instance: by
// its environment variable, or by its output file if the program has written
// its title over its environment.
func (r *record) marked() bool {
	if _, err := os.ReadFile(fmt.Sprintf("/proc/%d/environ", r.PID)); errors.Is(err, os.ErrPermission) {
		// Reading another user's process needs CAP_SYS_PTRACE. Without it, the
		// pid and start time identify the process.
		return true
	}
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

// confirmAdopted tells whether a probe has reached an instance that got its
// listening socket from an earlier Caddy. This Caddy has no copy of the socket,
// but the system shows how many connections wait to be accepted.
func (r *runner) confirmAdopted(in *instance) error {
	if err := in.confirmListener(); err != nil {
		return err
	}
	if unaccepted(in.port) > 0 {
		return scaler.ErrNotYet
	}
	return nil
}
