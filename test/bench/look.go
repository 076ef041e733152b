package main

import (
	"bytes"
	"encoding/json"
	"fmt"
	"net/http"
	"strconv"
	"strings"
	"time"
)

// What is read off a running Caddy.

// metric returns a metric without labels.
func (s *server) metric(name string) (float64, error) {
	text, err := s.askAdmin(http.MethodGet, "/metrics", "", nil)
	if err != nil {
		return 0, err
	}
	for line := range strings.SplitSeq(string(text), "\n") {
		if value, ok := strings.CutPrefix(line, name+" "); ok {
			return strconv.ParseFloat(value, 64)
		}
	}
	return 0, fmt.Errorf("caddy has no metric %s", name)
}

// memory returns the bytes of heap and stacks in use after a collection.
func (s *server) memory() (float64, error) {
	// Twice: what a pool holds is freed by the second collection only.
	if _, err := s.askAdmin(http.MethodGet, "/debug/pprof/heap?gc=1", "", nil); err != nil {
		return 0, err
	}
	text, err := s.askAdmin(http.MethodGet, "/debug/pprof/heap?gc=1&debug=1", "", nil)
	if err != nil {
		return 0, err
	}
	sum := 0.0
	for _, name := range []string{"# HeapAlloc = ", "# Stack = "} {
		_, rest, found := bytes.Cut(text, []byte(name))
		if !found {
			return 0, fmt.Errorf("the profile of the heap has no %q", name)
		}
		digits := bytes.IndexFunc(rest, func(r rune) bool { return r < '0' || r > '9' })
		n, err := strconv.ParseFloat(string(rest[:max(digits, 0)]), 64)
		if err != nil {
			return 0, err
		}
		sum += n
	}
	return sum, nil
}

// status is what Usher's admin API tells about a service.
type status struct {
	State     string
	Waiting   int
	Instances struct{ Starting, Ready, Ejected, Draining int }
	Slots     struct {
		InUse int `json:"in_use"`
	}
}

func (s *server) service(name string) (status, error) {
	var st status
	text, err := s.askAdmin(http.MethodGet, "/usher/services/"+name, "", nil)
	if err == nil {
		err = json.Unmarshal(text, &st)
	}
	return st, err
}

// awaitService waits until the service is as it should be.
func (s *server) awaitService(name, what string, cond func(status) bool) error {
	var last status
	err := await(60*time.Second, what, func() bool {
		st, err := s.service(name)
		last = st
		return err == nil && cond(st)
	})
	if err != nil {
		return fmt.Errorf("service %s: %w (%+v)\n%s", name, err, last, s.output())
	}
	return nil
}
