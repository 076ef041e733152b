package hub

import (
	"slices"
	"testing"

	"github.com/caddyserver/caddy/v2"

	"github.com/caddy-usher/usher/scaler"
	"github.com/caddy-usher/usher/scaler/backendtest"
)

// kind is a fake backend of a certain type.
type kind struct {
	*backendtest.Fake
	id caddy.ModuleID
}

func (k kind) CaddyModule() caddy.ModuleInfo { return caddy.ModuleInfo{ID: k.id} }

// What a backend recovers may be at any endpoint that the configuration names.
func TestABackendRecoversWithTheDescriptionsOfItsType(t *testing.T) {
	make := func(name string) kind {
		return kind{&backendtest.Fake{Name: name}, "usher.backends.boxes"}
	}
	a, b := make("a"), make("b")
	g := &Generation{Definitions: map[string]*Definition{
		"two": {Backend: b}, "one": {Backend: a}, "three": {Backend: kind{&backendtest.Fake{}, "usher.backends.others"}},
	}}
	if got := g.backendsOf("boxes"); !slices.Equal(got, []scaler.Backend{a, b}) {
		t.Errorf("%v", got)
	}
	if got := g.backendsOf("none"); got != nil {
		t.Errorf("%v", got)
	}
}
