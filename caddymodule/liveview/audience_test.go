package liveview

import (
	"testing"

	"github.com/caddy-usher/usher/caddymodule/answer"
)

func TestAViewerThatIsTooSlowIsCutOffAndNoOther(t *testing.T) {
	t.Parallel()
	a := newAudience()
	slow, endSlow := a.join()
	fast, endFast := a.join()
	for range viewerBacklog + 1 {
		a.tell("x", 1)
		<-fast
	}
	n := 0
	for range slow {
		n++
	}
	if n != viewerBacklog {
		t.Errorf("%d events before the end", n)
	}
	a.tell("x", 2)
	if e := <-fast; string(e.Data) != "2" {
		t.Errorf("%s", e.Data)
	}
	endSlow() // once more is no harm
	endFast()
	endFast()
	if len(a.viewers) != 0 {
		t.Error("viewers stay")
	}
}

func TestNoFrameIsEncodedWhileNothingViews(t *testing.T) {
	t.Parallel()
	newAudience().tell("x", unencodable{t})
}

type unencodable struct{ t *testing.T }

func (u unencodable) MarshalJSON() ([]byte, error) {
	u.t.Error("encoded")
	return nil, nil
}

func TestAnAudienceThatEndsEndsItsViewers(t *testing.T) {
	t.Parallel()
	a := newAudience()
	before, end := a.join()
	a.close()
	after, _ := a.join()
	for _, ch := range []<-chan answer.Event{before, after} {
		if _, ok := <-ch; ok {
			t.Error("an event out of nowhere")
		}
	}
	a.tell("x", 1)
	end()
	a.close()
}
