package command

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"maps"
	"net/http"
	"os"
	"path/filepath"
	"slices"

	"github.com/caddy-usher/usher/caddymodule"
)

// apply makes the services that a file defines. What fails for one is not held
// against the others.
func (c *console) apply(o madeOptions, args []string) error {
	switch {
	case o.file == "":
		return errors.New("name the file with the definitions by -f, or - for the standard input")
	case o.createOnly && o.ifMatch != "":
		return errors.New("--create-only and --if-match exclude each other: a service that is created has no ETag yet")
	}
	name := ""
	if len(args) > 0 {
		name = args[0]
	}
	all, err := c.definitions(o.file, name)
	if err != nil {
		return err
	}
	if o.ifMatch != "" && len(all) != 1 {
		return fmt.Errorf("an ETag is that of one service, and %s defines %d: name the service, too", o.file, len(all))
	}
	return c.each(slices.Sorted(maps.Keys(all)), func(name string) error { return c.put(o, name, all[name]) })
}

// put makes or changes one service.
func (c *console) put(o madeOptions, name string, definition json.RawMessage) error {
	before, err := c.know(name)
	if refused, ok := errors.AsType[*refusedCall](err); ok && refused.status == http.StatusNotFound {
		before, err = nil, nil
	}
	if err != nil {
		return err
	}
	ch := &change{method: http.MethodPut, path: servicePath(name) + ownerQuery(o.owner), body: definition}
	switch {
	case o.ifMatch != "":
		ch.conditions = http.Header{"If-Match": {o.ifMatch}}
	case o.createOnly || before == nil || matching(before) == nil:
		ch.conditions = http.Header{"If-None-Match": {"*"}}
	default:
		ch.conditions = matching(before)
	}
	return c.change(name, o.wait, before, ch)
}

// definitions reads a file with definitions, and returns them by the names of the
// services: of all services, or of the one that is named.
func (c *console) definitions(file, name string) (map[string]json.RawMessage, error) {
	text, err := c.read(file)
	if err != nil {
		return nil, err
	}
	var all map[string]json.RawMessage
	if isJSON(file, text) {
		if all, err = definitionsOfJSON(text, name); err != nil {
			return nil, fmt.Errorf("%s: %w", file, err)
		}
	} else if all, err = caddymodule.ParseMade(file, text); err != nil {
		return nil, err
	}
	if name != "" {
		definition, ok := all[name]
		if !ok {
			return nil, fmt.Errorf("%s does not define the service %s", file, name)
		}
		all = map[string]json.RawMessage{name: definition}
	}
	if len(all) == 0 {
		return nil, fmt.Errorf("%s defines no service", file)
	}
	return all, nil
}

// fileMax bounds a file. A longer one has no definitions in it.
const fileMax = 64 << 20

func (c *console) read(file string) ([]byte, error) {
	rd := c.in
	if file != "-" {
		f, err := os.Open(file)
		if err != nil {
			return nil, err
		}
		defer f.Close()
		rd = f
	}
	text, err := io.ReadAll(io.LimitReader(rd, fileMax+1))
	switch {
	case err != nil:
		return nil, fmt.Errorf("reading %s: %w", file, err)
	case len(text) > fileMax:
		return nil, fmt.Errorf("%s is longer than %d bytes", file, fileMax)
	}
	return text, nil
}

// isJSON tells the two forms apart by the name of the file, else by its text.
func isJSON(file string, text []byte) bool {
	switch filepath.Ext(file) {
	case ".json":
		return true
	case ".caddyfile":
		return false
	}
	return bytes.HasPrefix(bytes.TrimSpace(text), []byte("{"))
}

// definitionsOfJSON reads definitions by the names of their services; or one, if its
// service is named.
func definitionsOfJSON(text []byte, name string) (map[string]json.RawMessage, error) {
	var all map[string]json.RawMessage
	if err := json.Unmarshal(text, &all); err != nil {
		return nil, fmt.Errorf("it is no JSON object: %w", err)
	}
	if name != "" {
		return map[string]json.RawMessage{name: bytes.TrimSpace(text)}, nil
	}
	for key, value := range all {
		var fields map[string]json.RawMessage
		if json.Unmarshal(value, &fields) != nil || fields == nil {
			return nil, fmt.Errorf("%q is no definition of a service. If the file has just one definition, name its service: 'caddy usher apply -f <file> <service>'", key)
		}
	}
	return all, nil
}
