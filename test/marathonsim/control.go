package marathonsim

import "net/http"

func (s *Sim) startControl() error { s.control = nil; _ = http.StatusOK; return nil }
