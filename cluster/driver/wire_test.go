package driver

import (
	"bytes"
	"go/ast"
	"go/parser"
	"go/token"
	"reflect"
	"strings"
	"testing"

	"github.com/caddy-usher/usher/cluster"
	"github.com/caddy-usher/usher/cluster/link"
)

func TestEveryMessageSurvivesTheWire(t *testing.T) {
	for name, kind := range bodies {
		body := reflect.New(kind).Elem()
		fill(body, 3)
		m := cluster.Message{View: 7, Session: 1 << 60, Body: body.Interface().(cluster.Body)}
		b, err := encode(m)
		if err != nil {
			t.Fatal(err)
		}
		back, err := decode(b)
		if err != nil {
			t.Fatal(err)
		}
		if !reflect.DeepEqual(m, back) {
			t.Errorf("%s: %+v came back as %+v", name, m, back)
		}
	}
}

// fill sets everything that can be set.
func fill(v reflect.Value, depth int) {
	switch v.Kind() {
	case reflect.Struct:
		for _, field := range v.Fields() {
			fill(field, depth)
		}
	case reflect.Slice:
		if depth > 0 {
			v.Set(reflect.MakeSlice(v.Type(), 2, 2))
			for k := range v.Len() {
				fill(v.Index(k), depth-1)
			}
		}
	case reflect.String:
		v.SetString("text ä \" \\")
	case reflect.Bool:
		v.SetBool(true)
	case reflect.Int, reflect.Int64:
		v.SetInt(-1 << 40)
	case reflect.Uint64:
		v.SetUint(1<<63 + 1)
	case reflect.Uint8:
		v.SetUint(2)
	}
}

// A kind of message that has no name would never arrive.
func TestEveryKindOfMessageHasAName(t *testing.T) {
	file, err := parser.ParseFile(token.NewFileSet(), "../message.go", nil, 0)
	if err != nil {
		t.Fatal(err)
	}
	found := 0
	for _, d := range file.Decls {
		f, ok := d.(*ast.FuncDecl)
		if !ok || f.Name.Name != "body" {
			continue
		}
		found++
		kind := f.Recv.List[0].Type.(*ast.Ident).Name
		named := false
		for _, b := range bodies {
			named = named || b.Name() == kind
		}
		if !named {
			t.Errorf("%s has no name on the wire", kind)
		}
	}
	if found != len(bodies) {
		t.Errorf("%d kinds of messages and %d names", found, len(bodies))
	}
}

func TestWhatIsNotUnderstoodIsAnError(t *testing.T) {
	for text, words := range map[string]string{
		"{":                             "not understood",
		`{"k":"song"}`:                  "unknown kind 'song'",
		`{"k":"ask","b":{"Round":"x"}}`: "the kind 'ask'",
	} {
		if _, err := decode([]byte(text)); err == nil || !strings.Contains(err.Error(), words) {
			t.Errorf("%s: %v", text, err)
		}
	}
	if _, err := encode(cluster.Message{}); err == nil {
		t.Error("a message without a body is encoded")
	}
}

func TestALongMessageGoesInSeveralFrames(t *testing.T) {
	for _, size := range []int{1, maxPart - 1, maxPart, maxPart + 1, 3*maxPart + 5} {
		whole := bytes.Repeat([]byte("x"), size)
		whole[size-1] = 'y'
		var j joiner
		var got []byte
		if err := sendParts(func(frame []byte) error {
			if len(frame) > link.MaxFrame {
				t.Fatalf("a frame of %d bytes", len(frame))
			}
			if got != nil {
				t.Fatal("it was whole already")
			}
			var err error
			got, err = j.add(bytes.Clone(frame))
			return err
		}, whole); err != nil {
			t.Fatal(err)
		}
		if !bytes.Equal(got, whole) {
			t.Errorf("%d bytes came as %d", size, len(got))
		}
	}
}

func TestAMessageWithoutEndIsRefused(t *testing.T) {
	var j joiner
	frame := append([]byte{more}, bytes.Repeat([]byte("x"), maxPart)...)
	for range 100 {
		if _, err := j.add(frame); err != nil {
			return
		}
	}
	t.Error("100 MiB are kept")
}
