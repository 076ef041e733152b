package reserver

import (
	"flag"
	"testing"

	"pgregory.net/rapid"
)

// TestAgreesWithModel walks at random through everything that can be done
// with two services under one limit, and after every step compares all that
// can be seen, and all that is kept, with a model.
func TestAgreesWithModel(t *testing.T) {
	// More and longer walks than by default; the flags still win.
	given := map[string]bool{}
	flag.Visit(func(f *flag.Flag) { given[f.Name] = true })
	for name, value := range map[string]string{"rapid.checks": "500", "rapid.steps": "120"} {
		if !given[name] {
			old := flag.Lookup(name).Value.String()
			if err := flag.Set(name, value); err != nil {
				t.Fatal(err)
			}
			defer func() { _ = flag.Set(name, old) }()
		}
	}
	rapid.Check(t, func(t *rapid.T) {
		walk(t, newMachine(chosenBy(t), t.Fatalf, partiesOfASide))
	})
}

// TestTurnsAgreeWithModel is the same with priorities, fair shares and sessions.
func TestTurnsAgreeWithModel(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		walk(t, newMachine(chosenBy(t), t.Fatalf, partiesOfASide,
			Ask{}, Ask{Class: High}, Ask{Class: Low}, Ask{Share: 1, ShareLimit: 2}, Ask{Share: 2}, Ask{Share: 2, Class: High},
			Ask{Affinity: ByInstance}, Ask{Affinity: ByInstance, Class: High}, Ask{Affinity: ByKey, Key: 1}, Ask{Affinity: ByKey, Key: 2, Share: 1},
			Ask{Affinity: ByKey, Key: 3}, Ask{Affinity: ByHash, Key: 7}, Ask{Affinity: ByHash, Key: 8}))
	})
}

func walk(t *rapid.T, m *machine) {
	actions := map[string]func(*rapid.T){}
	for _, st := range steps {
		actions[st.name] = func(*rapid.T) { m.run(st) }
	}
	t.Repeat(actions)
}

func chosenBy(t *rapid.T) func(int) int {
	return func(n int) int { return rapid.IntRange(0, n-1).Draw(t, "pick") }
}
