package marathonsim

import (
	"bytes"
	"encoding/json"
	"errors"
	"io"
	"math"
	"strconv"
	"time"
)

// An object is a JSON object written out member by member, in Marathon's own
// order. Structs with omitempty would flatten the difference between null,
// empty and absent, which is where real Marathons trip their clients: here a
// member is absent only if it was not appended.
type object []member

type member struct {
	name  string
	value any
}

// MarshalJSON writes the members in the order in which they were appended.
func (o object) MarshalJSON() ([]byte, error) {
	var b bytes.Buffer
	b.WriteByte('{')
	for i, m := range o {
		if i > 0 {
			b.WriteByte(',')
		}
		b.Write(marshal(m.name))
		b.WriteByte(':')
		b.Write(marshal(m.value))
	}
	b.WriteByte('}')
	return b.Bytes(), nil
}

// marshal writes JSON without the escapes for HTML, which Marathon does not
// use either.
func marshal(v any) []byte {
	var b bytes.Buffer
	enc := json.NewEncoder(&b)
	enc.SetEscapeHTML(false)
	if err := enc.Encode(v); err != nil {
		panic("marathonsim: " + err.Error()) // only values made here are written
	}
	return bytes.TrimRight(b.Bytes(), "\n")
}

// stamp is a moment as Marathon writes it, in UTC and milliseconds.
func stamp(t time.Time) string { return t.UTC().Format("2006-01-02T15:04:05.000Z") }

// parseJSON reads one JSON value; numbers keep their text.
func parseJSON(data []byte) (any, error) {
	dec := json.NewDecoder(bytes.NewReader(data))
	dec.UseNumber()
	var v any
	if err := dec.Decode(&v); err != nil {
		return nil, err
	}
	if _, err := dec.Token(); !errors.Is(err, io.EOF) {
		return nil, errors.New("Unexpected character after the value") //nolint:staticcheck // the words go out as they are
	}
	return v, nil
}

// num is a number as JSON without a fraction that is not there.
func num(f float64) json.Number {
	if f == math.Trunc(f) && math.Abs(f) < 1e15 {
		return json.Number(strconv.FormatInt(int64(f), 10))
	}
	return json.Number(strconv.FormatFloat(f, 'f', -1, 64))
}

// The accessors below read a JSON tree; what is absent, null or of another
// type is the default.

func asMap(v any) map[string]any { m, _ := v.(map[string]any); return m }

func asList(v any) []any { l, _ := v.([]any); return l }

func asString(v any, def string) string {
	if s, ok := v.(string); ok {
		return s
	}
	return def
}

func asFloat(v any, def float64) float64 {
	switch n := v.(type) {
	case json.Number:
		if f, err := n.Float64(); err == nil {
			return f
		}
	case float64:
		return n
	case int:
		return float64(n)
	}
	return def
}

func asInt(v any, def int) int { return int(asFloat(v, float64(def))) }

func asBool(v any, def bool) bool {
	if b, ok := v.(bool); ok {
		return b
	}
	return def
}

func seconds(f float64) time.Duration { return time.Duration(f * float64(time.Second)) }

func asStrings(v any) []string {
	var out []string
	for _, e := range asList(v) {
		out = append(out, asString(e, ""))
	}
	return out
}
