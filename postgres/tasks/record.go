package tasks

import (
	"encoding/json"
	"fmt"
	"net/http"
	"strings"
	"time"

	"github.com/jackc/pgx/v5"

	"github.com/caddy-usher/usher/async"
)

// Why a pending task can begin now or not.
const (
	ready   = iota + 1 // it can
	delayed            // its time has not come
	behind             // it is not the first of its group
)

// record is a row of tasks. Its times are in µs.
type record struct {
	number, place int64
	id            string
	queue         string
	exclusive     string
	group         *int64
	state         async.State
	phase         int
	attempt       int
	counted       int
	owner, claim  string
	cancelling    bool
	progress      int
	keep          time.Duration
	bodySize      int64
	status        int
	resultSize    int64

	accepted, due, started, expires, ended, keptUntil int64

	data           data
	reason         string
	header         http.Header
	sealed         []byte // data
	sealedReason   []byte
	sealedHeader   []byte
	keyHash, print []byte // read by scanKeyed only
}

// data is what does not change.
type data struct {
	Request  async.Request `json:"request"`
	Client   string        `json:"client,omitempty"`
	Group    string        `json:"group,omitempty"`
	Key      string        `json:"key,omitempty"`
	Callback string        `json:"callback,omitempty"`
}

// columns are what scan reads.
const columns = `number, place, id, queue, exclusive, group_key, state, phase, attempt, counted, owner, claim, cancelling, progress, ` +
	`keep, body_size, status, result_size, accepted, due, started, expires, ended, kept_until, data, reason, header`

func scan(rows pgx.CollectableRow) (*record, error) {
	r := new(record)
	err := rows.Scan(r.fields()...)
	return r, err
}

// fields are where columns are read to.
func (r *record) fields() []any {
	return []any{
		&r.number, &r.place, &r.id, &r.queue, &r.exclusive, &r.group, &r.state, &r.phase, &r.attempt, &r.counted, &r.owner, &r.claim,
		&r.cancelling, &r.progress, &r.keep, &r.bodySize, &r.status, &r.resultSize, &r.accepted, &r.due, &r.started, &r.expires, &r.ended,
		&r.keptUntil, &r.sealed, &r.sealedReason, &r.sealedHeader,
	}
}

// unseal reads what is sealed in r.
func (s *secrets) unseal(r *record) error {
	text, err := s.open(r.sealed, r.id)
	if err == nil {
		err = json.Unmarshal(text, &r.data)
	}
	if err == nil && r.sealedReason != nil {
		if text, err = s.open(r.sealedReason, r.id+" reason"); err == nil {
			r.reason = string(text)
		}
	}
	if err == nil && r.sealedHeader != nil {
		if text, err = s.open(r.sealedHeader, r.id+" header"); err == nil {
			err = json.Unmarshal(text, &r.header)
		}
	}
	if err != nil {
		return fmt.Errorf("the record of task %s is damaged: %w", r.id, err)
	}
	return nil
}

// seal seals what changes in r.
func (s *secrets) sealRecord(r *record) error {
	r.sealedReason, r.sealedHeader = nil, nil
	if r.reason != "" {
		r.sealedReason = s.seal([]byte(r.reason), r.id+" reason")
	}
	if r.header != nil {
		text, err := json.Marshal(r.header)
		if err != nil {
			return err
		}
		r.sealedHeader = s.seal(text, r.id+" header")
	}
	return nil
}

// idSize is the length of an id, which is made by rand.Text.
const idSize = 26

func validID(id string) bool {
	return len(id) == idSize && strings.Trim(id, "ABCDEFGHIJKLMNOPQRSTUVWXYZ234567") == ""
}

func timeOf(n int64) time.Time {
	if n == 0 {
		return time.Time{}
	}
	return time.UnixMicro(n)
}

// after adds a duration to a time. What is not a whole µs is rounded up.
func after(n int64, d time.Duration) int64 {
	return n + int64((max(0, d)+time.Microsecond-1)/time.Microsecond)
}

// task returns r as others see it.
func (s *Store) task(r *record) async.Task {
	t := async.Task{
		ID: r.id, Queue: r.queue, Request: r.data.Request, Client: r.data.Client, Group: r.data.Group, Exclusive: r.exclusive,
		Key: r.data.Key, Callback: r.data.Callback, Keep: r.keep, BodySize: r.bodySize, State: r.state, Attempt: r.attempt,
		Counted: r.counted, Owner: r.owner, Cancelling: r.cancelling, Progress: -1, Reason: r.reason, Status: r.status,
		ResultSize: r.resultSize, Accepted: timeOf(r.accepted), Due: timeOf(r.due), Started: timeOf(r.started),
		Expires: timeOf(r.expires), Ended: timeOf(r.ended),
	}
	if r.state == async.Running {
		t.Progress = max(r.progress, s.own.progress(r.id, r.attempt))
	}
	return t
}
