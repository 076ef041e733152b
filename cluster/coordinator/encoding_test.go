package coordinator

import (
	"strings"
	"testing"

	"github.com/caddy-usher/usher/cluster"
)

var (
	some = cluster.View{
		Number: 7, Leader: "b2",
		Members: []cluster.Peer{{ID: "west", Boot: "b2", Address: "10.0.0.2:7443"}},
		Lost:    []cluster.Peer{{ID: "east", Boot: "a1", Address: "10.0.0.1:7443"}},
	}
	text = `{"version":1,"cluster":"main","view":{"number":7,"leader":"b2",` +
		`"members":[{"id":"west","boot":"b2","address":"10.0.0.2:7443"}],` +
		`"lost":[{"id":"east","boot":"a1","address":"10.0.0.1:7443"}]}}`
)

// What is stored is read by Caddys of other releases.
func TestTheEncodingStays(t *testing.T) {
	data, err := Encode("main", some)
	if err != nil || string(data) != text {
		t.Errorf("encoded as %s, error %v; want %s", data, err, text)
	}
	v, err := Decode("main", []byte(text))
	if err != nil || !v.Equal(some) {
		t.Errorf("decoded as %v, error %v; want %v", v, err, some)
	}
	data, err = Encode("main", cluster.View{Number: 1})
	if want := `{"version":1,"cluster":"main","view":{"number":1,"leader":"","members":[],"lost":[]}}`; err != nil || string(data) != want {
		t.Errorf("encoded as %s, error %v; want %s", data, err, want)
	}
}

func TestWhatIsNoViewOfTheClusterIsAnError(t *testing.T) {
	for _, c := range []struct{ old, new, words string }{
		{text, "", "not what Usher stores"},
		{text, "null", "has no version"},
		{text, "[]", "not what Usher stores"},
		{text, `{"number":7}`, "has no version"},
		{"}}", "}", "not what Usher stores"},
		{"}}", "}}{}", "not what Usher stores"},
		{`"version":1`, `"version":2`, "has version 2, and this Usher knows version 1 only"},
		{`"version":1`, `"version":0`, "has version 0"},
		{`"version":1`, `"version":"1"`, "not what Usher stores"},
		{`"leader":"b2"`, `"leader":"b2","extra":1`, `unknown field "extra"`},
		{`"number":7`, `"number":-7`, "not what Usher stores"},
		{`"number":7`, `"number":0`, "no Caddy writes: number 0"},
		{`"number":7`, `"number":4611686018427387904`, "no Caddy writes"},
		{`"leader":"b2"`, `"leader":"a1"`, `no Caddy writes: number 7, leader "a1"`},
		{`"leader":"b2"`, `"leader":""`, "no Caddy writes"},
		{`"lost":[`, `"lost":[{"boot":"z"},`, "no Caddy writes"},
		{`"cluster":"main"`, `"cluster":"other"`, `belongs to the cluster "other" and not to "main"`},
	} {
		data := strings.Replace(text, c.old, c.new, 1)
		v, err := Decode("main", []byte(data))
		if err == nil || !v.Equal(cluster.View{}) || !strings.Contains(err.Error(), c.words) {
			t.Errorf("%s: view %v, error %v; want an error that says %q", data, v, err, c.words)
		}
	}
}

func TestAViewThatWouldNotComeBackIsNotStored(t *testing.T) {
	foreign := some
	foreign.Leader = "nowhere"
	garbled := cluster.View{Number: 1, Leader: "\xff", Members: []cluster.Peer{{Boot: "\xff"}}}
	for _, v := range []cluster.View{{}, foreign, garbled} {
		if data, err := Encode("main", v); err == nil {
			t.Errorf("%v is stored as %s", v, data)
		}
	}
}

func FuzzDecode(f *testing.F) {
	f.Add([]byte(text))
	f.Add([]byte(`{"version":1}`))
	f.Fuzz(func(t *testing.T, data []byte) {
		v, err := Decode("main", data)
		if err != nil {
			return
		}
		again, err := Encode("main", v)
		if err != nil {
			t.Fatalf("%s was decoded and cannot be encoded: %v", data, err)
		}
		if back, err := Decode("main", again); err != nil || !back.Equal(v) {
			t.Errorf("%v came back as %v, error %v", v, back, err)
		}
	})
}
