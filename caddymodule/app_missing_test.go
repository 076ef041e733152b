package caddymodule

import (
	"encoding/json"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/caddyserver/caddy/v2"

	"github.com/caddy-usher/usher/scaler"
	"github.com/caddy-usher/usher/scaler/control"
)

// lackingBackend is a backend for which this machine lacks something.
type lackingBackend struct {
	Lacks string `json:"lacks,omitempty"`
}

func (*lackingBackend) CaddyModule() caddy.ModuleInfo {
	return caddy.ModuleInfo{ID: "usher.backends.lacking", New: func() caddy.Module { return new(lackingBackend) }}
}

func (b *lackingBackend) Check() *scaler.Failure {
	if b.Lacks == "" {
		return nil
	}
	return &scaler.Failure{Reason: scaler.Reason(b.Lacks), ForGood: true, Short: "something is missing"}
}

func (b *lackingBackend) Open(scaler.Env) (scaler.Scaler, error) { return nil, b.Check() }
func (b *lackingBackend) Fingerprint() string                    { return b.Lacks }
func (b *lackingBackend) Redacted() any                          { return b }

func init() { caddy.RegisterModule(new(lackingBackend)) }

func lackingConfig(t *testing.T, lacks scaler.Reason) *caddy.Config {
	t.Helper()
	cfg := new(caddy.Config)
	text := `{"admin":{"disabled":true},"apps":{"usher":{"services":{"` + serviceFor(t) + `":{"backend":{"type":"lacking","lacks":"` + string(lacks) + `"}}}}}}`
	if err := json.Unmarshal([]byte(text), cfg); err != nil {
		t.Fatal(err)
	}
	return cfg
}

func TestValidateRefusesWhatThisMachineLacks(t *testing.T) {
	err := caddy.Validate(lackingConfig(t, scaler.ReasonNotFound))
	if err == nil || !strings.Contains(err.Error(), "something is missing") || !strings.Contains(err.Error(), "service "+serviceFor(t)) {
		t.Errorf("%v", err)
	}
}

// What this user may not do or see, the user that Caddy will run as may.
func TestValidateAcceptsWhatOnlyTheRightsOfThisUserForbid(t *testing.T) {
	if err := caddy.Validate(lackingConfig(t, scaler.ReasonForbidden)); err != nil {
		t.Error(err)
	}
}

func TestAServiceThatLacksSomethingAtBootIsFailingAndAReloadThatKeepsItIsAccepted(t *testing.T) {
	// Not parallel: the first configuration is a boot only if there is no other.
	name := serviceFor(t)
	config := func(lacks, more string) string {
		return jsonApps(`{"services":{"`+name+`":{"backend":{"type":"lacking","lacks":"`+lacks+`"}`+more+`}}}`, "")
	}
	start(t, config("not_found", ""))
	s := serving(t, name)
	eventually(t, "failing", func() bool { return s.Loop.Status().State == control.Failing })
	if f := s.Loop.Status().LastError; f == nil || f.Short != "something is missing" {
		t.Errorf("last error %+v", f)
	}
	c, err := tryProvision(t, config("not_found", `,"max_waiting":7`))
	if err != nil {
		t.Fatalf("a reload that does not change the backend is refused: %v", err)
	}
	if err := c.app.Start(); err != nil {
		t.Fatal(err)
	}
	if got := *serving(t, name).Current().Service.MaxWaiting; got != 7 {
		t.Errorf("max_waiting is %d", got)
	}
	if _, err := tryProvision(t, config("exec", "")); err == nil || !strings.Contains(err.Error(), "service "+name) {
		t.Errorf("a reload that introduces something that is missing: %v", err)
	}
}

// pageConfig is a site with a waiting page. The more it has, the more options
// its service has.
func pageConfig(t *testing.T, f *fleet, file, more string) string {
	t.Helper()
	return site(f.usher("waiting_page "+file+" {\nafter 0s\n}", more))
}

func TestAWaitingPageThatIsMissingAtBootIsReplacedByTheBuiltInOne(t *testing.T) {
	// Not parallel: the first configuration is a boot only if there is no other.
	for name, content := range map[string]string{
		"missing":                  "",
		"one that does not parse":  "{{if}}",
		"one that cannot be shown": "{{.Nothing}}",
	} {
		t.Run(name, func(t *testing.T) {
			f := newFleet(t)
			f.manual = true
			file := filepath.Join(t.TempDir(), "page.html")
			write := func(text string) {
				if err := os.WriteFile(file, []byte(text), 0o600); err != nil {
					t.Fatal(err)
				}
			}
			if content != "" {
				write(content)
			}
			page := func(c *config) string { return c.get("/", person...).body }

			c := start(t, pageConfig(t, f, file, "instances 0 1"))
			if body := page(c); !strings.Contains(body, "data-usher=\"status\"") {
				t.Errorf("not the built-in page: %s", body)
			}
			warnings := logsOf(logName(t)).entries("the file of the waiting page cannot be used: visitors of the service see the built-in page until a reload can read the file")
			if len(warnings) != 1 || warnings[0]["level"] != "warn" || warnings[0]["file"] != file || warnings[0]["service"] != serviceFor(t) {
				t.Errorf("the warning should name the file and the service: %v", warnings)
			}

			if _, err := tryProvision(t, pageConfig(t, f, file+".other", "instances 0 1")); err == nil || !strings.Contains(err.Error(), file+".other") || !strings.Contains(err.Error(), "service "+serviceFor(t)) {
				t.Errorf("a reload that introduces another file that is missing: %v", err)
			}
			kept := start(t, pageConfig(t, f, file, "instances 0 2"))
			if body := page(kept); !strings.Contains(body, "data-usher=\"status\"") {
				t.Errorf("after a reload that keeps the file: %s", body)
			}

			write("my own page")
			if body := page(start(t, pageConfig(t, f, file, "instances 0 3"))); body != "my own page" {
				t.Errorf("after a reload with the file: %s", body)
			}
			write("{{if}}")
			if _, err := tryProvision(t, pageConfig(t, f, file, "instances 0 4")); err == nil {
				t.Error("a reload breaks the page that people see, and is not refused")
			}
		})
	}
}

func TestValidateRefusesAWaitingPageThatIsMissing(t *testing.T) {
	cfg := new(caddy.Config)
	file := filepath.Join(t.TempDir(), "page.html")
	text, err := adapt(pageConfig(t, newFleet(t), file, ""))
	if err != nil {
		t.Fatal(err)
	}
	if err := json.Unmarshal(text, cfg); err != nil {
		t.Fatal(err)
	}
	cfg.Admin = &caddy.AdminConfig{Disabled: true}
	if err := caddy.Validate(cfg); err == nil || !strings.Contains(err.Error(), file) {
		t.Errorf("%v", err)
	}
}
