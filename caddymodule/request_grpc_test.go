package caddymodule

import (
	"net/url"
	"strings"
	"testing"

	"golang.org/x/net/http2"
)

func TestAGRPCClientGetsTrailersOnly(t *testing.T) {
	t.Parallel()
	f := failingWith(t, "héllo 100%\nsecond {{line}}")
	c := start(t, site("header {\n-Server\n-Grpc-Status\nCache-Control \"public, max-age=600\"\n}\n"+f.usher("error_detail full")))
	for name, x := range map[string]struct {
		end  bool
		sent string
		want string
	}{
		"a call":                     {true, "application/grpc", "application/grpc"},
		"one of protocol buffers":    {true, "application/grpc+proto", "application/grpc"},
		"one whose messages go on":   {false, "application/grpc", "application/grpc"},
		"one of the web":             {true, "application/grpc-web+proto", "application/grpc-web"},
		"one of the web, as text":    {true, "application/grpc-web-text", "application/grpc-web-text"},
		"something with a near name": {true, "application/grpcx", ""},
	} {
		t.Run(name, func(t *testing.T) {
			h2 := c.dialH2()
			h2.send(1, x.end, ":method", "POST", ":scheme", "http", ":authority", "x", ":path", "/pkg.Service/Call", "content-type", x.sent, "te", "trailers")
			frames := h2.frames(1, func(f http2.Frame) bool { return f.Header().Type == http2.FrameHeaders })
			head, ok := frames[len(frames)-1].(*http2.MetaHeadersFrame)
			if !ok {
				t.Fatal(frames)
			}
			got := fieldsOf(head)
			one := func(name string) string { return strings.Join(got[name], "|") }
			if x.want == "" {
				if one(":status") != "503" || one("grpc-status") != "" {
					t.Errorf("%v", got)
				}
				return
			}
			if !head.StreamEnded() {
				t.Errorf("more than one frame of headers: %v", got)
			}
			if one(":status") != "200" || one("content-type") != x.want || one("grpc-status") != "14" ||
				one("usher-error") != "start_failed" || one("retry-after") == "" || one("cache-control") != "no-store" {
				t.Errorf("%v", got)
			}
			message, err := url.PathUnescape(one("grpc-message"))
			if err != nil || message != "The service cannot be started: exit status 127: héllo 100%; second { {line}} (start_failed)" {
				t.Errorf("the message is %q, %v", one("grpc-message"), err)
			}
			for _, b := range []byte(one("grpc-message")) {
				if b < ' ' || b > '~' {
					t.Errorf("the message has the byte %#x", b)
				}
			}
		})
	}
}
