package caddymodule

import (
	"context"
	"encoding/json"
	"strings"
	"testing"

	"github.com/caddyserver/caddy/v2"
	"github.com/caddyserver/caddy/v2/caddyconfig"
	"github.com/caddyserver/caddy/v2/caddyconfig/caddyfile"

	"github.com/caddy-usher/usher/scaler"
)

func init() {
	caddy.RegisterModule(farAway{})
	caddy.RegisterModule(aloof{})
}

// farAway is a backend whose services share where their platform is.
type farAway struct {
	App   string `json:"app,omitempty"`
	Where string `json:"where,omitempty"`
	Who   string `json:"who,omitempty"`
}

func (farAway) CaddyModule() caddy.ModuleInfo {
	return caddy.ModuleInfo{ID: "usher.backends.far_away", New: func() caddy.Module { return new(farAway) }}
}

func (*farAway) Open(scaler.Env) (scaler.Scaler, error) { return nil, context.Canceled }
func (f *farAway) Fingerprint() string                  { return f.App + f.Where + f.Who }
func (f *farAway) Redacted() any                        { return f }

func (f *farAway) UnmarshalCaddyfile(d *caddyfile.Dispenser) error {
	d.Next()
	if !d.Args(&f.App) {
		return d.ArgErr()
	}
	return f.options(d)
}

func (f *farAway) UnmarshalCaddyfileDefaults(d *caddyfile.Dispenser) error {
	d.Next()
	return f.options(d)
}

func (f *farAway) options(d *caddyfile.Dispenser) error {
	for nesting := d.Nesting(); d.NextBlock(nesting); {
		switch d.Val() {
		case "where":
			d.Args(&f.Where)
		case "who":
			d.Args(&f.Who)
		default:
			return d.Errf("unknown option '%s'", d.Val())
		}
	}
	return nil
}

const sharing = `{
	usher {
		far_away {
			where there
			who somebody
		}
		service a {
			backend far_away one
		}
	}
}
http://localhost {
	usher b {
		backend far_away two {
			who me
		}
	}
}`

func TestOptionsThatServicesShareStandOnce(t *testing.T) {
	adapted, _, err := caddyconfig.GetAdapter("caddyfile").Adapt([]byte(sharing), nil)
	if err != nil {
		t.Fatal(err)
	}
	var cfg struct {
		Apps struct {
			Usher json.RawMessage `json:"usher"`
		} `json:"apps"`
	}
	if err := json.Unmarshal(adapted, &cfg); err != nil {
		t.Fatal(err)
	}
	var app App
	if err := json.Unmarshal(cfg.Apps.Usher, &app); err != nil {
		t.Fatal(err)
	}
	for raw, want := range map[string]farAway{
		string(app.Services["a"].BackendRaw):         {App: "one", Where: "there", Who: "somebody"},
		`{"type":"far_away","app":"two","who":"me"}`: {App: "two", Where: "there", Who: "me"},
	} {
		filled, err := app.backends.fill(json.RawMessage(raw))
		if err != nil {
			t.Fatal(err)
		}
		var got farAway
		if err := json.Unmarshal(filled, &got); err != nil || got != want {
			t.Errorf("%s becomes %s (%v), want %+v", raw, filled, err, want)
		}
	}
	again, err := json.Marshal(app)
	if err != nil || !strings.Contains(string(again), `"far_away":{"where":"there","who":"somebody"}`) {
		t.Errorf("the app writes itself as %s (%v)", again, err)
	}
}

// aloof is a backend that takes no shared option once it has one of its own.
type aloof struct{ farAway }

func (aloof) CaddyModule() caddy.ModuleInfo {
	return caddy.ModuleInfo{ID: "usher.backends.aloof", New: func() caddy.Module { return new(aloof) }}
}

func (a *aloof) MergeDefaults(shared any) {
	if s := shared.(*aloof); a.Where == "" {
		a.Where, a.Who = s.Where, s.Who
	}
}

func TestABackendMayJudgeItselfWhatItShares(t *testing.T) {
	d := backendDefaults{"aloof": json.RawMessage(`{"where":"there","who":"somebody"}`)}
	for raw, want := range map[string]string{
		`{"type":"aloof","app":"x"}`:                `{"app":"x","type":"aloof","where":"there","who":"somebody"}`,
		`{"type":"aloof","app":"x","where":"here"}`: `{"app":"x","type":"aloof","where":"here"}`,
	} {
		got, err := d.fill(json.RawMessage(raw))
		if err != nil || string(got) != want {
			t.Errorf("%s becomes %s (%v), want %s", raw, got, err, want)
		}
	}
	if _, err := d.fill(json.RawMessage(`{"type":"aloof","no_such":1}`)); err == nil {
		t.Error("an unknown option is lost without a word")
	}
}

func TestSharedOptionsAreCheckedLikeAllOthers(t *testing.T) {
	for _, c := range []struct{ config, want string }{
		{"{\n usher {\n far_away {\n how so\n }\n }\n}", "unknown option 'how'"},
		{"{\n usher {\n far_away {\n where x\n }\n far_away {\n where y\n }\n }\n}", "far_away is given twice"},
		{"{\n usher {\n process {\n dir /\n }\n }\n}", "unknown option 'process'"},
	} {
		_, _, err := caddyconfig.GetAdapter("caddyfile").Adapt([]byte(c.config), nil)
		if err == nil || !strings.Contains(err.Error(), c.want) {
			t.Errorf("%q: %v, want %q", c.config, err, c.want)
		}
	}
	var app App
	if err := json.Unmarshal([]byte(`{"no_such":{}}`), &app); err == nil {
		t.Error("a key that is neither a field nor a backend is accepted")
	}
}
