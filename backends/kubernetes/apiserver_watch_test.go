package kubernetes

import (
	"encoding/json"
	"fmt"
	"net/http"
	"strconv"
)

// watch streams the history from a version on.
func (s *apiServer) watch(w http.ResponseWriter, r *http.Request, c call) {
	s.mu.Lock()
	at, _ := strconv.Atoi(c.query["resourceVersion"])
	var first []logged
	if at <= s.compacted {
		first = append(first, logged{kind: "ERROR", object: encode(statusObject(410, "too old resource version"))})
	}
	drops, fleeting := s.drops, s.fleeting
	s.watches++
	s.mu.Unlock()
	defer func() {
		s.mu.Lock()
		s.watches--
		s.mu.Unlock()
	}()
	w.Header().Set("Content-Type", "application/json")
	w.WriteHeader(http.StatusOK)
	send := func(e logged) bool {
		_, err := fmt.Fprintf(w, "{\"type\":%q,\"object\":%s}\n", e.kind, e.object)
		return err == nil && http.NewResponseController(w).Flush() == nil
	}
	if http.NewResponseController(w).Flush() != nil {
		return
	}
	for _, e := range first {
		if !send(e) || e.kind == "ERROR" {
			return
		}
	}
	if fleeting {
		return
	}
	for {
		s.mu.Lock()
		var news []logged
		if !s.held {
			for _, e := range s.history {
				if e.rv <= at || e.resource != c.resource {
					continue
				}
				if o := (object{}); !s.spaces || json.Unmarshal(e.object, &o) == nil && s.concerns(c, o) {
					news = append(news, e)
				}
			}
		}
		if len(news) > 0 {
			at = news[len(news)-1].rv
		}
		if s.swap {
			for i := 0; i+1 < len(news); i += 2 {
				news[i], news[i+1] = news[i+1], news[i]
			}
		}
		turn, dropped := s.turn, s.drops != drops
		s.mu.Unlock()
		if dropped {
			return
		}
		for _, e := range news {
			if !send(e) {
				return
			}
		}
		select {
		case <-turn:
		case <-r.Context().Done():
			return
		}
	}
}

// dropWatches cuts all watches.
func (s *apiServer) dropWatches() {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.drops++
	close(s.turn)
	s.turn = make(chan struct{})
}

// compact forgets the history: a watch that was cut cannot be taken up again.
func (s *apiServer) compact() {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.history, s.compacted = nil, s.rv
	s.rv++
}
