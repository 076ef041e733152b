package usher_test

import (
	"bytes"
	"encoding/json"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/caddyserver/caddy/v2"
	"github.com/caddyserver/caddy/v2/caddyconfig"
	_ "github.com/caddyserver/caddy/v2/modules/standard"

	_ "github.com/caddy-usher/usher"
)

// FuzzCaddyfile adapts any Caddyfile. Adapting never panics and always says
// the same; and what comes out of it is a configuration, which loads or is
// refused with an error.
func FuzzCaddyfile(f *testing.F) {
	for _, text := range caddyfiles(f) {
		f.Add(text)
	}
	for _, block := range []string{
		"backend process ./a -x {usher.port} {\n dir /\n env A {env.HOME}\n user nobody\n stop_signal INT\n listen fd\n output discard\n}",
		"backend kubernetes deployment/web {\n namespace a\n port http\n kubeconfig ./none\n context c\n}",
		"backend docker compose shop/web {\n host tcp://a:2375\n port 80\n idle pause\n pause_timeout 1h\n copies on\n}",
		"backend docker image a/b:1 serve -x {\n env A b\n volume /a:/b\n memory 64m\n cpus 0.5\n user 1:1\n label c d\n pull always\n registry_auth u p\n}",
		"backend marathon /prod/web {\n url http://a:1 http://b\n port_name http\n basic_auth u p\n}",
		"backend process sh\n header_up Host {http.request.header.X}\n lb_retries 2\n lb_retry_match {\n method GET\n}\n handle_response {\n respond 204\n}",
	} {
		f.Add(":80 {\n\tusher web {\n" + block + "\n\t}\n}\n")
		f.Add("{\n\tusher {\n\t\tservice web {\n" + block + "\n\t\t}\n\t\tmarathon {\n\t\t\turl http://m\n\t\t}\n\t\tkubernetes {\n\t\t\tnamespace x\n\t\t}\n\t}\n}\n:80 {\n\tusher web\n}\n")
	}
	f.Fuzz(func(t *testing.T, text string) {
		// What else a Caddyfile can name is not Usher's: files to read, and
		// what other directives would do when they are loaded.
		if strings.Contains(text, "import") || strings.Contains(text, "/dev") || strings.Contains(text, "/proc") {
			return
		}
		first, err := adapt(text)
		again, errAgain := adapt(text)
		// Of several faults in matchers Caddy names any one.
		if !bytes.Equal(first, again) || (err == nil) != (errAgain == nil) {
			t.Fatalf("adapted twice:\n%s, %v\n%s, %v", first, err, again, errAgain)
		}
		if err != nil {
			sayable(t, err, text)
			return
		}
		var doc struct {
			Apps struct {
				Usher json.RawMessage `json:"usher"`
				HTTP  any             `json:"http"`
			} `json:"apps"`
		}
		if err := json.Unmarshal(first, &doc); err != nil {
			t.Fatalf("%v: %s", err, first)
		}
		load(t, doc.Apps.Usher, handlers(doc.Apps.HTTP))
	})
}

// FuzzJSON loads any JSON as the app and as a handler. It is provisioned, or
// refused with an error, and nothing has begun to run.
func FuzzJSON(f *testing.F) {
	for _, text := range caddyfiles(f) {
		adapted, err := adapt(text)
		if err != nil {
			continue
		}
		var doc struct {
			Apps struct {
				Usher json.RawMessage `json:"usher"`
				HTTP  any             `json:"http"`
			} `json:"apps"`
		}
		if err := json.Unmarshal(adapted, &doc); err != nil {
			f.Fatal(err)
		}
		for _, h := range append(handlers(doc.Apps.HTTP), []byte(`{}`)) {
			f.Add(string(doc.Apps.Usher), string(h))
		}
	}
	f.Add(`{"services":{"web":null}}`, `{"service":"web","define":{"backend":{"type":"process"},"concurrency":"x","idle_timeout":-1}}`)
	f.Add(`{"services":{"web":{"backend":{"type":"marathon","app":"/a","urls":["http://x"]},"scale":{"policy":"queue","utilization":1e308,"down_window":"-1s"}}}}`, `{"service":"web","wake":[{"path":["/a*"]}],"wait_timeout":-1}`)
	f.Fuzz(func(t *testing.T, app, handler string) {
		if strings.Contains(app+handler, "/dev") || strings.Contains(app+handler, "/proc") {
			return
		}
		var raw []json.RawMessage
		if handler != "" {
			raw = append(raw, json.RawMessage(handler))
		}
		load(t, json.RawMessage(app), raw)
	})
}

// caddyfiles are those of the golden tests, and the example.
func caddyfiles(f *testing.F) (all []string) {
	files, err := filepath.Glob("caddymodule/testdata/adapt/*.caddytest")
	if err != nil || len(files) == 0 {
		f.Fatal("no golden files", err)
	}
	own, err := filepath.Glob("testdata/adapt/*.caddytest")
	if err != nil {
		f.Fatal(err)
	}
	for _, file := range append(append(files, own...), "Caddyfile.example") {
		b, err := os.ReadFile(file)
		if err != nil {
			f.Fatal(err)
		}
		text, _, _ := strings.Cut(string(b), "----------\n")
		all = append(all, strings.ReplaceAll(text, "backend test ", "backend process "))
	}
	return append(all, refusedCaddyfiles(f)...)
}

// refusedCaddyfiles are those of the scripts in caddymodule/testdata/refused.
func refusedCaddyfiles(f *testing.F) (all []string) {
	scripts, err := filepath.Glob("caddymodule/testdata/refused/*.txt")
	if err != nil || len(scripts) == 0 {
		f.Fatal("no scripts", err)
	}
	for _, file := range scripts {
		b, err := os.ReadFile(file)
		if err != nil {
			f.Fatal(err)
		}
		for part := range strings.SplitSeq("\n"+string(b), "\n=== ") {
			_, text, _ := strings.Cut(part, "\n")
			text, _, _ = strings.Cut(text, "----------\n")
			all = append(all, strings.ReplaceAll(text, "backend test ", "backend process "))
		}
	}
	return all
}

func adapt(text string) ([]byte, error) {
	b, _, err := caddyconfig.GetAdapter("caddyfile").Adapt([]byte(text), map[string]any{"filename": "Caddyfile"})
	return b, err
}

// sayable checks that an error about an input says something, and what was
// meant.
func sayable(t *testing.T, err error, input string) {
	if s := err.Error(); s == "" || strings.Contains(s, "%!") && !strings.Contains(input, "%!") {
		t.Errorf("the error is %q", s)
	}
}

// handlers finds Usher's handlers, in whatever routes they stand.
func handlers(in any) (all []json.RawMessage) {
	switch v := in.(type) {
	case []any:
		for _, one := range v {
			all = append(all, handlers(one)...)
		}
	case map[string]any:
		if v["handler"] == "usher" {
			delete(v, "handler")
			b, _ := json.Marshal(v)
			return []json.RawMessage{b}
		}
		for _, one := range v {
			all = append(all, handlers(one)...)
		}
	}
	return all
}

// load provisions the app and handlers, and takes them out of force again, as
// `caddy validate` does.
func load(t *testing.T, app json.RawMessage, handlers []json.RawMessage) {
	cfg := &caddy.Config{
		Logging:    &caddy.Logging{Logs: map[string]*caddy.CustomLog{"default": {BaseLog: caddy.BaseLog{WriterRaw: json.RawMessage(`{"output":"discard"}`)}}}},
		StorageRaw: json.RawMessage(`{"module":"file_system","root":"` + storage + `"}`),
	}
	base, err := caddy.ProvisionContext(cfg)
	if err != nil {
		t.Fatal(err)
	}
	cfg.AppsRaw = caddy.ModuleMap{}
	if len(app) > 0 {
		cfg.AppsRaw["usher"] = app
	}
	ctx, cancel := caddy.NewContext(base)
	defer cancel()
	if _, err := ctx.App("usher"); err != nil {
		sayable(t, err, string(app))
		return
	}
	for _, h := range handlers {
		if _, err := ctx.LoadModuleByID("http.handlers.usher", h); err != nil {
			sayable(t, err, string(h))
			return
		}
	}
}

// storage is where nothing may appear.
var storage string

func TestMain(m *testing.M) {
	dir, err := os.MkdirTemp("", "usher-load")
	if err != nil {
		panic(err)
	}
	storage = filepath.Join(dir, "storage")
	for _, name := range []string{"XDG_DATA_HOME", "XDG_CONFIG_HOME", "HOME"} {
		_ = os.Setenv(name, dir)
	}
	code := m.Run()
	if left, err := os.ReadDir(storage); err == nil && code == 0 {
		_, _ = os.Stderr.WriteString("loading a configuration has written to the storage: " + left[0].Name() + "\n")
		code = 1
	}
	_ = os.RemoveAll(dir)
	os.Exit(code)
}
