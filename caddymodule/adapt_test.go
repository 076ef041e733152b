package caddymodule

import (
	"bytes"
	"encoding/json"
	"flag"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
)

var Update = flag.Bool("update", false, "write the golden files anew")

const goldenSeparator = "----------\n"

// Each file has a Caddyfile and what becomes of it: JSON.
func TestAdapt(t *testing.T) {
	t.Parallel()
	files, err := filepath.Glob("testdata/adapt/*.caddytest")
	if err != nil || len(files) == 0 {
		t.Fatal("no golden files", err)
	}
	for _, file := range files {
		t.Run(strings.TrimSuffix(filepath.Base(file), ".caddytest"), func(t *testing.T) {
			t.Parallel()
			b, err := os.ReadFile(file)
			if err != nil {
				t.Fatal(err)
			}
			in, want, _ := strings.Cut(string(b), goldenSeparator)
			got := adapted(in)
			if *Update {
				if err := os.WriteFile(file, []byte(in+goldenSeparator+got), 0o644); err != nil {
					t.Fatal(err)
				}
				return
			}
			if got != want {
				t.Errorf("want\n%s\ngot\n%s", want, got)
			}
		})
	}
}

// A script of refused Caddyfiles has several, each with its name and the text of
// its error.
const refusedName = "=== "

// refusedScripts are the scripts, with what they have.
func refusedScripts(t *testing.T) map[string][]refusal {
	t.Helper()
	files, err := filepath.Glob("testdata/refused/*.txt")
	if err != nil || len(files) == 0 {
		t.Fatal("no scripts", err)
	}
	scripts := make(map[string][]refusal)
	for _, file := range files {
		b, err := os.ReadFile(file)
		if err != nil {
			t.Fatal(err)
		}
		for part := range strings.SplitSeq("\n"+string(b), "\n"+refusedName) {
			if part == "" {
				continue
			}
			name, rest, _ := strings.Cut(part, "\n")
			in, want, ok := strings.Cut(rest, goldenSeparator)
			if !ok {
				t.Fatalf("%s: %s has no error", file, name)
			}
			scripts[file] = append(scripts[file], refusal{name, in, strings.TrimSpace(want)})
		}
	}
	return scripts
}

type refusal struct{ name, in, want string }

func TestRefusedCaddyfiles(t *testing.T) {
	t.Parallel()
	for file, refusals := range refusedScripts(t) {
		var anew []string
		for _, r := range refusals {
			_, err := adapt(r.in)
			if err == nil {
				t.Errorf("%s: %s is accepted", file, r.name)
				continue
			}
			if got := strings.TrimSpace(err.Error()); got != r.want && !*Update {
				t.Errorf("%s: %s: want\n%s\ngot\n%s", file, r.name, r.want, got)
			}
			anew = append(anew, refusedName+r.name+"\n"+r.in+goldenSeparator+err.Error()+"\n")
		}
		if *Update {
			if err := os.WriteFile(file, []byte(strings.Join(anew, "\n")), 0o644); err != nil {
				t.Fatal(err)
			}
		}
	}
}

// adapted returns the apps that a Caddyfile makes, or its error.
func adapted(text string) string {
	b, err := adapt(text)
	if err != nil {
		return err.Error() + "\n"
	}
	var out bytes.Buffer
	if err := json.Indent(&out, b, "", "\t"); err != nil {
		return err.Error()
	}
	return out.String() + "\n"
}

// Every option of reverse_proxy that Usher sees to itself is refused with the
// name of the service, the line, and what to use instead.
func TestOwnedOptionsAreRefused(t *testing.T) {
	t.Parallel()
	scripted := refusedScripts(t)["testdata/refused/owned.txt"]
	for option, instead := range owned {
		_, err := adapt(":80 {\n\tusher web {\n\t\tbackend test a\n\t\t" + option + " x\n\t}\n}")
		if err == nil {
			t.Errorf("%s is accepted", option)
			continue
		}
		for _, want := range []string{"service web", option + " belongs to usher", instead, "Caddyfile:4"} {
			if !strings.Contains(err.Error(), want) {
				t.Errorf("%s: the message does not say %q: %v", option, want, err)
			}
		}
		if !slices.ContainsFunc(scripted, func(r refusal) bool { return r.name == "owned_"+option }) {
			t.Errorf("%s is in no script", option)
		}
	}
}

// Of the options of reverse_proxy that judge or choose upstreams none gets
// past: a new one of Caddy's has to be looked at.
func TestNoOptionThatChoosesUpstreamsGetsPast(t *testing.T) {
	t.Parallel()
	for _, option := range []string{
		"to x", "dynamic a x 80", "lb_policy first", "lb_try_duration 1s", "lb_try_interval 1s",
		"health_uri /", "health_path /", "health_upstream x", "health_port 1", "health_headers {\nA b\n}", "health_method GET",
		"health_request_body x", "health_interval 1s", "health_timeout 1s", "health_status 200", "health_body x",
		"health_follow_redirects", "health_passes 1", "health_fails 1", "max_fails 1", "fail_duration 1s",
		"unhealthy_request_count 1", "unhealthy_status 500", "unhealthy_latency 1s",
	} {
		if _, err := adapt(":80 {\nusher web {\nbackend test a\n" + option + "\n}\n}"); err == nil {
			t.Errorf("%s is accepted", option)
		}
	}
}
