package process

import (
	"encoding/json"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/caddy-usher/usher/scaler"
)

// FuzzRecords reads any text as the record of a process of an earlier boot.
// Whatever a record says, only the files of its own instance go.
func FuzzRecords(f *testing.F) {
	const instance = "0123456789abcdef"
	for _, seed := range []string{
		`{"instance":"0123456789abcdef","service":"web","pid":1,"start_time":1,"stop_signal":15,"owner":{"pid":1,"boot_id":"x"}}`,
		`{"instance":"0123456789abcdef","stop_signal":-1,"socket":"{dir}/0123456789abcdef/s","output":["{dir}/0123456789abcdef.out","{dir}/bystander","../bystander"],"owner":{"pid":1,"boot_id":"x"}}`,
		`{"instance":"0123456789abcdef","stop_signal":65,"socket":"{dir}/bystander/s","output":["{dir}/0123456789abcdef./../bystander"],"owner":{"pid":2147483647,"boot_id":"x","pid_namespace":"y"}}`,
		`{"instance":"../bystander","owner":{"pid":1,"boot_id":"x"}}`, `{"instance":"0123456789abcdef"}`, `null`, `{`, ``, `[]`,
	} {
		f.Add(seed)
	}
	own, err := ownIdentity()
	if err != nil {
		f.Fatal(err)
	}
	dir := f.TempDir()
	f.Fuzz(func(t *testing.T, text string) {
		path := filepath.Join(dir, instance+recordSuffix)
		bystanders := []string{filepath.Join(dir, "bystander"), filepath.Join(dir, "0123456789abcdeg.json"), filepath.Join(dir, "other", "s")}
		for _, by := range bystanders {
			if err := os.MkdirAll(filepath.Dir(by), 0o700); err != nil {
				t.Fatal(err)
			}
			if err := os.WriteFile(by, nil, 0o600); err != nil {
				t.Fatal(err)
			}
		}
		if err := os.WriteFile(path, []byte(strings.ReplaceAll(text, "{dir}", dir)), 0o600); err != nil {
			t.Fatal(err)
		}
		r, err := parseRecord(path)
		if err != nil {
			return
		}
		if r.Instance != instance || r.StopSignal <= 0 || r.StopSignal > lastPlainSignal || r.Owner.PID <= 0 {
			t.Fatalf("%+v is taken for a record", r)
		}
		if r.Owner.BootID == own.BootID {
			return // it names processes that may live
		}
		if !r.orphaned(own) {
			t.Fatal("the Caddy of another boot is taken for alive")
		}
		r.end(t.Context(), dir, own, quiet())
		if _, err := os.Stat(path); err == nil {
			t.Error("the record is still there")
		}
		for _, by := range bystanders {
			if _, err := os.Stat(by); err != nil {
				t.Errorf("a record of another instance takes %s away: %v", by, err)
			}
		}
	})
}

// FuzzRecordsComeBack writes a record down and reads it again.
func FuzzRecordsComeBack(f *testing.F) {
	f.Add("web", "r1", "tcp", "127.0.0.1:21000", 15, 42, uint64(7))
	f.Add("w\"\x00\xff", "\n}", "unix", strings.Repeat("a", 200), 0, -1, uint64(1<<63))
	dir := f.TempDir()
	f.Fuzz(func(t *testing.T, service, revision, network, address string, sig, pid int, start uint64) {
		r := &record{
			// As the JSON of a configuration leaves them.
			Instance: "0123456789abcdef", Service: strings.ToValidUTF8(service, ""), Revision: strings.ToValidUTF8(revision, ""),
			Network: strings.ToValidUTF8(network, ""), Address: strings.ToValidUTF8(address, ""), StopSignal: sig,
		}
		defer os.Remove(filepath.Join(dir, r.Instance+recordSuffix))
		if err := r.create(dir); err != nil {
			t.Fatal(err)
		}
		if err := r.complete(pid, start); err != nil {
			t.Fatal(err)
		}
		got, err := parseRecord(filepath.Join(dir, r.Instance+recordSuffix))
		if err != nil {
			t.Fatal(err)
		}
		want, _ := json.Marshal(r)
		if sig <= 0 || sig > lastPlainSignal {
			r.StopSignal = got.StopSignal
			want, _ = json.Marshal(r)
		}
		if again, _ := json.Marshal(got); string(again) != string(want) {
			t.Errorf("written %s\nread %s", want, again)
		}
	})
}

// FuzzOutput splits what an instance writes into lines, in pieces of any size.
// What reaches the log and the reason of a failure are lines of readable
// text, no longer than the limit, and none is lost.
func FuzzOutput(f *testing.F) {
	for _, seed := range []string{
		"one\ntwo\r\nthree", "\x1b[31mred\x1b[0m\n", "half\rother\x00\x07\x08\n", "\xff\xfe\n\n\n", "a\u202eb\u2028c\n", "data: {}\n\nevent: x\n", strings.Repeat("x", maxLine+10) + "\ny\n",
	} {
		f.Add([]byte(seed), 3)
	}
	f.Fuzz(func(t *testing.T, written []byte, size int) {
		out := newOutput(nil)
		s := &splitter{out: out, stream: "stdout"}
		now := time.Unix(1, 0)
		size = max(1, size)
		for rest := written; len(rest) > 0; {
			n := min(size, len(rest))
			s.write(rest[:n], now)
			rest = rest[n:]
		}
		s.flush(now)
		want := strings.Count(string(written), "\n")
		if len(written) > 0 && written[len(written)-1] != '\n' {
			want++
		}
		if out.count != want {
			t.Errorf("%d lines, want %d", out.count, want)
		}
		for _, line := range out.last {
			// What is not readable is written as something longer.
			if len(line) > 8*maxLine || scaler.Readable(line) != line {
				t.Errorf("%q is no line", line)
			}
		}
		if n := strings.Count(out.tail(), "\n"); n > keptLines {
			t.Errorf("%d last lines", n)
		}
	})
}
