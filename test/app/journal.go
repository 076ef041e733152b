package main

import (
	"encoding/json"
	"log"
	"net/http"
	"os"
	"strconv"
	"sync"
	"time"
)

// entry is one line of the journal.
type entry struct {
	Time     int64  `json:"time"` // nanoseconds since 1970
	PID      int    `json:"pid"`
	Service  string `json:"service,omitempty"`
	Instance string `json:"instance,omitempty"`
	Mark     string `json:"mark,omitempty"` // APP_MARK, at the start
	Event    string `json:"event"`
	Method   string `json:"method,omitempty"`
	Path     string `json:"path,omitempty"`
	Seq      string `json:"seq,omitempty"`
	Task     string `json:"task,omitempty"`    // Usher-Task of the request
	Attempt  int    `json:"attempt,omitempty"` // its Usher-Task-Attempt
	Inside   int    `json:"inside,omitempty"`  // requests inside, this one included
	Status   int    `json:"status,omitempty"`
}

// journalFile is shared by all instances of a test. Each line is one write to
// a file opened for appending, so lines of several processes never mix.
type journalFile struct {
	file *os.File
}

var journal journalFile

func (j *journalFile) open() {
	path := os.Getenv("APP_JOURNAL")
	if path == "" {
		return
	}
	file, err := os.OpenFile(path, os.O_APPEND|os.O_CREATE|os.O_WRONLY, 0o644)
	if err != nil {
		log.Fatal(err)
	}
	j.file = file
}

func (j *journalFile) write(e entry) {
	if j.file == nil {
		return
	}
	e.Time = time.Now().UnixNano()
	e.PID = os.Getpid()
	e.Service, e.Instance = os.Getenv("USHER_SERVICE"), os.Getenv("USHER_INSTANCE")
	line, err := json.Marshal(e)
	if err != nil {
		log.Fatal(err)
	}
	if _, err := j.file.Write(append(line, '\n')); err != nil {
		log.Print(err)
	}
}

// headerTask has the id of a stored request.
const headerTask = "Usher-Task"

// attemptOf is the number of the attempt, if r is a stored request.
func attemptOf(r *http.Request) int {
	n, _ := strconv.Atoi(r.Header.Get("Usher-Task-Attempt"))
	return n
}

// census counts the requests inside and writes each to the journal.
type census struct {
	mu          sync.Mutex
	inside, max int
}

// enter and leave frame a request. Entering is
// written under the lock, so that the journal has the order of entering.
func (c *census) enter(r *http.Request) {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.inside++
	c.max = max(c.max, c.inside)
	journal.write(entry{
		Event: "begin", Method: r.Method, Path: r.URL.Path, Seq: r.Header.Get("X-Seq"), Inside: c.inside,
		Task: r.Header.Get(headerTask), Attempt: attemptOf(r),
	})
}

func (c *census) leave(r *http.Request) {
	c.mu.Lock()
	defer c.mu.Unlock()
	journal.write(entry{
		Event: "end", Path: r.URL.Path, Seq: r.Header.Get("X-Seq"), Inside: c.inside,
		Task: r.Header.Get(headerTask), Attempt: attemptOf(r),
	})
	c.inside--
}

func (c *census) highest() int {
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.max
}
