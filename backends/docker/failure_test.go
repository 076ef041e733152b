package docker

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"strings"
	"syscall"
	"testing"

	cerrdefs "github.com/containerd/errdefs"
	"github.com/moby/moby/api/types/container"

	"github.com/caddy-usher/usher/scaler"
)

// The texts are those that engines wrote.
func TestStartsThatFail(t *testing.T) {
	for _, x := range []struct {
		text    string
		reason  scaler.Reason
		forGood bool
		short   string
	}{
		{`failed to create shim task: OCI runtime create failed: runc create failed: unable to start container process: exec: "nope": executable file not found in $PATH: unknown`, scaler.ReasonExec, true, "127"},
		{`OCI runtime create failed: container_linux.go:380: starting container process caused: exec: "/etc": permission denied: unknown`, scaler.ReasonExec, true, "126"},
		{"crun: executable file `nope` not found in $PATH: No such file or directory: OCI runtime attempted to invoke a command that was not found", scaler.ReasonExec, true, "127"},
		{`runc: runc create failed: unable to start container process: exec: "/x": stat /x: no such file or directory: OCI runtime attempted to invoke a command that was not found`, scaler.ReasonExec, true, "127"},
		{`unable to find user nobody: no matching entries in passwd file`, scaler.ReasonNotFound, true, "user"},
		{`network 3f1 not found`, scaler.ReasonNotFound, true, "network"},
		{`unable to find network with name or ID front: network not found`, scaler.ReasonNotFound, true, "network"},
		{`driver failed programming external connectivity on endpoint web: Bind for 0.0.0.0:80 failed: port is already allocated`, scaler.ReasonConflict, false, "port"},
		{`rootlessport listen tcp 0.0.0.0:80: bind: address already in use`, scaler.ReasonConflict, false, "port"},
		{`No such image: usher/x:1`, scaler.ReasonImage, true, "image"},
		{`no such image: docker.io/usher/x:2: image not known`, scaler.ReasonImage, true, "image"},
		{`invalid mount config for type "bind": bind source path does not exist: /nope`, scaler.ReasonNotFound, true, "volume"},
		{`mkdir /var/lib/docker/overlay2/x: no space left on device`, scaler.ReasonQuota, false, "run out"},
		{`something that was never seen`, scaler.ReasonPlatform, false, "cannot start"},
	} {
		f := startFailure(errors.New("Error response from daemon: "+x.text), "starting container web")
		if f.Reason != x.reason || f.ForGood != x.forGood || !strings.Contains(f.Short, x.short) {
			t.Errorf("%s\nbecomes %s, for good %v, %q", x.text, f.Reason, f.ForGood, f.Short)
		}
		if !strings.Contains(f.Detail, x.text) {
			t.Errorf("the engine's words are not in %q", f.Detail)
		}
		if strings.Contains(f.Short, "/") {
			t.Errorf("clients see a path: %q", f.Short)
		}
	}
}

func TestPullsThatFail(t *testing.T) {
	for text, want := range map[string]struct {
		forGood bool
		short   string
	}{
		"manifest for a/b:1 not found: manifest unknown: manifest unknown":                                        {true, "does not exist in its registry"},
		"pull access denied for a/b, repository does not exist or may require 'docker login'":                     {true, ""},
		"Get \"https://registry/v2/\": unauthorized: authentication required":                                     {true, "refuses"},
		"Get \"https://registry-1.docker.io/v2/\": dial tcp: lookup registry-1.docker.io: i/o timeout (registry)": {false, "cannot be pulled"},
	} {
		f := pullFailure("a/b:1", errors.New(text))
		if f.Reason != scaler.ReasonImage || f.ForGood != want.forGood || !strings.Contains(f.Short, want.short) || !strings.Contains(f.Error(), text) {
			t.Errorf("%s\nbecomes %s, for good %v, %v", text, f.Reason, f.ForGood, f)
		}
	}
}

func TestEnds(t *testing.T) {
	for want, v := range map[string]*view{
		"exit status 0":                       {},
		"exit status 3":                       {exitCode: 3},
		"killed: out of memory (limit 64MiB)": {exitCode: 137, oom: true, memory: 64 << 20},
		"killed (exit status 137)":            {exitCode: 137, memory: 64 << 20},
		"exit status 127: a command does not exist in the container": {exitCode: 127},
		"exit status 126: a command cannot be executed":              {exitCode: 126},
	} {
		f := exitFailure(v, "the last words")
		if f.Short != want || !strings.Contains(f.Detail, "the last words") || strings.Contains(f.Short, "words") {
			t.Errorf("%+v: %q, %q", v, f.Short, f.Detail)
		}
		if f.ForGood != (v.exitCode == 126 || v.exitCode == 127) {
			t.Errorf("%s: for good %v", want, f.ForGood)
		}
	}
	f := exitFailure(&view{exitCode: 1, restart: container.RestartPolicyAlways}, "")
	if !strings.Contains(f.Detail, `restart: "no"`) {
		t.Errorf("a restart policy that fights is not named: %s", f.Detail)
	}
}

func TestEnginesThatCannotBeAsked(t *testing.T) {
	unix := &engine{access: access{Host: "unix:///var/run/no-such.sock"}}
	for _, x := range []struct {
		err    error
		reason scaler.Reason
		detail string
	}{
		{fmt.Errorf("dial unix: %w", fs.ErrNotExist), scaler.ReasonPlatform, "there is no /var/run/no-such.sock"},
		{fmt.Errorf("dial unix: %w", fs.ErrPermission), scaler.ReasonForbidden, "add that user to the group of the socket"},
		{fmt.Errorf("dial unix: %w", syscall.ECONNREFUSED), scaler.ReasonPlatform, "is the engine running"},
		{fmt.Errorf("GET /info: %w", cerrdefs.ErrPermissionDenied), scaler.ReasonForbidden, "socket proxy"},
		{context.DeadlineExceeded, scaler.ReasonPlatform, "goes on serving"},
	} {
		f := unix.outageFailure(x.err)
		if f.Reason != x.reason || f.ForGood || !strings.Contains(f.Detail, x.detail) || f.Short == "" {
			t.Errorf("%v: %s, for good %v, %q, %q", x.err, f.Reason, f.ForGood, f.Short, f.Detail)
		}
	}
}

// What `docker stop` does is no failure, and what `docker kill` does is one.
func TestSignalsThatAskToStop(t *testing.T) {
	for signal, want := range map[string]bool{"15": true, "SIGTERM": true, "9": false, "KILL": false, "": false, "SIGQUIT": true, "QUIT": true} {
		if got := asksToStop(&view{stopSignal: "SIGQUIT"}, signal); got != want {
			t.Errorf("signal %q: %v", signal, got)
		}
	}
}
