package driver

import (
	"testing"
	"testing/synctest"
	"time"

	"github.com/caddy-usher/usher/cluster"
)

// counting counts what it hears of hand-overs, and hears nothing else.
type counting struct {
	Host
	took []time.Duration
}

func (c *counting) HandedOver(_ string, took time.Duration) { c.took = append(c.took, took) }

func TestTheTimeOfAHandOverIsThatOfOneSession(t *testing.T) {
	for name, test := range map[string]struct {
		between cluster.Event
		want    time.Duration
	}{
		"in one session":            {cluster.Tick{}, 3 * time.Second},
		"after the stream broke":    {cluster.StreamDown{Boot: "b"}, time.Second},
		"after it began a session":  {cluster.Received{From: "b", Message: cluster.Message{Body: cluster.Hello{}}}, time.Second},
		"after that of another one": {cluster.StreamDown{Boot: "c"}, 3 * time.Second},
	} {
		t.Run(name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				host := new(counting)
				d := &Driver{c: Config{Host: host}, asked: make(map[recalled]owed)}
				d.asks("b", cluster.Recall{Service: "web", Until: 1})
				time.Sleep(2 * time.Second)
				d.noteReturns(test.between)
				d.asks("b", cluster.Recall{Service: "web", Until: 1})
				time.Sleep(time.Second)
				d.noteReturns(cluster.Received{From: "b", Message: cluster.Message{Body: cluster.Return{Slots: []cluster.Slots{{Service: "web", Instance: "i", N: 1}}}}})
				if len(host.took) != 1 || host.took[0] != test.want {
					t.Errorf("%v, want one of %v", host.took, test.want)
				}
				if len(d.asked) != 0 {
					t.Errorf("%v is kept", d.asked)
				}
			})
		})
	}
}
