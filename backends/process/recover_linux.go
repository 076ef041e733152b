package process

import (
	"context"
	"errors"
	"log/slog"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"syscall"
	"time"

	"github.com/caddy-usher/usher/scaler"
)

// recoverAtOnce bounds how many instances are ended at the same time.
const recoverAtOnce = 8

// Recover ends what earlier Caddys left behind and no runner has adopted: kept
// instances of services that are gone or have changed, or that are not what
// their record says, and what instances of a killed Caddy had forked away. From
// then on nothing is adopted.
func (*Backend) Recover(ctx context.Context, from scaler.Recovery) {
	logger, dir := from.Logger, recordDir(from.DataDir)
	left := orphanedIn(dir)
	left.close()
	entries, err := os.ReadDir(dir)
	if err != nil {
		if !errors.Is(err, os.ErrNotExist) {
			logger.Warn("the records of earlier processes cannot be read; what an earlier Caddy left behind is not ended",
				slog.String("dir", dir), slog.Any("error", err))
		}
		return
	}
	own, err := ownIdentity()
	if err != nil {
		logger.Warn("the identity of this Caddy cannot be found out; what an earlier Caddy left behind is not ended", slog.Any("error", err))
		return
	}
	defer removeOwnerLocks(dir)
	defer removeTrimMark(dir)
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
			logger.Warn("a record of an earlier process cannot be understood and is removed", slog.String("file", path), slog.Any("error", err))
			_ = os.Remove(path)
			continue
		}
		if !r.orphaned(own) && !r.lost(dir, own, time.Now()) {
			continue
		}
		select {
		case places <- struct{}{}:
		case <-ctx.Done():
			return
		}
		ending.Go(func() {
			defer func() { <-places }()
			if r.end(ctx, dir, own, logger) {
				left.leavePort(r.Instance)
			}
		})
	}
}

// removeOldDraft removes what a Caddy left that was killed while it wrote.
func removeOldDraft(path string) {
	if info, err := os.Stat(path); err == nil && time.Since(info.ModTime()) > time.Minute {
		_ = os.Remove(path)
	}
}

// end ends what is left of an instance, and forgets it. It returns false if
// something may still run.
func (r *record) end(ctx context.Context, dir string, own identity, logger *slog.Logger) bool {
	logger = logger.With(slog.String("service", r.Service), slog.String("instance", r.Instance))
	if r.sameSystem(own) {
		// Another Caddy may be about to adopt it.
		switch err := r.takeOver(dir, own, r.Revision); {
		case errors.Is(err, errOwned):
			return true
		case err != nil:
			logger.Warn("what an earlier Caddy left running cannot be taken over; the next start of Caddy tries again", slog.Any("error", err))
			return false
		}
		began := time.Now()
		deadline := func() time.Time {
			if ctx.Err() != nil {
				return began
			}
			return began.Add(unknownStopTimeout)
		}
		found := r.search()
		present := found.find()
		if len(present) > 0 {
			logger.Info("ending what an earlier Caddy left running", slog.Int("processes", len(present)))
		}
		for _, q := range present {
			syscall.Close(q.pidfd)
		}
		if len(present) > 0 && !found.end(syscall.Signal(r.StopSignal), false, deadline) {
			logger.Warn("processes that an earlier Caddy left running do not end; the next start of Caddy tries again")
			return false
		}
	}
	// The path comes from a file: only the socket of this instance goes.
	if filepath.Base(r.Socket) == socketName && filepath.Base(filepath.Dir(r.Socket)) == r.Instance {
		if err := removeSocket(r.Socket); err != nil {
			logger.Warn("the directory of the socket of an earlier process cannot be removed", slog.Any("error", err))
		}
	}
	if err := r.remove(dir); err != nil {
		logger.Warn("the record of an earlier process cannot be removed", slog.Any("error", err))
	}
	return true
}

// search says what is to be found of a recorded instance: what carries its id
// in its environment, and, while the process itself lives, by its pid and
// start time, that one and its group.
func (r *record) search() *search {
	s := &search{instance: r.Instance}
	if leader := r.leader(); r.PID > 0 && leader.alive() {
		s.group, s.reserved = r.PID, leader.alive
	}
	return s
}
