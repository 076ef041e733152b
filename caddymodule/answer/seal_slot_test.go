package answer

import (
	"net/http"
	"testing"

	"github.com/caddyserver/caddy/v2/modules/caddyhttp"
)

func TestTheSealFindsTheWriterNextToTheServer(t *testing.T) {
	t.Parallel()
	type embeds struct {
		caddyhttp.ResponseWriterWrapper
	}
	type points struct {
		*caddyhttp.ResponseWriterWrapper
	}
	type closed struct{ http.ResponseWriter } // no Unwrap
	server := caddyhttp.NewResponseRecorder(nil, nil, nil)
	inner := &embeds{caddyhttp.ResponseWriterWrapper{ResponseWriter: closed{server}}}
	outer := &points{&caddyhttp.ResponseWriterWrapper{ResponseWriter: inner}}
	if got := lastSlot(outer); got != &inner.ResponseWriter {
		t.Errorf("found %v", got)
	}
	if got := lastSlot(closed{server}); got != nil {
		t.Errorf("found %v where nothing can be opened", *got)
	}
}
