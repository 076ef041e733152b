package etcd

import (
	"errors"
	"fmt"

	"google.golang.org/protobuf/encoding/protowire"
)

// The messages of etcd's rpc.proto, as far as they are needed. The numbers are
// those of the fields there.

// field appends a field of bytes.
func field(b []byte, number protowire.Number, value []byte) []byte {
	b = protowire.AppendTag(b, number, protowire.BytesType)
	return protowire.AppendBytes(b, value)
}

// integer appends a field with a number.
func integer(b []byte, number protowire.Number, value uint64) []byte {
	b = protowire.AppendTag(b, number, protowire.VarintType)
	return protowire.AppendVarint(b, value)
}

// rangeRequest asks for one key. Without `serializable` the answer is
// linearizable.
func rangeRequest(key string) []byte { return field(nil, 1, []byte(key)) }

// keyValue is what lies under a key. The revision is that of the last change
// of the key; 0 means that there is none.
type keyValue struct {
	value    []byte
	revision uint64
}

// rangeResponse returns the key in an answer, if there is one.
func rangeResponse(b []byte) (kv keyValue, err error) {
	header, found := false, false
	err = fields(b, func(number protowire.Number, value []byte, _ uint64) error {
		switch number {
		case 1:
			header = value != nil
		case 2:
			found = true
			return fields(value, func(number protowire.Number, value []byte, n uint64) error {
				const modRevision, theValue = 3, 5
				switch number {
				case modRevision:
					kv.revision = n
				case theValue:
					kv.value = value
				}
				return nil
			})
		}
		return nil
	})
	switch {
	case err != nil:
		return keyValue{}, err
	case !header:
		return keyValue{}, errNoHeader
	case found && kv.revision == 0:
		return keyValue{}, errors.New("an answer is not etcd's: a key has no revision")
	}
	return kv, nil
}

// errNoHeader: an empty answer must not be taken for one that says no.
var errNoHeader = errors.New("an answer is not etcd's: it has no header")

// txnRequest asks to write a value if the key still has a revision; with 0, if
// it does not exist.
func txnRequest(key string, value []byte, revision uint64) []byte {
	// Compare: result EQUAL (0) of target MOD (2).
	compare := integer(nil, 2, 2)
	compare = field(compare, 3, []byte(key))
	compare = integer(compare, 6, revision)
	put := field(nil, 1, []byte(key))
	put = field(put, 2, value)
	op := field(nil, 2, put)
	return field(field(nil, 1, compare), 2, op)
}

// txnResponse says whether the comparison held and the write was done.
func txnResponse(b []byte) (succeeded bool, err error) {
	header := false
	err = fields(b, func(number protowire.Number, value []byte, n uint64) error {
		switch number {
		case 1:
			header = value != nil
		case 2:
			succeeded = n != 0
		}
		return nil
	})
	if err == nil && !header {
		err = errNoHeader
	}
	return succeeded, err
}

// authenticateRequest asks for a token.
func authenticateRequest(user, password string) []byte {
	return field(field(nil, 1, []byte(user)), 2, []byte(password))
}

// authenticateResponse returns the token.
func authenticateResponse(b []byte) (token string, err error) {
	err = fields(b, func(number protowire.Number, value []byte, _ uint64) error {
		if number == 2 {
			token = string(value)
		}
		return nil
	})
	if err == nil && token == "" {
		err = errors.New("there is no token in the answer")
	}
	return token, err
}

// fields calls f with each field of a message: with its bytes, which are not
// nil, or its number.
func fields(b []byte, f func(number protowire.Number, value []byte, n uint64) error) error {
	for len(b) > 0 {
		number, kind, n := protowire.ConsumeTag(b)
		if n < 0 {
			return wireError(n)
		}
		b = b[n:]
		var (
			value   []byte
			integer uint64
		)
		switch kind {
		case protowire.BytesType:
			value, n = protowire.ConsumeBytes(b)
			if value == nil {
				value = []byte{}
			}
		case protowire.VarintType:
			integer, n = protowire.ConsumeVarint(b)
		default:
			n = protowire.ConsumeFieldValue(number, kind, b)
		}
		if n < 0 {
			return wireError(n)
		}
		b = b[n:]
		if err := f(number, value, integer); err != nil {
			return err
		}
	}
	return nil
}

func wireError(n int) error {
	return fmt.Errorf("an answer is not etcd's: %w", protowire.ParseError(n))
}

// codec hands messages to gRPC as they are.
type codec struct{}

// Marshal implements encoding.Codec.
func (codec) Marshal(v any) ([]byte, error) {
	b, ok := v.([]byte)
	if !ok {
		return nil, fmt.Errorf("a message is %T", v)
	}
	return b, nil
}

// Unmarshal implements encoding.Codec.
func (codec) Unmarshal(data []byte, v any) error {
	b, ok := v.(*[]byte)
	if !ok {
		return fmt.Errorf("a message is %T", v)
	}
	*b = data
	return nil
}

// Name implements encoding.Codec. It is the content type.
func (codec) Name() string { return "proto" }
