package registry

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"maps"
	"slices"
	"strconv"
	"unicode/utf8"
)

const (
	// MaxBody is the most bytes that a body, and a definition, may have.
	MaxBody = 64 << 10

	// maxDepth is how deep objects and arrays may be nested.
	maxDepth = 32
)

// parse reads one JSON value into map[string]any, []any, string, json.Number, bool
// or nil. Unlike json.Unmarshal it refuses keys that occur twice, deep nesting and
// bytes that are not UTF-8: two readers must not see two different things in a text.
func parse(data []byte) (any, error) {
	if len(data) > MaxBody {
		return nil, fmt.Errorf("it has more than %d bytes", MaxBody)
	}
	if !utf8.Valid(data) {
		return nil, errors.New("it is not valid UTF-8")
	}
	d := json.NewDecoder(bytes.NewReader(data))
	d.UseNumber()
	value, err := parseValue(d, 0)
	if errors.Is(err, io.EOF) {
		return nil, errors.New("it ends too early")
	}
	if err != nil {
		return nil, err
	}
	if _, err := d.Token(); !errors.Is(err, io.EOF) {
		return nil, errors.New("there is something after its end")
	}
	return value, nil
}

func parseValue(d *json.Decoder, depth int) (any, error) {
	token, err := d.Token()
	if err != nil {
		return nil, err
	}
	delim, ok := token.(json.Delim)
	if !ok {
		return token, nil
	}
	if depth == maxDepth {
		return nil, fmt.Errorf("it is nested deeper than %d levels", maxDepth)
	}
	if delim == '[' {
		return parseArray(d, depth+1)
	}
	return parseObject(d, depth+1)
}

func parseArray(d *json.Decoder, depth int) (any, error) {
	list := []any{}
	for d.More() {
		value, err := parseValue(d, depth)
		if err != nil {
			return nil, err
		}
		list = append(list, value)
	}
	_, err := d.Token()
	return list, err
}

func parseObject(d *json.Decoder, depth int) (any, error) {
	object := map[string]any{}
	for d.More() {
		token, err := d.Token()
		if err != nil {
			return nil, err
		}
		key := token.(string) // the decoder permits nothing else here
		if _, twice := object[key]; twice {
			return nil, fmt.Errorf("the key %q occurs twice in one object", key)
		}
		if object[key], err = parseValue(d, depth); err != nil {
			return nil, err
		}
	}
	_, err := d.Token()
	return object, err
}

// render writes a value that parse has read, or a definition: compact, with sorted keys,
// and the same bytes for the same value each time.
func render(value any) []byte {
	var b bytes.Buffer
	e := json.NewEncoder(&b)
	e.SetEscapeHTML(false)
	if err := e.Encode(value); err != nil {
		// Such values can always be written.
		panic(fmt.Sprintf("a JSON value cannot be written: %v", err))
	}
	return bytes.TrimSuffix(b.Bytes(), []byte("\n"))
}

// mergePatch returns target with patch applied, as RFC 7396 says. It changes neither.
func mergePatch(target, patch any) any {
	changes, ok := patch.(map[string]any)
	if !ok {
		return patch
	}
	merged := map[string]any{}
	if object, ok := target.(map[string]any); ok {
		maps.Copy(merged, object)
	}
	for key, value := range changes {
		if value == nil {
			delete(merged, key)
			continue
		}
		merged[key] = mergePatch(merged[key], value)
	}
	return merged
}

// eachString calls f for each string in value with its path, and for each key with
// the path of its object. It stops at the first error.
func eachString(value any, path []string, f func(path []string, text string, key bool) error) error {
	switch v := value.(type) {
	case string:
		return f(path, v, false)
	case []any:
		for i, item := range v {
			if err := eachString(item, append(slices.Clip(path), strconv.Itoa(i)), f); err != nil {
				return err
			}
		}
	case map[string]any:
		for _, key := range sortedKeys(v) {
			if err := f(path, key, true); err != nil {
				return err
			}
			if err := eachString(v[key], append(slices.Clip(path), key), f); err != nil {
				return err
			}
		}
	}
	return nil
}

// mapStrings returns a copy of value in which f has replaced each string that is not
// a key.
func mapStrings(value any, f func(string) string) any {
	switch v := value.(type) {
	case string:
		return f(v)
	case []any:
		list := make([]any, len(v))
		for i, item := range v {
			list[i] = mapStrings(item, f)
		}
		return list
	case map[string]any:
		object := make(map[string]any, len(v))
		for key, item := range v {
			object[key] = mapStrings(item, f)
		}
		return object
	default:
		return value
	}
}

func sortedKeys[V any](m map[string]V) []string {
	keys := make([]string, 0, len(m))
	for key := range m {
		keys = append(keys, key)
	}
	slices.Sort(keys)
	return keys
}
