package command

import (
	"encoding/json"
	"fmt"
	"io"
	"net/http"
	"net/http/httptest"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"testing"

	"github.com/spf13/cobra"
)

// An answer of the admin API: a status, and a body.
type reply struct {
	status int
	body   string
}

// asked is a call of the admin API.
type asked struct{ call, ifMatch, ifNoneMatch, body string }

// madeAdmin answers each call with the next of its replies, and with the last one
// from then on.
type madeAdmin struct {
	address string

	mu      sync.Mutex
	replies map[string][]reply
	asked   []asked
}

func newMadeAdmin(t *testing.T, replies map[string][]reply) *madeAdmin {
	t.Helper()
	a := &madeAdmin{replies: replies}
	srv := httptest.NewServer(a)
	t.Cleanup(srv.Close)
	a.address = srv.Listener.Addr().String()
	return a
}

func (a *madeAdmin) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	a.mu.Lock()
	defer a.mu.Unlock()
	body, _ := io.ReadAll(r.Body)
	call := r.Method + " " + strings.TrimPrefix(r.URL.RequestURI(), "/usher/")
	a.asked = append(a.asked, asked{call, r.Header.Get("If-Match"), r.Header.Get("If-None-Match"), string(body)})
	next := reply{http.StatusNotFound, `{"error":"there is no such service"}`}
	if all := a.replies[call]; len(all) > 0 {
		next = all[0]
		if len(all) > 1 {
			a.replies[call] = all[1:]
		}
	}
	w.Header().Set("Content-Type", "application/json")
	w.WriteHeader(next.status)
	_, _ = io.WriteString(w, next.body)
}

// changes are the calls that change something.
func (a *madeAdmin) changes() (all []asked) {
	a.mu.Lock()
	defer a.mu.Unlock()
	for _, c := range a.asked {
		if !strings.HasPrefix(c.call, "GET ") {
			all = append(all, c)
		}
	}
	return all
}

// made is what the admin API says of a service made at run time that runs.
func made(revision int, state, more string) string {
	return fmt.Sprintf(`{"name":"hello","state":%q,"config":{},"instances":{"ready":1},"made":%s}`, state, view(revision, state, more))
}

// view is the same as the answer to a change.
func view(revision int, state, more string) string {
	return fmt.Sprintf(`{"name":"hello","origin":"run_time","owner":"ann","revision":%d,"etag":"\"%d-abc\"","definition":{"template":"web"},"state":%q%s}`, revision, revision, state, more)
}

// file writes a file for apply.
func file(t *testing.T, name, text string) string {
	t.Helper()
	name = filepath.Join(t.TempDir(), name)
	if err := os.WriteFile(name, []byte(text), 0o600); err != nil {
		t.Fatal(err)
	}
	return name
}

// status is the exit status of an error of a command.
func status(err error) int {
	if err == nil {
		return 0
	}
	n := 1
	_, _ = fmt.Sscanf(err.Error(), "exiting with status %d", &n)
	return n
}

func TestApplySaysWhatBecameOfAService(t *testing.T) {
	t.Parallel()
	const put, get = "PUT services/hello", "GET services/hello"
	there := reply{200, made(1, "awake", "")}
	for name, x := range map[string]struct {
		args       []string
		get        []reply
		put        reply
		want       string // in what is printed
		failed     string // in the error
		match, not string // the conditions of the change
	}{
		"created": {
			get: []reply{{404, `{"error":"no"}`}, {200, made(1, "asleep", "")}}, put: reply{201, view(1, "", "")},
			want: "hello is created: revision 1. It is asleep: the next request starts it.\n", not: "*",
		},
		"made anew": {
			get: []reply{{200, view(1, "", `,"deleted":"2026-03-04T12:00:00Z"`)}, {200, made(2, "asleep", "")}}, put: reply{201, view(2, "", "")},
			want: "hello is created: revision 2.", not: "*",
		},
		"changed": {
			get: []reply{there, {200, made(2, "awake", `,"replacing":true`)}, {200, made(2, "awake", `,"replacing":true`)}, {200, made(2, "awake", "")}}, put: reply{200, view(2, "", "")},
			want: "hello is changed: revision 2. It is in force: 1 ready.\n", match: `"1-abc"`,
		},
		"unchanged": {
			get: []reply{there}, put: reply{200, view(1, "awake", "")},
			want: "hello is unchanged: revision 1. It is in force: 1 ready.\n", match: `"1-abc"`,
		},
		"tried again": {
			get: []reply{{200, made(2, "awake", `,"in_force":1,"fell_back":{"revision":2,"reason":"exit status 3"}`)}, {200, made(2, "awake", "")}}, put: reply{200, view(2, "", "")},
			want: "hello is tried again: revision 2. It is in force", match: `"2-abc"`,
		},
		"fell back": {
			get: []reply{there, {200, made(2, "awake", `,"replacing":true`)}, {200, made(2, "awake", `,"in_force":1,"fell_back":{"revision":2,"reason":"exit status 3"}`)}}, put: reply{200, view(2, "", "")},
			failed: "hello is changed: revision 2. It could not be started, so revision 1 is in force again: exit status 3", match: `"1-abc"`,
		},
		"not ready in time": {
			args: []string{"--wait", "300ms"},
			get:  []reply{there, {200, `{"name":"hello","state":"awake","config":{},"start":{"problem":"nothing listens"},"made":` + view(2, "awake", `,"replacing":true`) + `}`}}, put: reply{200, view(2, "", "")},
			failed: "those of before serve on. nothing listens That is so after 300ms.", match: `"1-abc"`,
		},
		"not waited for": {
			args: []string{"--wait", "0"},
			get:  []reply{there, {200, made(2, "awake", `,"replacing":true`)}}, put: reply{200, view(2, "", "")},
			failed: "Its instances are not ready yet", match: `"1-abc"`,
		},
		"failing": {
			get: []reply{{404, `{"error":"no"}`}, {200, made(1, "waking", "")}, {200, `{"name":"hello","state":"failing","config":{},"last_error":"exit status 3","made":` + view(1, "failing", "") + `}`}}, put: reply{201, view(1, "", "")},
			failed: "It cannot be started. exit status 3", not: "*",
		},
		"failed, and no request waits": {
			get: []reply{there, {200, made(2, "waking", "")}, {200, `{"name":"hello","state":"asleep","config":{},"last_error":"exit status 3","made":` + view(2, "asleep", "") + `}`}}, put: reply{200, view(2, "", "")},
			failed: "It is asleep, and its last start failed. The next request starts it again. exit status 3", match: `"1-abc"`,
		},
		"trouble": {
			get: []reply{there, {200, made(2, "awake", `,"trouble":"there is no template web"`)}}, put: reply{200, view(2, "", "")},
			failed: "Its definition cannot be used, and what it had before stays: there is no template web", match: `"1-abc"`,
		},
		"another writer was faster": {
			get: []reply{there, {200, made(3, "awake", "")}}, put: reply{200, view(2, "", "")},
			failed: "It was changed meanwhile: its revision is 3.", match: `"1-abc"`,
		},
		"deleted meanwhile": {
			get: []reply{there, {404, `{"error":"no"}`}}, put: reply{200, view(2, "", "")},
			failed: "It was deleted meanwhile.", match: `"1-abc"`,
		},
		"only created": {
			args: []string{"--create-only"}, get: []reply{there}, put: reply{412, `{"error":"the service hello exists already"}`},
			failed: "exists already", not: "*",
		},
		"by an ETag": {
			args: []string{"--if-match", `"7-x"`}, get: []reply{there}, put: reply{412, `{"error":"the service hello has changed"}`},
			failed: "has changed", match: `"7-x"`,
		},
		"of the configuration": {
			get: []reply{{200, `{"name":"hello","state":"awake","config":{}}`}}, put: reply{409, `{"error":"the service hello is in the configuration"}`},
			failed: "is in the configuration", not: "*",
		},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			a := newMadeAdmin(t, map[string][]reply{get: x.get, put: {x.put}})
			stdout, stderr, err := command(a.address, append([]string{"apply", "-f", file(t, "d.json", `{"template":"web"}`), "hello"}, x.args...)...)
			wantStatus := 0
			switch {
			case x.failed != "" && x.put.status >= 400:
				wantStatus = exitRefused
			case x.failed != "":
				wantStatus = exitNotInForce
			}
			if status(err) != wantStatus || !strings.Contains(stdout, x.want) || !strings.Contains(stderr, x.failed) {
				t.Errorf("status %d, want %d\n%s%s", status(err), wantStatus, stdout, stderr)
			}
			all := a.changes()
			if len(all) != 1 || all[0] != (asked{put, x.match, x.not, `{"template":"web"}`}) {
				t.Errorf("sent %+v", all)
			}
		})
	}
}

func TestApplyReadsBothFormsOfAFile(t *testing.T) {
	t.Parallel()
	caddyfile := "service hello {\n\ttemplate web\n\tparam team red\n\thosts a.example.com\n}\nservice other {\n\ttemplate web\n}"
	for name, x := range map[string]struct {
		file, text string
		args       []string
		want       []string // services and their definitions
		failed     string
	}{
		"a Caddyfile":            {"s.caddyfile", caddyfile, nil, []string{`hello {"template":"web","params":{"team":"red"},"hosts":["a.example.com"]}`, `other {"template":"web"}`}, ""},
		"one of a Caddyfile":     {"s.caddyfile", caddyfile, []string{"other"}, []string{`other {"template":"web"}`}, ""},
		"the standard input":     {"-", caddyfile, []string{"other"}, []string{`other {"template":"web"}`}, ""},
		"several in JSON":        {"s.json", `{"hello":{"template":"web"},"other":{"template":"b"}}`, nil, []string{`hello {"template":"web"}`, `other {"template":"b"}`}, ""},
		"JSON of another name":   {"services", ` {"hello":{"template":"web"}}`, nil, []string{`hello {"template":"web"}`}, ""},
		"JSON, standard input":   {"-", `{"template":"web"}`, []string{"hello"}, []string{`hello {"template":"web"}`}, ""},
		"with its owner":         {"s.json", `{"template":"web"}`, []string{"hello", "--owner", "ann b"}, []string{`hello?owner=ann+b {"template":"web"}`}, ""},
		"one without its name":   {"s.json", `{"template":"web"}`, nil, nil, "name its service"},
		"an unknown name":        {"s.caddyfile", caddyfile, []string{"third"}, nil, "does not define the service third"},
		"no JSON":                {"s.json", caddyfile, nil, nil, "s.json: it is no JSON object"},
		"nothing":                {"s.json", `{}`, nil, nil, "defines no service"},
		"a mistake":              {"s.caddyfile", "service hello {\n\ttemplate web\n\tparm a b\n}", nil, nil, "unknown option 'parm'"},
		"one ETag for several":   {"s.caddyfile", caddyfile, []string{"--if-match", "x"}, nil, "name the service, too"},
		"two conditions":         {"s.caddyfile", caddyfile, []string{"--if-match", "x", "--create-only"}, nil, "exclude each other"},
		"a file that is missing": {"none/s.json", "", nil, nil, "no such file"},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			a := newMadeAdmin(t, map[string][]reply{
				"PUT services/hello": {{201, view(1, "", "")}}, "PUT services/other": {{201, view(1, "", "")}}, "PUT services/hello?owner=ann+b": {{201, view(1, "", "")}},
			})
			where := x.file
			if where != "-" && !strings.Contains(where, "/") {
				where = file(t, x.file, x.text)
			}
			stderr, err := withInput(a.address, x.text, append([]string{"apply", "--wait", "0", "-f", where}, x.args...)...)
			if x.failed != "" && (status(err) != 1 || !strings.Contains(stderr, x.failed)) {
				t.Errorf("status %d: %s", status(err), stderr)
			}
			var got []string
			for _, c := range a.changes() {
				got = append(got, strings.TrimPrefix(c.call, "PUT services/")+" "+c.body)
			}
			if strings.Join(got, "\n") != strings.Join(x.want, "\n") {
				t.Errorf("sent %q, want %q", got, x.want)
			}
		})
	}
	if _, stderr, err := command("127.0.0.1:1", "apply"); status(err) != 1 || !strings.Contains(stderr, "-f") {
		t.Errorf("without a file: %v, %s", err, stderr)
	}
}

// withInput runs `caddy usher` with that text as its standard input.
func withInput(address, text string, args ...string) (stderr string, err error) {
	cmd := &cobra.Command{Use: "usher", SilenceUsage: true}
	commands{now: aDayNow}.add(cmd)
	var errs strings.Builder
	cmd.SetIn(strings.NewReader(text))
	cmd.SetOut(io.Discard)
	cmd.SetErr(&errs)
	cmd.SetArgs(append(args, "--address", address))
	err = cmd.Execute()
	return errs.String(), err
}

func TestWhatApplyCannotDoForOneServiceIsNotHeldAgainstOthers(t *testing.T) {
	t.Parallel()
	a := newMadeAdmin(t, map[string][]reply{
		"PUT services/a":     {{409, `{"error":"the host x.example.com belongs to another service"}`}},
		"PUT services/hello": {{201, view(1, "", "")}}, "GET services/hello": {{404, `{}`}, {200, made(1, "asleep", "")}},
	})
	stdout, stderr, err := command(a.address, "apply", "-f", file(t, "s.json", `{"a":{"template":"web"},"hello":{"template":"web"}}`))
	if status(err) != exitRefused || !strings.Contains(stderr, "x.example.com") || !strings.Contains(stdout, "hello is created") {
		t.Errorf("status %d: %s%s", status(err), stdout, stderr)
	}
}

func TestApplyTellsProgramsTheSame(t *testing.T) {
	t.Parallel()
	a := newMadeAdmin(t, map[string][]reply{
		"PUT services/hello": {{200, view(2, "", "")}},
		"GET services/hello": {{200, made(1, "awake", "")}, {200, made(2, "awake", `,"in_force":1,"fell_back":{"revision":2,"reason":"exit status 3"}`)}},
	})
	stdout, _, err := command(a.address, "apply", "--json", "-f", file(t, "s.json", `{"hello":{"template":"web"}}`))
	var got appliedView
	if e := json.Unmarshal([]byte(stdout), &got); e != nil || status(err) != exitNotInForce {
		t.Fatalf("%v, status %d: %s", e, status(err), stdout)
	}
	if got.Name != "hello" || got.Did != "changed" || got.InForce || !strings.Contains(got.Says, "exit status 3") || got.Made == nil || got.Made.InForce != 1 {
		t.Errorf("%+v", got)
	}
}

func TestEditSendsWhatTheEditorWrote(t *testing.T) {
	for name, x := range map[string]struct {
		editor string
		put    reply
		sent   string
		says   string
		status int
		kept   bool
	}{
		"changed":        {`sed -i s/web/blog/`, reply{200, view(2, "", "")}, "{\"template\":\"blog\"}", "hello is changed: revision 2", 0, false},
		"unchanged":      {`true`, reply{}, "", "hello is unchanged: nothing was sent", 0, false},
		"other spaces":   {`sed -i 's/  / /'`, reply{}, "", "hello is unchanged: nothing was sent", 0, false},
		"emptied":        {`truncate -s 0`, reply{}, "", "nothing was sent", 0, false},
		"no JSON":        {`sed -i s/}//`, reply{}, "", "the text is no JSON", 1, true},
		"stale":          {`sed -i s/web/blog/`, reply{412, `{"error":"the service hello has changed"}`}, "{\"template\":\"blog\"}", "the service hello has changed", exitRefused, true},
		"given up":       {`false`, reply{}, "", "nothing was sent", 1, false},
		"given up, late": {`sh -c 'sed -i s/web/blog/ "$0"; false'`, reply{}, "", "nothing was sent", 1, true},
	} {
		t.Run(name, func(t *testing.T) {
			dir := t.TempDir()
			t.Setenv("TMPDIR", dir)
			t.Setenv("VISUAL", x.editor)
			t.Setenv("EDITOR", "false")
			a := newMadeAdmin(t, map[string][]reply{
				"PUT services/hello": {x.put}, "GET services/hello": {{200, made(1, "asleep", "")}, {200, made(2, "asleep", "")}},
			})
			stdout, stderr, err := command(a.address, "edit", "hello")
			if status(err) != x.status || !strings.Contains(stdout+stderr, x.says) {
				t.Errorf("status %d, want %d: %s%s", status(err), x.status, stdout, stderr)
			}
			sent := ""
			for _, c := range a.changes() {
				sent += c.body
				if c.ifMatch != `"1-abc"` {
					t.Errorf("sent if it matches %q", c.ifMatch)
				}
			}
			if sent != x.sent {
				t.Errorf("sent %q, want %q", sent, x.sent)
			}
			files, _ := filepath.Glob(filepath.Join(dir, "*"))
			if (len(files) == 1) != x.kept || len(files) > 1 {
				t.Fatalf("there are the files %q", files)
			}
			if !x.kept {
				return
			}
			info, err := os.Stat(files[0])
			if err != nil || info.Mode().Perm() != 0o600 || !strings.Contains(stderr, files[0]) {
				t.Errorf("%v, mode %v, said: %s", err, info.Mode(), stderr)
			}
		})
	}
}

func TestEditOffersWhatCanBeChangedOnly(t *testing.T) {
	t.Setenv("VISUAL", "false")
	for want, body := range map[string]string{
		"is in the configuration": `{"name":"hello","state":"awake","config":{}}`,
		"'caddy usher rollback":   view(1, "", `,"deleted":"2026-03-04T12:00:00Z"`),
		"change its labels there": `{"name":"hello","config":{},"made":{"name":"hello","origin":"discovered","source":"kubernetes deployment/web","revision":1,"definition":{"service":{}}}}`,
	} {
		a := newMadeAdmin(t, map[string][]reply{"GET services/hello": {{200, body}}})
		if _, stderr, err := command(a.address, "edit", "hello"); err == nil || !strings.Contains(stderr, want) {
			t.Errorf("%s, want %q", stderr, want)
		}
	}
}

func TestRollbackAndDeleteChangeWhatWasSeen(t *testing.T) {
	t.Parallel()
	deleted := view(2, "", `,"deleted":"2026-03-04T12:00:00Z"`)
	for line, x := range map[string]struct {
		get  []reply
		sent asked
		says string
	}{
		"rollback hello":   {[]reply{{200, made(2, "asleep", "")}, {200, made(3, "asleep", "")}}, asked{"POST services/hello/rollback", `"2-abc"`, "", `{}`}, "hello is as in the revision before: revision 3."},
		"rollback hello 1": {[]reply{{200, made(2, "asleep", "")}, {200, made(3, "asleep", "")}}, asked{"POST services/hello/rollback", `"2-abc"`, "", `{"revision":1}`}, "hello is as in revision 1: revision 3."},
		"rollback hello -": {nil, asked{}, "'-' is no number of a revision"},
		"rollback other":   {nil, asked{}, "there is no such service"},
		"delete hello":     {[]reply{{200, made(2, "asleep", "")}}, asked{"DELETE services/hello", `"2-abc"`, "", ""}, "hello is deleted. For a day, 'caddy usher rollback hello' brings it back."},
	} {
		a := newMadeAdmin(t, map[string][]reply{
			"GET services/hello": x.get, "POST services/hello/rollback": {{200, view(3, "", "")}}, "DELETE services/hello": {{204, ""}},
		})
		stdout, stderr, _ := command(a.address, strings.Fields(line)...)
		if !strings.Contains(stdout+stderr, x.says) {
			t.Errorf("%s: %s%s", line, stdout, stderr)
		}
		if all := a.changes(); len(all) > 1 || len(all) == 1 && all[0] != x.sent || len(all) == 0 && x.sent.call != "" {
			t.Errorf("%s: sent %+v", line, all)
		}
	}
	a := newMadeAdmin(t, map[string][]reply{"GET services/hello": {{200, deleted}, {200, made(3, "asleep", "")}}, "POST services/hello/rollback": {{200, view(3, "", "")}}})
	if stdout, _, _ := command(a.address, "rollback", "hello"); !strings.Contains(stdout, "hello is brought back: revision 3.") || a.changes()[0].ifMatch != "" {
		t.Errorf("%s, %+v", stdout, a.changes())
	}
}

func TestListHasWhereServicesComeFromAndWhatDoesNotRun(t *testing.T) {
	t.Parallel()
	a := newMadeAdmin(t, map[string][]reply{
		"GET services": {{200, `[
			{"name":"api","backend":"process","state":"awake","slots":{},"instances":{}},
			{"name":"blog","backend":"kubernetes","state":"awake","slots":{},"instances":{},"origin":"discovered","revision":1},
			{"name":"hello","backend":"process","state":"asleep","slots":{},"instances":{},"origin":"run_time","owner":"ann","revision":1,"fell_back":{"revision":2,"reason":"exit status 3"}}]`}},
		"GET registry": {{200, `{"unused":[{"name":"api","origin":"run_time","revision":4,"shadowed":true},{"name":"old","origin":"run_time","owner":"bob","revision":1,"trouble":"there is no template web"}],
			"discover":[{"platform":"docker","trouble":"connection refused"},{"platform":"kubernetes","rejected":[{"object":"deployment/web in namespace apps","name":"api","reason":"the configuration has the service api"}]}],
			"unreadable":[{"object":"torn","reason":"unexpected end"}]}`}},
	})
	stdout, stderr, err := command(a.address, "list")
	want := `NAME    STATE    READY   TARGET   LIMITS   IN USE   WAITING   COLD START   BACKEND      ORIGIN          OWNER   REVISION   LAST ERROR
api     awake    0       0        0..0     0        0         -            process      configuration
blog    awake    0       0        0..0     0        0         -            kubernetes   discovered              1
hello   asleep   0       0        0..0     0        0         -            process      run time        ann     1          revision 2 could not be started: exit status 3

NOT IN FORCE   ORIGIN       OWNER   REVISION   REASON
api            run time             4          the configuration has a service of that name
old            run time     bob     1          there is no template web
docker         discovered                      the platform cannot be asked: connection refused
api            discovered                      kubernetes deployment/web in namespace apps: the configuration has the service a ...
torn           run time                        what is stored of it cannot be read: unexpected end
`
	if err != nil || stdout != want {
		t.Errorf("%v %s\n%s\nwant\n%s", err, stderr, stdout, want)
	}
}
