package tasks

import (
	"fmt"
	"math/rand/v2"
	"net/url"
	"strconv"
	"strings"
	"time"
)

// clients is how many hand in requests at the same time.
const clients = 32

// A job is a request that is handed in to be executed later.
type job struct {
	seq    int
	group  int           // 0: of no group
	once   bool          // it may be executed once at most
	fails  bool          // it is answered 404
	flaky  bool          // the first attempt is answered 503, which asks for another one
	cancel bool          // its client cancels it when it was accepted
	repeat bool          // its client hands it in again although it was accepted
	takes  time.Duration // how long an execution takes
	size   int           // of the body and the answer
}

// newJob draws a job. Its client is the one with the number seq % clients. Each group
// belongs to one client, so its order is known.
func newJob(seed uint64, seq int) job {
	r := rand.New(rand.NewPCG(seed, uint64(seq)))
	j := job{seq: seq, takes: time.Duration(1+r.IntN(10)) * time.Millisecond, size: 10 + r.IntN(1000)}
	switch n := r.IntN(100); {
	case n < 60:
		j.group = 1 + 2*(seq%clients) + r.IntN(2)
	case n < 70:
		j.once = true
	}
	switch n := r.IntN(100); {
	case n < 2:
		j.cancel = true
	case n < 4:
		j.repeat = true
	case n < 6:
		j.fails = true
	case n < 8:
		j.flaky = !j.once
	case n < 9:
		j.size = 70_000 + r.IntN(30_000) // too long to be stored among the others
	}
	return j
}

// service is the one that executes the job.
func (j job) service() string {
	if j.once {
		return "once"
	}
	return "again"
}

// path is what the client asks for.
func (j job) path() string {
	query := url.Values{"seq": {strconv.Itoa(j.seq)}, "d": {j.takes.String()}}
	if j.fails {
		query.Set("code", "404")
	}
	if j.flaky {
		query.Set("first", "503")
	}
	return "/work/" + j.service() + "?" + query.Encode()
}

// body is that of the request and of the answer.
func (j job) body() string {
	unit := fmt.Sprintf("job %d\n", j.seq)
	return strings.Repeat(unit, j.size/len(unit)+1)[:j.size]
}
