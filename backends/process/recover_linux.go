package process

import (
	"context"
	"errors"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"syscall"
	"time"

	"go.uber.org/zap"
)

// recoverGrace is how long what is found may take from the stop signal to the
// kill. The service's own stop_timeout is not known any more.
const recoverGrace = 10 * time.Second

// recoverAtOnce bounds how many instances are ended at the same time.
const recoverAtOnce = 8

// Recover ends what a Caddy that was killed left behind: instances that were
// started to outlive it, and what instances had forked away.
func (*Backend) Recover(ctx context.Context, dataDir string, logger *zap.Logger) {
	dir := recordDir(dataDir)
	entries, err := os.ReadDir(dir)
	if err != nil {
		if !errors.Is(err, os.ErrNotExist) {
			logger.Warn("the records of earlier processes cannot be read; what a killed Caddy left behind is not ended",
				zap.String("dir", dir), zap.Error(err))
		}
		return
	}
	own, err := ownIdentity()
	if err != nil {
		logger.Warn("the identity of this Caddy cannot be found out; what a killed Caddy left behind is not ended", zap.Error(err))
		return
	}
	var ending sync.WaitGroup
	defer ending.Wait()
	places := make(chan struct{}, recoverAtOnce)
	for _, entry := range entries {
		path := filepath.Join(dir, entry.Name())
		switch {
		case strings.HasSuffix(path, recordSuffix+draftSuffix):
			removeOldDraft(path)
			continue
		case !strings.HasSuffix(path, recordSuffix):
			continue
		}
		r, err := readRecord(path)
		if errors.Is(err, os.ErrNotExist) {
			continue
		}
		if err != nil {
			logger.Warn("a record of an earlier process cannot be understood and is removed", zap.String("file", path), zap.Error(err))
			_ = os.Remove(path)
			continue
		}
		if !r.orphaned(own) {
			continue
		}
		select {
		case places <- struct{}{}:
		case <-ctx.Done():
			return
		}
		ending.Go(func() {
			defer func() { <-places }()
			r.end(ctx, dir, own, logger)
		})
	}
}

// removeOldDraft removes what a Caddy left that was killed while it wrote.
func removeOldDraft(path string) {
	if info, err := os.Stat(path); err == nil && time.Since(info.ModTime()) > time.Minute {
		_ = os.Remove(path)
	}
}

// orphaned tells whether the Caddy that wrote the record is certainly gone.
func (r *record) orphaned(own identity) bool {
	if r.Owner.BootID != own.BootID {
		return true
	}
	// In another namespace of pids, another container with the same volume,
	// neither the owner nor its processes can be seen. They may well live.
	if r.Owner.Namespace != own.Namespace {
		return false
	}
	if !r.Owner.gone() {
		return false
	}
	// A Caddy that was itself started by that instance is no leftover to end.
	return variable(os.Getpid(), varInstance) != r.Instance
}

// end ends what is left of an instance, and forgets it.
func (r *record) end(ctx context.Context, dir string, own identity, logger *zap.Logger) {
	logger = logger.With(zap.String("service", r.Service), zap.String("instance", r.Instance))
	if r.Owner.BootID == own.BootID {
		began := time.Now()
		deadline := func() time.Time {
			if ctx.Err() != nil {
				return began
			}
			return began.Add(recoverGrace)
		}
		found := r.search()
		present := found.find()
		if len(present) > 0 {
			logger.Info("ending what an earlier Caddy that was killed left running", zap.Int("processes", len(present)))
		}
		for _, q := range present {
			syscall.Close(q.pidfd)
		}
		if len(present) > 0 && !found.end(syscall.Signal(r.StopSignal), false, deadline) {
			logger.Warn("processes that an earlier Caddy left running do not end; the next start of Caddy tries again")
			return
		}
	}
	// The path comes from a file: only the socket of this instance goes.
	if filepath.Base(r.Socket) == socketName && filepath.Base(filepath.Dir(r.Socket)) == r.Instance {
		removeSocket(r.Socket)
	}
	if err := r.remove(dir); err != nil {
		logger.Warn("the record of an earlier process cannot be removed", zap.Error(err))
	}
}

// search says what is to be found of a recorded instance: what carries its id
// in its environment, and, while the process itself lives, by its pid and
// start time, that one and its group.
func (r *record) search() *search {
	s := &search{instance: r.Instance}
	leader := identity{PID: r.PID, StartTime: r.StartTime}
	if r.PID > 0 && leader.alive() {
		s.group, s.reserved = r.PID, leader.alive
	}
	return s
}
