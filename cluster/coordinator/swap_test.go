package coordinator

import (
	"context"
	"errors"
	"strings"
	"testing"

	"github.com/caddy-usher/usher/cluster"
)

// script is a store whose answers are given. It is used up at the end of a test.
type script struct {
	t    *testing.T
	gets []any // what Get returns: a View, bytes, nil for no value, or an error
	puts []any // what Put returns: a SwapResult, or an error with Failed or Unknown
	seen []string
}

type failure struct {
	result cluster.SwapResult
	error
}

func next[T any](t *testing.T, all *[]T) T {
	t.Helper()
	if len(*all) == 0 {
		t.Fatal("a call too many")
	}
	first := (*all)[0]
	*all = (*all)[1:]
	return first
}

func (s *script) Get(context.Context) ([]byte, string, error) {
	revision := string(rune('a' + len(s.gets)))
	switch v := next(s.t, &s.gets).(type) {
	case cluster.View:
		data, err := Encode("main", v)
		return data, revision, err
	case []byte:
		return v, revision, nil
	case error:
		return nil, "", v
	}
	return nil, "", nil
}

func (s *script) Put(_ context.Context, value []byte, revision string) (cluster.SwapResult, error) {
	s.seen = append(s.seen, revision+" "+string(value))
	v := next(s.t, &s.puts)
	if f, ok := v.(failure); ok {
		return f.result, f.error
	}
	return v.(cluster.SwapResult), nil
}

func (s *script) String() string { return "the object" }
func (s *script) Close() error   { return nil }

func TestSwap(t *testing.T) {
	first := cluster.View{Number: 1, Leader: "a", Members: []cluster.Peer{{Boot: "a"}}}
	second := cluster.View{Number: 2, Leader: "a", Members: first.Members}
	third := cluster.View{Number: 3, Leader: "a", Members: first.Members}
	broken := errors.New("broken")
	for _, c := range []struct {
		name         string
		gets, puts   []any
		expect, next cluster.View
		want         cluster.SwapResult
		found        cluster.View
		revision     string // of the last Put
		err          string
	}{
		{name: "the first view", gets: []any{nil}, puts: []any{cluster.Swapped}, next: first, want: cluster.Swapped, revision: ""},
		{name: "the revision is the one just read", gets: []any{first}, puts: []any{cluster.Swapped}, expect: first, next: second, want: cluster.Swapped, revision: "b"},
		{name: "another view", gets: []any{second}, expect: first, next: second, want: cluster.Conflict, found: second},
		{name: "no view", gets: []any{nil}, expect: first, next: second, want: cluster.Conflict},
		{name: "a view and none expected", gets: []any{first}, next: first, want: cluster.Conflict, found: first},
		{name: "lost the race", gets: []any{first, second}, puts: []any{cluster.Conflict}, expect: first, next: second, want: cluster.Conflict, found: second, revision: "c"},
		{
			name: "the object was touched and holds the same view", gets: []any{first, first},
			puts: []any{cluster.Conflict, cluster.Swapped}, expect: first, next: second, want: cluster.Swapped, revision: "b",
		},
		{
			name: "lost the race and cannot read", gets: []any{first, broken}, puts: []any{cluster.Conflict},
			expect: first, next: second, want: cluster.Failed, revision: "c", err: "the object cannot be read: broken",
		},
		{name: "cannot read", gets: []any{broken}, expect: first, next: second, want: cluster.Failed, err: "the object cannot be read: broken"},
		{name: "cannot decode", gets: []any{[]byte("x")}, next: first, want: cluster.Failed, err: "the object: the object is not what Usher stores"},
		{name: "cannot encode", next: cluster.View{}, want: cluster.Failed, err: "cannot be stored"},
		{
			name: "refused", gets: []any{first}, puts: []any{failure{cluster.Failed, broken}}, expect: first, next: second,
			want: cluster.Failed, revision: "b", err: "the object was not written: broken",
		},
		{
			name: "no answer", gets: []any{second}, puts: []any{failure{cluster.Unknown, broken}}, expect: second, next: third,
			want: cluster.Unknown, revision: "b", err: "the object may have been written, or may still be: broken",
		},
	} {
		t.Run(c.name, func(t *testing.T) {
			s := &script{t: t, gets: c.gets, puts: c.puts}
			puts := len(c.puts)
			result, found, err := Over("main", s).Swap(t.Context(), c.expect, c.next)
			if result != c.want || !found.Equal(c.found) {
				t.Errorf("result %d, found %v; want %d and %v", result, found, c.want, c.found)
			}
			if c.err == "" && err != nil || c.err != "" && (err == nil || !strings.Contains(err.Error(), c.err)) {
				t.Errorf("error %v, want %q", err, c.err)
			}
			if len(s.gets) > 0 || len(s.puts) > 0 || len(s.seen) != puts {
				t.Errorf("left: %v %v, written: %v", s.gets, s.puts, s.seen)
			}
			if puts > 0 {
				data, err := Encode("main", c.next)
				if want := c.revision + " " + string(data); err != nil || s.seen[puts-1] != want {
					t.Errorf("written: %s, want %s", s.seen[puts-1], want)
				}
			}
		})
	}
}
