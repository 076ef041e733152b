package caddymodule

import (
	"encoding/json"
	"fmt"
	"net"
	"net/http"
	"net/http/fcgi"
	"os"
	"path/filepath"
	"reflect"
	"strings"
	"testing"
)

// The routes are those of php_fastcgi, of the Caddy that is built in.
func TestPHPExpandsAsPHPFastCGIDoes(t *testing.T) {
	t.Parallel()
	for name, options := range map[string]string{
		"nothing":       "",
		"index":         "index front.php",
		"index off":     "index off",
		"try_files":     "try_files {path} index.php",
		"try a fixed":   "try_files {path} =404",
		"two endings":   "split .php .inc",
		"the transport": "root /srv/app\nenv A b\nresolve_root_symlink\ndial_timeout 1s\nread_timeout 2s\nwrite_timeout 3s\ncapture_stderr",
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			ours := adaptedRoutes(t, "usher web {\nbackend test a\nphp {\n"+options+"\n}\n}")
			caddys := adaptedRoutes(t, "php_fastcgi a:1 {\n"+options+"\n}")
			if len(ours) != len(caddys) {
				t.Fatalf("%d routes; php_fastcgi makes %d", len(ours), len(caddys))
			}
			for k := range ours {
				if k < len(ours)-1 {
					if !reflect.DeepEqual(ours[k], caddys[k]) {
						t.Errorf("route %d is %v; want %v", k, ours[k], caddys[k])
					}
					continue
				}
				our, their := ours[k]["handle"].([]any), caddys[k]["handle"].([]any)
				if !reflect.DeepEqual(ours[k]["match"], caddys[k]["match"]) {
					t.Errorf("matches %v; want %v", ours[k]["match"], caddys[k]["match"])
				}
				if a, b := our[0].(map[string]any)["proxy"].(map[string]any)["transport"], their[0].(map[string]any)["transport"]; !reflect.DeepEqual(a, b) {
					t.Errorf("transport %v; want %v", a, b)
				}
			}
		})
	}
}

// adaptedRoutes returns the routes of a site's only server.
func adaptedRoutes(t *testing.T, body string) []map[string]any {
	t.Helper()
	b, err := adapt(site(body))
	if err != nil {
		t.Fatal(err)
	}
	var config struct {
		Apps struct {
			HTTP struct {
				Servers map[string]struct {
					Routes []map[string]any `json:"routes"`
				} `json:"servers"`
			} `json:"http"`
		} `json:"apps"`
	}
	if err := json.Unmarshal(b, &config); err != nil {
		t.Fatal(err)
	}
	return config.Apps.HTTP.Servers["srv0"].Routes
}

// A service that speaks FastCGI serves scripts, and Caddy serves the files.
func TestPHPServesScriptsByTheServiceAndFilesByCaddy(t *testing.T) {
	t.Parallel()
	root := t.TempDir()
	for name, text := range map[string]string{"index.php": "<?php", "style.css": "css", "blog/index.php": "<?php", "sub/info.php": "<?php"} {
		path := filepath.Join(root, name)
		if err := os.MkdirAll(filepath.Dir(path), 0o755); err != nil {
			t.Fatal(err)
		}
		if err := os.WriteFile(path, []byte(text), 0o644); err != nil {
			t.Fatal(err)
		}
	}
	f := newFleet(t)
	f.manual = true
	c := start(t, site("root "+root+"\n"+f.usher("php")+"file_server"))

	if r := c.get("/style.css"); r.status != 200 || r.body != "css" {
		t.Errorf("a file: %+v", r)
	}
	if st := serving(t, f.name).Reserver.Stats(); st.Waiting != 0 {
		t.Errorf("a file has asked for the service: %+v", st)
	}
	wait := c.begin("POST", "/any/where?q=1", "a body")
	f.ordered(1)
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = l.Close() })
	go func() {
		_ = fcgi.Serve(l, http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
			env := fcgi.ProcessEnv(r)
			_, _ = fmt.Fprintf(w, "%s %s %s", r.Method, r.URL.RequestURI(), strings.TrimPrefix(env["SCRIPT_FILENAME"], root))
		}))
	}()
	f.at("tcp", l.Addr().String(), none)
	if r := wait(); r.status != 200 || r.body != "POST /any/where?q=1 /index.php" {
		t.Errorf("held: %+v", r)
	}
	for path, want := range map[string]string{
		"/":                    "GET / /index.php",
		"/blog/":               "GET /blog/ /blog/index.php",
		"/sub/info.php/more/x": "GET /sub/info.php/more/x /sub/info.php",
	} {
		if r := c.get(path); r.status != 200 || r.body != want {
			t.Errorf("%s: %+v, want %q", path, r, want)
		}
	}
	if r := c.get("/blog?a=b"); r.status != 308 || r.header.Get("Location") != "./blog/?a=b" {
		t.Errorf("a directory: %+v", r)
	}
}
