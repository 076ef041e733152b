package marathonsim

import (
	"encoding/json"
	"fmt"
	"net"
	"net/http"
	"strconv"
	"time"
)

// startControl opens the control server. It is at an address of its own, so
// that no client of the API can reach it by accident.
func (s *Sim) startControl() error {
	addr := s.cfg.ControlListen
	if addr == "" {
		addr = fmt.Sprintf("127.0.%d.252:0", s.cfg.subnet)
	}
	ln, err := net.Listen("tcp", addr)
	if err != nil {
		return err
	}
	s.controlAddr = ln.Addr().String()
	s.control = &http.Server{Handler: s.controlHandler()}
	s.background.Go(func() { _ = s.control.Serve(ln) })
	return nil
}

// ControlURL is where the control server is, for tests in another
// process than the simulator.
func (s *Sim) ControlURL() string { return "http://" + s.controlAddr + "/_sim" }

func (s *Sim) controlHandler() http.Handler {
	mux := http.NewServeMux()
	do := func(pattern string, f func(r *http.Request) (any, error)) {
		mux.HandleFunc(pattern, func(w http.ResponseWriter, r *http.Request) {
			v, err := f(r)
			w.Header().Set("Content-Type", "application/json")
			if err != nil {
				w.WriteHeader(http.StatusBadRequest)
				v = map[string]string{"error": err.Error()}
			}
			_, _ = w.Write(append(marshal(v), '\n'))
		})
	}
	act := func(pattern string, f func()) {
		do(pattern, func(*http.Request) (any, error) { f(); return "done", nil })
	}
	numbered := func(pattern string, count int, f func(int)) {
		do(pattern, func(r *http.Request) (any, error) {
			n, err := strconv.Atoi(r.PathValue("n"))
			if err != nil || n < 0 || n >= count {
				return nil, fmt.Errorf("there is no number %q; they are counted from 0 to %d", r.PathValue("n"), count-1)
			}
			f(n)
			return "done", nil
		})
	}

	do("POST /_sim/faults", func(r *http.Request) (any, error) {
		// Durations are words here: "delay":"2s".
		var f struct {
			Fault
			Delay string `json:"delay"`
		}
		if err := json.NewDecoder(r.Body).Decode(&f); err != nil {
			return nil, err
		}
		if f.Delay != "" {
			d, err := time.ParseDuration(f.Delay)
			if err != nil {
				return nil, err
			}
			f.Fault.Delay = d
		}
		return map[string]int{"id": s.engine.faults.add(f.Fault)}, nil
	})
	do("DELETE /_sim/faults/{id}", func(r *http.Request) (any, error) {
		id, err := strconv.Atoi(r.PathValue("id"))
		s.engine.faults.remove(id)
		return "done", err
	})
	act("DELETE /_sim/faults", s.ClearFaults)
	numbered("POST /_sim/agents/{n}/partition", len(s.agents), s.Partition)
	numbered("POST /_sim/agents/{n}/lose", len(s.agents), s.Lose)
	numbered("POST /_sim/agents/{n}/heal", len(s.agents), s.Heal)
	numbered("POST /_sim/agents/{n}/drain", len(s.agents), func(n int) { s.Drain(n, true) })
	numbered("POST /_sim/agents/{n}/undrain", len(s.agents), func(n int) { s.Drain(n, false) })
	numbered("POST /_sim/nodes/{n}/crash", len(s.nodes), s.CrashNode)
	numbered("POST /_sim/nodes/{n}/start", len(s.nodes), s.StartNode)
	act("POST /_sim/abdicate", s.Abdicate)
	act("POST /_sim/streams/drop", s.DropStreams)
	act("POST /_sim/streams/silence", s.SilenceStreams)
	do("POST /_sim/clock/advance", func(r *http.Request) (any, error) {
		d, err := time.ParseDuration(r.FormValue("d"))
		if err == nil {
			s.Advance(d)
		}
		return "done", err
	})
	do("POST /_sim/tasks/{id}/kill", func(r *http.Request) (any, error) { return s.KillTask(r.PathValue("id")), nil })
	do("GET /_sim/tasks", func(*http.Request) (any, error) { return s.Tasks(), nil })
	do("GET /_sim/journal", func(r *http.Request) (any, error) {
		after, _ := strconv.Atoi(r.FormValue("after"))
		return s.Journal(after), nil
	})
	return mux
}
