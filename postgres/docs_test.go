package postgres

import (
	"encoding/json"
	"os"
	"strings"
	"testing"

	"github.com/caddyserver/caddy/v2"
	"github.com/caddyserver/caddy/v2/caddyconfig"
	_ "github.com/caddyserver/caddy/v2/modules/standard"

	_ "github.com/caddy-usher/usher"
)

// The examples of the page are adapted and provisioned, as by caddy validate.
func TestThePage(t *testing.T) {
	t.Setenv("PGPASSWORD", "s3cret/@:")
	page, err := os.ReadFile("../docs/postgresql.md")
	if err != nil {
		t.Fatal(err)
	}
	parts := strings.Split(string(page), "```text example\n")
	if len(parts) != 3 {
		t.Fatalf("the page has %d examples, want 2", len(parts)-1)
	}
	for _, part := range parts[1:] {
		text, _, _ := strings.Cut(part, "```\n")
		adapted, _, err := caddyconfig.GetAdapter("caddyfile").Adapt([]byte(text), map[string]any{"filename": "Caddyfile"})
		if err != nil {
			t.Errorf("%v\n%s", err, text)
			continue
		}
		if strings.Contains(string(adapted), "s3cret") {
			t.Errorf("the configuration has the password: %s", adapted)
		}
		var c caddy.Config
		if err := json.Unmarshal(adapted, &c); err != nil {
			t.Fatal(err)
		}
		if err := caddy.Validate(&c); err != nil {
			t.Errorf("%v\n%s", err, text)
		}
	}
}
