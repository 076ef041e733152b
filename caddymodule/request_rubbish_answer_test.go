package caddymodule

import (
	"bufio"
	"io"
	"net"
	"net/http"
	"testing"

	"github.com/caddy-usher/usher/scaler/control"
)

// says is an instance that answers every request with the same bytes, and then
// closes the connection.
func says(text string) func(net.Conn) {
	return func(c net.Conn) {
		if r, err := http.ReadRequest(bufio.NewReader(c)); err == nil {
			_, _ = io.Copy(io.Discard, r.Body)
			_, _ = io.WriteString(c, text)
		}
	}
}

// Answered means that there was a response: whatever else comes from an
// instance is a failure, and three in a row eject it.
func TestInstanceThatAnswersRubbishIsEjected(t *testing.T) {
	t.Parallel()
	for name, text := range map[string]string{
		"half a header":        "HTTP/1.1 200 OK\r\nContent-Le",
		"garbage":              "\x00\x01\x02 what do you want?\r\n\r\n",
		"103 and the end":      "HTTP/1.1 103 Early Hints\r\nLink: </a>\r\n\r\n",
		"a length that is not": "HTTP/1.1 200 OK\r\nContent-Length: many\r\n\r\n",
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			f, up := byHand(t, "2 2")
			c := up()
			f.ordered(2)
			addr, _ := serveConns(t, says(text))
			bad := f.at("tcp", addr, none)
			f.ready(1)
			good, _ := serveConns(t, answers("200 OK"))
			f.at("tcp", good, none)
			f.ready(2)
			var waits []func() reply
			for range 3 {
				waits = append(waits, c.begin("POST", "/", "body"))
			}
			eventually(t, "the ejection", func() bool {
				for _, i := range serving(t, f.name).Loop.Instances() {
					if i.ID == bad {
						return i.State == control.InstanceEjected
					}
				}
				return false
			})
			// It is ejected for a second at least.
			if r := c.do("POST", "/", "body"); r.status != 200 {
				t.Errorf("after the ejection: %+v", r)
			}
			for _, wait := range waits {
				if r := wait(); r.status != 502 {
					t.Errorf("%+v", r)
				}
			}
		})
	}
}

// What an instance says before its response changes nothing about it.
func TestInstanceThatSendsEarlyHintsHasAnswered(t *testing.T) {
	t.Parallel()
	f, up := byHand(t, "1 1")
	c := up()
	f.ordered(1)
	addr, sent := serveConns(t, says("HTTP/1.1 103 Early Hints\r\nLink: </a>\r\n\r\nHTTP/1.1 200 OK\r\nConnection: close\r\nContent-Length: 2\r\n\r\nok"))
	f.at("tcp", addr, none)
	f.ready(1)
	for range 5 {
		if r := c.get("/"); r.status != 200 || r.body != "ok" {
			t.Errorf("%+v", r)
		}
	}
	if st := serving(t, f.name).Reserver.Stats(); st.Open != 1 || sent.Load() != 5 {
		t.Errorf("%+v after %d requests", st, sent.Load())
	}
}
