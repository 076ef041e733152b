package hub

import (
	"log/slog"
	"maps"
	"slices"
	"strings"

	"go.uber.org/zap"

	"github.com/caddy-usher/usher/registry"
	"github.com/caddy-usher/usher/scaler"
)

// finding is the search for services on one platform.
type finding struct {
	discovery   scaler.Discovery // nil if it could not begin
	fingerprint string
	trouble     error
	said        map[string]bool // what was logged of the objects that there are; only reports use it
}

// find lets the discoverers look for services, and ends the search of others. What
// an unchanged one has found stays.
func (k *keeper) find(all map[string]scaler.Discoverer) {
	k.working.Lock()
	var ending []*finding
	var gone, begin []string
	for name, f := range k.finding {
		d := all[name]
		if d != nil && f.trouble == nil && d.Fingerprint() == f.fingerprint {
			continue
		}
		if d == nil {
			gone = append(gone, name)
		}
		ending = append(ending, f)
		delete(k.finding, name)
	}
	for _, name := range slices.Sorted(maps.Keys(all)) {
		if k.finding[name] == nil {
			k.finding[name] = &finding{fingerprint: all[name].Fingerprint()}
			begin = append(begin, name)
		}
	}
	k.working.Unlock()
	// Without the lock: what ends waits for a report that is on its way.
	for _, f := range ending {
		if f.discovery != nil {
			f.discovery.Close()
		}
	}
	for _, name := range gone {
		k.registry.SetFound(name, name, nil)
	}
	for _, name := range begin {
		log := func() *slog.Logger { return slogTo(k.log().With(zap.String("discover", name))) }
		d, err := all[name].Discover(scaler.DiscoverEnv{Logger: log, Report: func(found []scaler.Found, err error) { k.found(name, found, err) }})
		if err != nil {
			k.log().Error("services on a platform are not looked for", zap.String("discover", name), zap.Error(err))
		}
		k.working.Lock()
		f := k.finding[name]
		if f != nil {
			f.discovery = d
			if err != nil {
				f.trouble = err
			}
		}
		k.working.Unlock()
		if f == nil && d != nil {
			d.Close() // the hub has ended meanwhile
		}
	}
}

// found takes what was found on a platform.
func (k *keeper) found(name string, all []scaler.Found, err error) {
	k.working.Lock()
	f := k.finding[name]
	if f != nil {
		f.trouble = err
	}
	k.working.Unlock()
	if err != nil {
		k.log().Warn("a platform cannot be asked for services: those that were found before stay", zap.String("discover", name), zap.Error(err))
		return
	}
	if f == nil {
		return
	}
	list := make([]registry.Found, 0, len(all))
	for _, f := range all {
		list = append(list, registry.Found(f))
	}
	k.registry.SetFound(name, name, list)
	f.said = k.sayFound(name, all, f.said)
}

// sayFound logs once what of the objects on a platform has no effect, and which of
// them are no services. It returns what there is to say now.
func (k *keeper) sayFound(name string, all []scaler.Found, said map[string]bool) map[string]bool {
	now := make(map[string]bool)
	say := func(object, message string, what zap.Field, text string) {
		key := object + " " + message + " " + text
		if now[key] = true; !said[key] {
			k.log().Warn(message, zap.String("discover", name), zap.String("object", object), what)
		}
	}
	for _, f := range all {
		if len(f.Ignored) > 0 {
			say(f.Object, "an object says more of its service than it may, or in a word that is not known: that has no effect",
				zap.Strings("ignored", f.Ignored), strings.Join(f.Ignored, " "))
		}
	}
	for _, r := range k.registry.Rejected() {
		if r.Source == name {
			say(r.Object, "an object that says that it is a service is none", zap.String("reason", r.Reason), r.Reason)
		}
	}
	return now
}
