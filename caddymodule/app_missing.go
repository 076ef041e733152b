package caddymodule

import (
	"errors"
	"fmt"
	"io/fs"

	"go.uber.org/zap"

	"github.com/caddy-usher/usher/caddymodule/hub"
	"github.com/caddy-usher/usher/scaler"
)

// checkMissing decides whether the configuration is refused because this
// machine lacks something that the backend of a service needs.
func (a *App) checkMissing(name string, d *hub.Definition) error {
	f := d.Missing
	if f == nil {
		return nil
	}
	logger := a.generation.Logger.With(zap.String("service", name), zap.String("place", d.Place),
		zap.String("reason", string(f.Reason)), zap.Error(f))
	switch a.generation.Occasion {
	case hub.Boot:
		logger.Error("the service cannot be started: this machine lacks something that its backend needs; the other services serve, and this one is tried again when a request comes")
		return nil
	case hub.Reload:
		if a.hub.Runs(name, d) {
			logger.Warn("the service cannot be started: this machine lacks something that its backend needs; the reload goes on because it does not change that backend")
			return nil
		}
	case hub.Validation:
		if f.Reason == scaler.ReasonForbidden {
			logger.Warn("what the backend of the service needs cannot be checked with the rights of this user")
			return nil
		}
	}
	return fmt.Errorf("service %s (%s): backend %s: %w", name, d.Place, d.BackendType(), f)
}

// loadPage loads the template of a waiting page. If its file cannot be used, it
// decides whether the configuration is refused, as checkMissing does: if not,
// visitors see the built-in page.
func (a *App) loadPage(service, place string, p *WaitingPage) error {
	key := hub.PageFile{Service: service, File: p.File}
	err := p.load(p.File)
	if err == nil || p.File == "" {
		return err
	}
	logger := a.generation.Logger.With(zap.String("service", service), zap.String("place", place),
		zap.String("file", p.File), zap.Error(err))
	switch a.generation.Occasion {
	case hub.Boot:
		logger.Warn("the file of the waiting page cannot be used: visitors of the service see the built-in page until a reload can read the file")
	case hub.Reload:
		if !a.hub.LacksPage(key) {
			return err
		}
		logger.Warn("the file of the waiting page cannot be used: visitors of the service see the built-in page; the reload goes on because the configuration in force could not use it either")
	case hub.Validation:
		if !errors.Is(err, fs.ErrPermission) {
			return err
		}
		logger.Warn("the file of the waiting page cannot be checked with the rights of this user")
	}
	a.generation.Lacking[key] = struct{}{}
	return p.load("")
}
