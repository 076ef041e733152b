package command

import (
	"encoding/json"
	"io"
	"net/http"
	"net/http/httptest"
	"strings"
	"testing"
)

// splitAdmin answers as the admin API does about one split, and keeps what it is
// asked to change: method, condition and body.
func splitAdmin(t *testing.T, tag string) (address string, changes *[]string) {
	changes = new([]string)
	view := `{"name":"shop","on_failing":"next","sides":[{"service":"v1","weight":90,"share":0.9,"configured_weight":90},{"service":"v2","weight":10,"share":0.1,"configured_weight":10}]}`
	srv := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		w.Header().Set("ETag", `"now"`)
		switch {
		case r.URL.Path == "/usher/splits":
			_, _ = io.WriteString(w, "["+view+"]")
		case r.URL.Path != "/usher/splits/shop":
			w.WriteHeader(http.StatusNotFound)
			_, _ = io.WriteString(w, `{"error":"there is no split"}`)
		case r.Method != http.MethodGet && tag != r.Header.Get("If-Match"):
			w.WriteHeader(http.StatusPreconditionFailed)
			_, _ = io.WriteString(w, `{"error":"split shop has changed meanwhile: read it again"}`)
		case r.Method != http.MethodGet:
			b, _ := io.ReadAll(r.Body)
			*changes = append(*changes, r.Method+" "+string(b))
			_, _ = io.WriteString(w, `{"name":"shop","on_failing":"next","sides":[{"service":"v1","weight":90,"share":0.75,"configured_weight":90},{"service":"v2","weight":30,"share":0.25,"configured_weight":10}],"set":{"by":"the\u001b[2J API","at":"2026-03-04T12:30:00Z"}}`)
		default:
			_, _ = io.WriteString(w, view)
		}
	}))
	t.Cleanup(srv.Close)
	return srv.Listener.Addr().String(), changes
}

func TestTheCommandSplitShowsAndChangesWeights(t *testing.T) {
	t.Parallel()
	address, changes := splitAdmin(t, `"now"`)
	for _, c := range []struct{ args, want string }{
		{"split", "shop    v2        10       10%     10           -\n"},
		{"split shop", "shop    v1        90       90%     90           -\n"},
		{"split shop v2 30", `shop    v2        30       25%     10           2026-03-04T12:30:00Z by the\x1b[2J API` + "\n"},
		{"split shop reset", "SPLIT   SERVICE   WEIGHT   SHARE   CONFIGURED   SET\n"},
		{"split shop --json", `"configured_weight": 10`},
	} {
		stdout, stderr, err := command(address, strings.Fields(c.args)...)
		if err != nil || !strings.Contains(stdout, c.want) {
			t.Errorf("%s: want %q, got %q, %s, %v", c.args, c.want, stdout, stderr, err)
		}
	}
	var body struct{ Weights map[string]int }
	if len(*changes) != 2 || (*changes)[1] != "DELETE " || json.Unmarshal([]byte(strings.TrimPrefix((*changes)[0], "PUT ")), &body) != nil || body.Weights["v1"] != 90 || body.Weights["v2"] != 30 {
		t.Errorf("asked for %q", *changes)
	}
}

func TestTheCommandSplitRefusesWhatItCannotDo(t *testing.T) {
	t.Parallel()
	address, changes := splitAdmin(t, `"later"`)
	for args, want := range map[string]string{
		"split cart":          "there is no split",
		"split shop v2":       "each with its weight",
		"split shop v2 10%":   "is no number",
		"split shop v3 10":    "v3 is no side of split shop",
		"split shop v2 10 v1": "each with its weight",
		"split shop v2 10":    "has changed meanwhile",
		"split shop reset":    "has changed meanwhile",
	} {
		if stdout, stderr, err := command(address, strings.Fields(args)...); err == nil || !strings.Contains(stderr, want) {
			t.Errorf("%s: want %q, got %q, %q", args, want, stdout, stderr)
		}
	}
	if len(*changes) != 0 {
		t.Errorf("%q", *changes)
	}
}
