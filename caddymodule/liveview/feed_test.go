package liveview

import (
	"testing"
	"time"

	"github.com/caddy-usher/usher/caddymodule/hub"
)

func TestTheStreamsOfTheLiveViewEndWithTheHub(t *testing.T) {
	t.Parallel()
	h := new(hub.Hub)
	_, frames, leave, err := feedOf(h).join()
	if err != nil {
		t.Fatal(err)
	}
	defer leave()
	h.Exit()
	select {
	case _, ok := <-frames:
		if ok {
			t.Error("a frame instead of the end")
		}
	case <-time.After(10 * time.Second):
		t.Error("the stream goes on")
	}
}
