package driver

import (
	"context"
	"log/slog"
	"sync"
)

// troubles says what goes wrong once, not at every attempt.
type troubles struct {
	log  *slog.Logger
	lock sync.Mutex
	told map[string]bool
}

// trouble logs a warning if the trouble is new.
func (t *troubles) trouble(what, message string, attrs ...slog.Attr) {
	t.lock.Lock()
	defer t.lock.Unlock()
	if t.told[what] {
		return
	}
	if t.told == nil {
		t.told = make(map[string]bool)
	}
	t.told[what] = true
	t.log.LogAttrs(context.Background(), slog.LevelWarn, message, attrs...)
}

// better logs that a trouble is over, if there was one.
func (t *troubles) better(what, message string, attrs ...slog.Attr) {
	t.lock.Lock()
	defer t.lock.Unlock()
	if t.told[what] {
		delete(t.told, what)
		t.log.LogAttrs(context.Background(), slog.LevelInfo, message, attrs...)
	}
}
