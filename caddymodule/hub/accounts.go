package hub

import (
	"encoding/json"
	"time"

	"go.uber.org/zap"

	"github.com/caddy-usher/usher/cluster"
	"github.com/caddy-usher/usher/scaler/control"
)

// noteAccount is the key of a note that says how a service is doing, in the words
// of the Caddy that leads.
const noteAccount = "account/"

// accountPause is the least time between two accounts of one service.
const accountPause = 100 * time.Millisecond

// decided has the account of a service told: at once after a quiet time, else
// after a pause. It is called under the loop's lock.
func (m *membership) decided(s *Service, k *sharedService) {
	k.pacing.Lock()
	defer k.pacing.Unlock()
	if k.accountDue {
		return
	}
	k.accountDue = true
	time.AfterFunc(max(0, accountPause-time.Since(k.accounted)), func() {
		k.pacing.Lock()
		k.accountDue, k.accounted = false, time.Now()
		k.pacing.Unlock()
		m.account(s)
	})
}

// account tells the others how a service is doing, if that has changed.
func (m *membership) account(s *Service) {
	m.accounting.Lock()
	defer m.accounting.Unlock()
	if _, shared := m.of(s.Name, nil); shared != s || !m.leading() {
		return
	}
	b, err := json.Marshal(s.Loop.Account())
	if err != nil {
		m.log().Error("the other Caddys are not told how a service is doing", zap.String("service", s.Name), zap.Error(err))
		return
	}
	if key := noteAccount + s.Name; m.driver.Note(key).Value != string(b) {
		m.driver.Put(key, string(b))
	}
}

// accountOf returns the account of a note; nil if there is none.
func accountOf(n cluster.Note) *control.Account {
	a := new(control.Account)
	if n.Gone || json.Unmarshal([]byte(n.Value), a) != nil {
		return nil
	}
	return a
}
