package link

import (
	"errors"
	"strings"
	"testing"
	"time"
)

// dead asks a whether the process of the member is proven to have ended.
func dead(t *testing.T, a *caddy, address, id, boot, because string) bool {
	t.Helper()
	yes, err := a.Dead(t.Context(), address, id, boot)
	if yes != (err == nil) {
		t.Errorf("proven: %v, and the error is %v", yes, err)
	}
	if err != nil && !strings.Contains(err.Error(), because) {
		t.Errorf("it is not proven because %v, want %s", err, because)
	}
	return yes
}

func TestARefusedConnectionProvesTheEndOfAProcessThatWasReached(t *testing.T) {
	a, b := start(t, "a", "127.0.0.1:0"), start(t, "b", "127.0.0.1:0")
	b2 := start(t, "b2", "127.0.0.1:0")
	a.dial(t, b)
	if dead(t, a, b.address, "b", "b-1", "member b answers at") {
		t.Error("the living is dead")
	}
	b.Close()
	if !dead(t, a, b.address, "b", "b-1", "") {
		t.Error("its end is not proven")
	}
	b2.Close()
	if dead(t, a, b2.address, "b2", "b2-1", "was never reached") {
		t.Error("a refusal where it was never reached proves its end")
	}
	if dead(t, a, b.address, "b", "b-0", "was never reached") {
		t.Error("a refusal proves the end of a process that was never reached there")
	}
}

func TestAnotherBootIDProvesTheEnd(t *testing.T) {
	a, b := start(t, "a", "127.0.0.1:0"), start(t, "b", "127.0.0.1:0")
	a.dial(t, b)
	b.Close()
	start(t, "b", b.address, boot("b-2"))
	if !dead(t, a, b.address, "b", "b-1", "") {
		t.Error("its end is not proven")
	}
}

func TestAnotherMemberAtItsAddressProvesNothing(t *testing.T) {
	a, b := start(t, "a", "127.0.0.1:0"), start(t, "b", "127.0.0.1:0")
	a.dial(t, b)
	b.Close()
	start(t, "c", b.address)
	if dead(t, a, b.address, "b", "b-1", "is answered by member c") {
		t.Error("its end is proven by another member")
	}
}

func TestACutNetworkProvesNothing(t *testing.T) {
	short := with(func(c *Config) { c.Silence = 100 * time.Millisecond })
	a, b := start(t, "a", "127.0.0.1:0", short), start(t, "b", "127.0.0.1:0", short)
	w := wire(t, b.address)
	conn, err := a.Dial(t.Context(), w.address, "b", "test")
	if err != nil {
		t.Fatal(err)
	}
	conn.Close()
	w.cut()
	if dead(t, a, w.address, "b", "b-1", "asking for member b") {
		t.Error("no answer proves its end")
	}
}

func TestAnAddressThatOthersCannotReachIsTold(t *testing.T) {
	a, b := start(t, "a", "127.0.0.1:0"), start(t, "b", "127.0.0.1:0", func(c *Config) { c.Address = "127.0.0.1:1" })
	here, _ := a.dial(t, b)
	err := a.Reach(t.Context(), here.Peer())
	if err == nil || !strings.Contains(err.Error(), "member b at 127.0.0.1:1 cannot be reached at the address that it advertises") {
		t.Errorf("the error is %v", err)
	}
	if dead(t, a, "127.0.0.1:1", "b", "b-1", "was never reached") {
		t.Error("a wrong address proves its end")
	}
	c := start(t, "c", "127.0.0.1:0")
	here, _ = a.dial(t, c)
	if err := a.Reach(t.Context(), here.Peer()); err != nil {
		t.Error(err)
	}
	double := here.Peer()
	double.Boot = "c-2" // says that it is c, and that c is where another one answers
	if err := a.Reach(t.Context(), double); !errors.Is(err, ErrOtherProcess) {
		t.Errorf("two with one address: %v", err)
	}
}
