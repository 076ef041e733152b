package hub

import (
	"bytes"
	"encoding/json"
	"reflect"
	"strings"
	"time"

	"github.com/caddyserver/caddy/v2"
)

var durationType = reflect.TypeFor[caddy.Duration]()

// spellDurations encodes v, and writes its durations as text ("2m0s"): Caddy
// encodes them as numbers of nanoseconds, and reads both.
func spellDurations(v any) (json.RawMessage, error) {
	raw, err := json.Marshal(v)
	if err != nil {
		return nil, err
	}
	return spellIn(reflect.ValueOf(v), raw)
}

// spellIn does that to raw, which encodes v. What encodes itself is left alone.
func spellIn(v reflect.Value, raw json.RawMessage) (json.RawMessage, error) {
	for v.Kind() == reflect.Pointer || v.Kind() == reflect.Interface {
		if v.IsNil() {
			return raw, nil
		}
		v = v.Elem()
	}
	if v.Type() == durationType {
		return json.Marshal(time.Duration(v.Int()).String())
	}
	if v.Kind() != reflect.Struct || !bytes.HasPrefix(bytes.TrimSpace(raw), []byte("{")) {
		return raw, nil
	}
	fields := make(map[string]reflect.Value)
	jsonFields(v, fields)
	return editObject(raw, func(key string, value json.RawMessage) (json.RawMessage, error) {
		if f, ok := fields[key]; ok {
			return spellIn(f, value)
		}
		return value, nil
	})
}

// jsonFields finds the fields of a struct by their names in JSON.
func jsonFields(v reflect.Value, fields map[string]reflect.Value) {
	for k := range v.NumField() {
		f := v.Type().Field(k)
		name, _, _ := strings.Cut(f.Tag.Get("json"), ",")
		switch {
		case f.Anonymous && name == "" && f.Type.Kind() == reflect.Struct:
			jsonFields(v.Field(k), fields)
		case f.IsExported() && name != "-" && name != "":
			fields[name] = v.Field(k)
		}
	}
}

// editObject changes the values of an object, and keeps their order.
func editObject(raw json.RawMessage, edit func(key string, value json.RawMessage) (json.RawMessage, error)) (json.RawMessage, error) {
	dec := json.NewDecoder(bytes.NewReader(raw))
	if _, err := dec.Token(); err != nil {
		return nil, err
	}
	out := []byte("{")
	for dec.More() {
		key, err := dec.Token()
		if err != nil {
			return nil, err
		}
		var value json.RawMessage
		if err := dec.Decode(&value); err != nil {
			return nil, err
		}
		name, _ := key.(string)
		if value, err = edit(name, value); err != nil {
			return nil, err
		}
		if len(out) > 1 {
			out = append(out, ',')
		}
		quoted, err := json.Marshal(name)
		if err != nil {
			return nil, err
		}
		out = append(append(append(out, quoted...), ':'), value...)
	}
	return append(out, '}'), nil
}
