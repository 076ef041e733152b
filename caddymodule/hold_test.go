package caddymodule

import (
	"testing"
)

func TestRequestForAColdServiceIsHeldAndServed(t *testing.T) {
	t.Parallel()
	f := newFleet(t)
	f.manual = true
	c := start(t, site(f.usher()))
	wait := c.begin("POST", "/x", "hello")
	f.ordered(1)
	f.up()
	if r := wait(); r.status != 200 || r.body != "POST /x hello" {
		t.Fatalf("%+v", r)
	}
}
