package registry_test

import (
	"fmt"
	"slices"
	"strings"
	"testing"

	"github.com/caddy-usher/usher/registry"
)

// sizes are rules with a template whose SIZE is a number.
func (w *world) sizes(maxServices int) {
	w.Helper()
	params := webParams()
	size := params["SIZE"]
	size.Pattern, size.Default = "[0-9]+", new("0")
	params["SIZE"] = size
	template, err := registry.NewTemplate(webTemplate, params, takesArgsAndEnv, maxServices)
	if err != nil {
		w.Fatal(err)
	}
	w.rules.Templates = map[string]*registry.Template{"web": template}
	w.Use(w.rules)
}

func TestARequestGetsItsVariant(t *testing.T) {
	w := newWorld(t)
	w.put(w.owner("ann"), "shop", web("shop"))
	name, service, err := w.Variant("shop", map[string]string{"SIZE": "large"})
	if err != nil || !strings.HasPrefix(name, "shop..p") || !strings.Contains(string(service), `"SIZE":"large"`) || registry.CheckName(name) == nil {
		t.Fatalf("the variant is %s: %s, error %v", name, service, err)
	}
	again, same, err := w.Variant("shop", map[string]string{"SIZE": "large"})
	if err != nil || again != name || &same[0] != &service[0] {
		t.Errorf("the second time it is %s, error %v, made anew %t", again, err, &same[0] != &service[0])
	}
	for _, params := range []map[string]string{nil, {}, {"SIZE": "small"}} {
		if name, service, err := w.Variant("shop", params); name != "shop" || service != nil || err != nil {
			t.Errorf("%v: the variant is %s: %s, error %v", params, name, service, err)
		}
	}
	// The service changes, and its variant with it.
	w.put(onlyIf(w.owner("ann"), w.Get("shop")), "shop", `{"template":"web","params":{"name":"shop","team":"blue"}}`)
	if _, service, err := w.Variant("shop", map[string]string{"SIZE": "large"}); err != nil || !strings.Contains(string(service), "--team=blue") {
		t.Errorf("after the change the variant is %s, error %v", service, err)
	}
	for _, c := range []struct {
		service string
		params  map[string]string
		kind    registry.Kind
	}{
		{"none", map[string]string{"SIZE": "large"}, registry.NotFound},
		{"shop", map[string]string{"team": "blue"}, registry.Forbidden},
		{"shop", map[string]string{"name": "x"}, registry.Forbidden},
		{"shop", map[string]string{"PATH": "x"}, registry.Forbidden},
		{"shop", map[string]string{"SIZE": "huge"}, registry.Invalid},
		{"shop", map[string]string{"SIZE": "small", "team": "red"}, registry.Forbidden},
	} {
		_, _, err := w.Variant(c.service, c.params)
		w.want(err, c.kind, "")
	}
}

func TestVariantsCountAsServices(t *testing.T) {
	w := newWorld(t)
	running := map[string]bool{}
	var evicted []string
	w.rules.Evict = func(name string) bool {
		if running[name] {
			return false
		}
		evicted = append(evicted, name)
		return true
	}
	w.sizes(4)
	w.put(w.owner("ann"), "shop", web("shop"))
	variant := func(size int) string {
		t.Helper()
		name, _, err := w.Variant("shop", map[string]string{"SIZE": fmt.Sprint(size)})
		if err != nil {
			t.Fatalf("size %d: %v", size, err)
		}
		running[name] = true
		return name
	}
	one, two, three := variant(1), variant(2), variant(3)
	_, _, err := w.Variant("shop", map[string]string{"SIZE": "4"})
	w.want(err, registry.TooMany, "there are 4 services of template web")
	// They count for those who make services, too.
	_, _, err = w.Put(t.Context(), w.owner("ann"), "other", []byte(web("other")))
	w.want(err, registry.TooMany, "template web")
	// Of those that do not run, the one that was not asked for longest makes room.
	variant(1)
	running[one], running[two] = false, false
	_, _, err = w.VariantIfRoom("shop", map[string]string{"SIZE": "4"})
	w.want(err, registry.TooMany, "the limit")
	four := variant(4)
	if !slices.Equal(evicted, []string{two}) {
		t.Errorf("evicted are %q, want %q", evicted, two)
	}
	if want := []string{one, three, four}; len(w.Variants("shop")) != 3 || !slices.Equal(w.Variants("shop"), sorted(want)) {
		t.Errorf("the variants are %q, want %q", w.Variants("shop"), want)
	}
	w.DropVariant(three)
	variant(5)
	if len(evicted) != 1 {
		t.Errorf("evicted are %q, though there was room", evicted)
	}
	// They end with their service.
	if err := w.Delete(t.Context(), onlyIf(w.owner("ann"), w.Get("shop")), "shop"); err != nil {
		t.Fatal(err)
	}
	if len(w.Variants("shop")) != 0 {
		t.Errorf("the variants are %q", w.Variants("shop"))
	}
	for i := range 4 {
		w.put(w.owner("ann"), fmt.Sprintf("s%d", i), web("x"))
	}
}

func sorted(names []string) []string { return slices.Sorted(slices.Values(names)) }

func TestAVariantThatIsBeingEndedIsNotGivenOut(t *testing.T) {
	w := newWorld(t)
	w.sizes(2)
	w.put(w.owner("ann"), "shop", web("shop"))
	variant := func(size string) error {
		_, _, err := w.Variant("shop", map[string]string{"SIZE": size})
		return err
	}
	for _, gone := range []bool{false, true} {
		w.rules.Evict = func(string) bool {
			// A request for the very variant, and one for another, come meanwhile.
			w.want(variant("1"), registry.TooMany, "being ended")
			w.want(variant("3"), registry.TooMany, "limit")
			return gone
		}
		w.Use(registry.Rules{Templates: w.rules.Templates, AllowTemplates: w.rules.AllowTemplates, Evict: w.rules.Evict})
		if err := variant("1"); err != nil {
			t.Fatal(err)
		}
		if err := variant("2"); (err == nil) != gone {
			t.Errorf("with the other one gone (%t) the variant is refused with %v", gone, err)
		}
	}
	if len(w.Variants("shop")) != 1 {
		t.Errorf("the variants are %q", w.Variants("shop"))
	}
}

// The request is right, and so it is not told that it is wrong.
func TestAServiceThatDoesNotFitItsTemplateAnyMoreHasNoVariants(t *testing.T) {
	w := newWorld(t)
	w.put(w.owner("ann"), "shop", web("shop"))
	params := webParams()
	params["name"] = registry.Param{Pattern: "[0-9]+"}
	template, err := registry.NewTemplate(webTemplate, params, takesArgsAndEnv, 10)
	if err != nil {
		t.Fatal(err)
	}
	w.rules.Templates = map[string]*registry.Template{"web": template}
	w.Use(w.rules)
	_, _, err = w.Variant("shop", map[string]string{"SIZE": "large"})
	w.want(err, registry.Conflict, "does not fit its template")
}
