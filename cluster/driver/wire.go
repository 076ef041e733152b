package driver

import (
	"encoding/json"
	"fmt"
	"reflect"

	"github.com/caddy-usher/usher/cluster"
	"github.com/caddy-usher/usher/cluster/link"
)

// bodies are the kinds of messages by the name that they have on the wire. A
// change of a kind needs another link.Version.
var bodies = map[string]reflect.Type{
	"hello":     reflect.TypeFor[cluster.Hello](),
	"welcome":   reflect.TypeFor[cluster.Welcome](),
	"heartbeat": reflect.TypeFor[cluster.Heartbeat](),
	"ack":       reflect.TypeFor[cluster.Ack](),
	"grant":     reflect.TypeFor[cluster.Grant](),
	"return":    reflect.TypeFor[cluster.Return](),
	"recall":    reflect.TypeFor[cluster.Recall](),
	"need":      reflect.TypeFor[cluster.Need](),
	"leave":     reflect.TypeFor[cluster.Leave](),
	"announce":  reflect.TypeFor[cluster.Announce](),
	"ask":       reflect.TypeFor[cluster.Ask](),
	"still":     reflect.TypeFor[cluster.Still](),
	"view":      reflect.TypeFor[cluster.NewView](),
}

var names = func() map[reflect.Type]string {
	m := make(map[reflect.Type]string, len(bodies))
	for name, t := range bodies {
		m[t] = name
	}
	return m
}()

// envelope is a message on the wire.
type envelope struct {
	View    uint64          `json:"v,omitempty"`
	Session uint64          `json:"s,omitempty"`
	Kind    string          `json:"k"`
	Body    json.RawMessage `json:"b,omitempty"`
}

func encode(m cluster.Message) ([]byte, error) {
	kind, ok := names[reflect.TypeOf(m.Body)]
	if !ok {
		return nil, fmt.Errorf("a message of type %T has no name on the wire", m.Body)
	}
	body, err := json.Marshal(m.Body)
	if err != nil {
		return nil, fmt.Errorf("encoding a message of type %T: %w", m.Body, err)
	}
	return json.Marshal(envelope{m.View, m.Session, kind, body})
}

func decode(b []byte) (m cluster.Message, err error) {
	var e envelope
	if err := json.Unmarshal(b, &e); err != nil {
		return m, fmt.Errorf("a message that is not understood: %w", err)
	}
	t, ok := bodies[e.Kind]
	if !ok {
		return m, fmt.Errorf("a message of the unknown kind '%s'", e.Kind)
	}
	body := reflect.New(t)
	if len(e.Body) > 0 {
		if err := json.Unmarshal(e.Body, body.Interface()); err != nil {
			return m, fmt.Errorf("a message of the kind '%s' that is not understood: %w", e.Kind, err)
		}
	}
	return cluster.Message{View: e.View, Session: e.Session, Body: body.Elem().Interface().(cluster.Body)}, nil
}

// The first byte of a frame says whether the message goes on in the next one, as
// a Caddy may have many thousand services, or that the frame has something else:
// notes, or news, which the leader passes on.
const (
	last = iota
	more
	notes
	news
	newsOn // news that the leader has passed on
)

// maxPart is the most of a message that goes into one frame.
const maxPart = link.MaxFrame - 1

// sendParts sends a message in as many frames as it takes.
func sendParts(send func([]byte) error, b []byte) error {
	frame := make([]byte, 0, min(len(b), maxPart)+1)
	for {
		part, kind := b, byte(last)
		if len(b) > maxPart {
			part, kind = b[:maxPart], more
		}
		if err := send(append(append(frame[:0], kind), part...)); err != nil {
			return err
		}
		if b = b[len(part):]; kind == last {
			return nil
		}
	}
}

// joiner puts messages together that came in several frames.
type joiner struct{ begun []byte }

// maxMessage bounds what a peer can make this Caddy keep.
const maxMessage = link.MaxQueued

// add takes a frame. It returns the message that is whole with it, or nil.
func (j *joiner) add(frame []byte) ([]byte, error) {
	kind, part := frame[0], frame[1:]
	if len(j.begun)+len(part) > maxMessage {
		return nil, fmt.Errorf("a message of more than %d bytes", maxMessage)
	}
	switch {
	case kind == more:
		j.begun = append(j.begun, part...)
		return nil, nil
	case kind != last:
		return nil, fmt.Errorf("a frame of the unknown kind %d", kind)
	case j.begun == nil:
		return part, nil
	}
	whole := append(j.begun, part...)
	j.begun = nil
	return whole, nil
}
