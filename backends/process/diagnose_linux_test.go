package process

import (
	"fmt"
	"log/slog"
	"net"
	"net/netip"
	"path/filepath"
	"strconv"
	"strings"
	"testing"
	"time"

	"github.com/caddyserver/caddy/v2"
	"go.uber.org/zap"
	"go.uber.org/zap/exp/zapslog"
	"go.uber.org/zap/zaptest/observer"

	"github.com/caddy-usher/usher/scaler"
)

// perlListens is a command that listens on addresses, says so, and waits.
func perlListens(addresses ...string) string {
	script := `perl -MIO::Socket::IP -e '$| = 1; for (@ARGV) { /(.*):(.*)/; push @s, IO::Socket::IP->new(LocalHost => $1, LocalPort => $2, Listen => 5, V6Only => 1) or die "$_: $@" } print "listening\n"; sleep 100'`
	return script + " " + strings.Join(addresses, " ")
}

// seenOf waits until what is seen of an instance is as wanted.
func (b *bench) seenOf(id, what string, is func(scaler.Diagnosis) bool) scaler.Diagnosis {
	b.t.Helper()
	b.t.Cleanup(func() {
		if b.t.Failed() {
			b.t.Logf("the last report: %+v", b.latest())
		}
	})
	var d scaler.Diagnosis
	for deadline := time.Now().Add(patience); ; time.Sleep(2 * time.Millisecond) {
		d = b.runner.Diagnose(b.t.Context(), id)
		switch {
		case is(d):
			return d
		case time.Now().After(deadline):
			b.t.Fatalf("waited in vain for: %s; seen is %+v", what, d)
		case d == scaler.Diagnosis{}:
			// It has ended, and with it the test.
			if in := b.latest().Instances; len(in) == 0 {
				b.t.Fatalf("waited for %s, but the instance has ended: %+v", what, b.history())
			}
		}
	}
}

func portOf(t *testing.T, in scaler.Instance) string {
	t.Helper()
	_, port, err := net.SplitHostPort(in.Address)
	if err != nil {
		t.Fatal(err)
	}
	return port
}

func TestAnInstanceThatListensElsewhereIsToldWhere(t *testing.T) {
	one, two := fixedPort(t), fixedPort(t)
	for how, wrap := range map[string]string{"itself": "exec %s", "a child": "%s & wait", "a session": "setsid %s & wait"} {
		b := open(t, shell(fmt.Sprintf(wrap, perlListens(fmt.Sprintf("0.0.0.0:%d", one), fmt.Sprintf("::1:%d", two)))))
		in := b.one()
		want := fmt.Sprintf("listens on [::1]:%d and 0.0.0.0:%d, but was told port %s", two, one, portOf(t, in))
		d := b.seenOf(in.ID, how+": "+want, func(d scaler.Diagnosis) bool {
			return d.Short == want && d.Mistake && d.Output == "listening"
		})
		if !strings.Contains(d.Detail, "make it listen on "+in.Address+": give it {usher.port}") {
			t.Errorf("%s: %+v", how, d)
		}
		b.close(patience)
	}
}

func TestTheRightPortOfTheWrongAddressIsToldWithTheAddress(t *testing.T) {
	b := open(t, shell("exec "+perlListens("::1:$PORT")))
	in := b.one()
	want := "listens on [::1]:" + portOf(t, in) + ", but was told " + in.Address
	d := b.seenOf(in.ID, want, func(d scaler.Diagnosis) bool { return d.Short == want && d.Mistake })
	if !strings.Contains(d.Detail, "the port is right and the address is not: make it listen on 127.0.0.1") {
		t.Errorf("%+v", d)
	}
}

func TestWhatListensWhereItWasToldIsNoMistake(t *testing.T) {
	b := open(t, shell("exec "+perlListens("0.0.0.0:$PORT", "::1:$PORT")))
	in := b.one()
	b.seenOf(in.ID, "the listener", func(d scaler.Diagnosis) bool {
		return strings.Contains(d.Detail, "0.0.0.0:"+portOf(t, in)) && d.Short == "" && !d.Mistake
	})
}

func TestWhatDoesNotListenYetIsToldWithItsOutput(t *testing.T) {
	b := open(t, shell("echo connecting to the database; exec sleep 100"))
	in := b.one()
	b.seenOf(in.ID, "the output", func(d scaler.Diagnosis) bool {
		return d.Short == "does not listen yet" && !d.Mistake && d.Output == "connecting to the database"
	})
	if d := b.runner.Diagnose(t.Context(), "missing"); d != (scaler.Diagnosis{}) {
		t.Errorf("%+v", d)
	}
}

func TestAPortThatTheConfigurationOverridesIsNamed(t *testing.T) {
	port := fixedPort(t)
	script := shell("exec " + perlListens("127.0.0.1:$PORT"))
	script.Env = map[string]string{"PORT": strconv.Itoa(port)}
	b := open(t, script)
	in := b.one()
	want := fmt.Sprintf("listens on 127.0.0.1:%d, but was told port %s; env PORT in the configuration overrides the port that it was told", port, portOf(t, in))
	d := b.seenOf(in.ID, want, func(d scaler.Diagnosis) bool { return d.Short == want && d.Mistake })
	if !strings.Contains(d.Detail, "write env PORT {usher.port}") {
		t.Errorf("%+v", d)
	}
}

func TestASocketThatIsElsewhereIsToldWithoutItsPathToClients(t *testing.T) {
	path := filepath.Join(t.TempDir(), "app.sock")
	serve := self(t, "serve-unix", path)
	serve.Listen = "unix"
	b := open(t, serve)
	in := b.one()
	b.seenOf(in.ID, "the socket", func(d scaler.Diagnosis) bool {
		return d.Short == "listens on another socket than it was told" && d.Mistake && strings.Contains(d.Detail, path)
	})

	tcp := shell("exec " + perlListens(fmt.Sprintf("127.0.0.1:%d", fixedPort(t))))
	tcp.Listen = "unix"
	b = open(t, tcp)
	in = b.one()
	b.seenOf(in.ID, "the port", func(d scaler.Diagnosis) bool {
		return strings.HasSuffix(d.Short, ", but was told a socket") && d.Mistake
	})
}

func TestClientsAreNotToldTheAddressesOfTheMachine(t *testing.T) {
	var all []netip.AddrPort
	for _, s := range []string{"10.1.2.3:80", "127.0.0.1:81", "[::]:82", "[fe80::1]:83", "0.0.0.0:84"} {
		all = append(all, netip.MustParseAddrPort(s))
	}
	at := listening{tcp: all, known: true}.sorted()
	d := diagnose(&instance{port: 21000}, &plan{listen: listenTCP}, at)
	if want := "listens on [::]:82, port 83 of another address, 0.0.0.0:84, port 80 of another address and 1 more, but was told port 21000"; d.Short != want {
		t.Errorf("%q", d.Short)
	}
	if !strings.Contains(d.Detail, "10.1.2.3:80") || !strings.Contains(d.Detail, "[fe80::1]:83") {
		t.Errorf("%q", d.Detail)
	}
}

func TestAQuotedCommandLineGetsAHintAtTheQuotes(t *testing.T) {
	for _, command := range []string{"uvicorn main:app --port 1", "/srv/app/run --port 1", "./run it"} {
		b := &Backend{Command: command}
		if err := b.Provision(caddy.Context{}); err != nil {
			t.Fatal(err)
		}
		program, _, _ := strings.Cut(command, " ")
		err := checked(b)
		if err == nil || !strings.Contains(err.Error(), "the quotes make one word of it") || !strings.Contains(err.Error(), "'"+program+"' is the command") {
			t.Errorf("%q: %v", command, err)
		}
	}
	b := &Backend{Command: "no-such-program-here"}
	if err := b.Provision(caddy.Context{}); err != nil {
		t.Fatal(err)
	}
	if err := checked(b); err == nil || strings.Contains(err.Error(), "quotes") {
		t.Errorf("%v", err)
	}
}

func TestAShellVariableThatNoShellReplacesIsToldAtLoad(t *testing.T) {
	for name, x := range map[string]struct {
		backend Backend
		want    []string
	}{
		"a port":       {Backend{Command: "/bin/app", Args: []string{"--port", "$PORT", "--port=${PORT}"}}, []string{"$PORT {usher.port}", "${PORT} {usher.port}"}},
		"an address":   {Backend{Command: "/bin/app", Args: []string{"$HOST:$PORT0"}}, []string{"$HOST 127.0.0.1, or {usher.address} for host and port", "$PORT0 {usher.port}"}},
		"a socket":     {Backend{Command: "/bin/app", Args: []string{"$PORT"}, Listen: "unix"}, []string{"$PORT {usher.socket}"}},
		"a shell":      {Backend{Command: "/bin/sh", Args: []string{"-c", "app --port $PORT"}}, nil},
		"one within":   {Backend{Command: "su", Args: []string{"app", "-c", "app --port $PORT"}}, nil},
		"another one":  {Backend{Command: "/bin/app", Args: []string{"$PORTAL", "$5"}}, nil},
		"an override":  {Backend{Command: "/bin/app", Env: map[string]string{"PORT": "3000"}}, []string{"overrides"}},
		"one that has": {Backend{Command: "/bin/app", Args: []string{"{usher.port}"}, Env: map[string]string{"PORT": "3000"}}, nil},
		"its own":      {Backend{Command: "/bin/app", Env: map[string]string{"PORT": "{usher.port}"}}, nil},
	} {
		b := x.backend
		if err := b.Provision(caddy.Context{}); err != nil {
			t.Fatal(err)
		}
		core, logs := observer.New(zap.WarnLevel)
		b.warnAtLoad(func() *slog.Logger { return slog.New(zapslog.NewHandler(core)) })
		var got []string
		for _, e := range logs.All() {
			if fields := e.ContextMap(); fields["variable"] != nil {
				got = append(got, fmt.Sprint(fields["variable"], " ", fields["use"]))
			} else if strings.Contains(e.Message, "overrides") {
				got = append(got, "overrides")
			}
		}
		if fmt.Sprint(got) != fmt.Sprint(x.want) {
			t.Errorf("%s: %q, want %q", name, got, x.want)
		}
	}
}

func TestAWrongFixedAddressIsToldAsTheConfigurations(t *testing.T) {
	told, port := fixedPort(t), fixedPort(t)
	b := shell("exec " + perlListens(fmt.Sprintf("127.0.0.1:%d", port)))
	b.Listen, b.Address = "tcp", fmt.Sprintf("127.0.0.1:%d", told)
	bn := open(t, b)
	in := bn.one()
	want := fmt.Sprintf("listens on 127.0.0.1:%d, and not on 127.0.0.1:%d as configured", port, told)
	bn.seenOf(in.ID, want, func(d scaler.Diagnosis) bool { return d.Short == want && d.Mistake })
}

func TestAProgramOnTheOtherLoopbackAddressIsToldWhereItListens(t *testing.T) {
	at := fixedAddress6(t)
	b := shell("exec " + perlListens(fmt.Sprintf("0.0.0.0:%d", at.Port())))
	b.Listen, b.Address = "tcp", at.String()
	bn := open(t, b)
	in := bn.one()
	want := fmt.Sprintf("listens on 0.0.0.0:%d, and not on %s as configured", at.Port(), at)
	bn.seenOf(in.ID, want, func(d scaler.Diagnosis) bool { return d.Short == want && d.Mistake })
}
