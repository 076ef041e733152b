package coordinatortest

import (
	"testing"

	"go.uber.org/goleak"

	"github.com/caddy-usher/usher/cluster/coordinator"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

func TestMemoryConforms(t *testing.T) {
	Run(t, func(*testing.T) Subject {
		m := new(Memory)
		return Subject{
			Open:   func(testing.TB, string) coordinator.Store { return m.Open() },
			Write:  func(_ testing.TB, data []byte) { m.Write(data) },
			Delete: func(testing.TB) { m.Write(nil) },
		}
	})
}
