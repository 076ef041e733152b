package hub

import (
	"context"
	"errors"
	"io/fs"
	"path"
	"time"
)

// storageTimeout bounds one use of the storage.
const storageTimeout = 5 * time.Second

// readStored reads what lies in g's storage below prefix, under their names,
// for those services of g that have never been in force and that wanted says
// yes to. It calls read for each, with an error if it could not be loaded, and
// returns an error if the storage does not tell what it has. The hub's lock is
// not held: a storage can take its time.
func (h *Hub) readStored(g *Generation, prefix string, wanted func(*Definition) bool, read func(s *Service, key string, b []byte, err error)) error {
	fresh := make(map[string]*Service)
	h.mu.Lock()
	for name, s := range g.Services {
		if !s.active && wanted(g.Definitions[name]) {
			fresh[name] = s
		}
	}
	h.mu.Unlock()
	if len(fresh) == 0 {
		return nil
	}
	ctx, cancel := context.WithTimeout(context.Background(), storageTimeout)
	defer cancel()
	if g.made && len(fresh) == 1 {
		for name, s := range fresh {
			key := path.Join(prefix, name)
			if g.Storage.Exists(ctx, key) {
				b, err := g.Storage.Load(ctx, key)
				read(s, key, b, err)
			}
		}
		return nil
	}
	keys, err := g.Storage.List(ctx, prefix, false)
	if errors.Is(err, fs.ErrNotExist) {
		return nil
	}
	for _, key := range keys {
		if s := fresh[path.Base(key)]; s != nil {
			b, err := g.Storage.Load(ctx, key)
			read(s, key, b, err)
		}
	}
	return err
}
