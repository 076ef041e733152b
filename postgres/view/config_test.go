package view

import (
	"strings"
	"testing"

	"github.com/caddyserver/caddy/v2"
	"github.com/caddyserver/caddy/v2/caddyconfig/caddyfile"
)

func TestTheRow(t *testing.T) {
	c := new(Coordinator)
	if _, err := c.Open("main"); err == nil || !strings.Contains(err.Error(), "before it was provisioned") {
		t.Errorf("error %v", err)
	}
	if err := c.UnmarshalCaddyfile(caddyfile.NewTestDispenser("postgres postgres://usher:s3cret@db/app {\n schema x\n}")); err != nil {
		t.Fatal(err)
	}
	if err := c.Provision(caddy.Context{}); err != nil {
		t.Fatal(err)
	}
	got, err := c.Open("main")
	if err != nil {
		t.Fatal(err)
	}
	defer got.Close()
	if want := "the view of main in the schema x of the PostgreSQL database app at db:5432"; got.String() != want {
		t.Errorf("it is called %q, want %q", got, want)
	}
	if _, err := c.Open(""); err == nil {
		t.Error("a cluster without a name is opened")
	}
}

func TestMistakes(t *testing.T) {
	if err := new(Coordinator).UnmarshalCaddyfile(caddyfile.NewTestDispenser("postgres")); err == nil || !strings.Contains(err.Error(), "coordinator postgres: ") {
		t.Errorf("error %v", err)
	}
	if err := (&Coordinator{DSN: "postgres://usher:s3cret%@db"}).Provision(caddy.Context{}); err == nil || strings.Contains(err.Error(), "s3cret") {
		t.Errorf("error %v, want one without the password", err)
	}
}
