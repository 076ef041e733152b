package usher

import (
	"go/parser"
	"go/token"
	"io/fs"
	"path"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"testing"
)

const module = "github.com/caddy-usher/usher"

// rooms has, for each room of the product, the rooms that it may know. An
// arrow that is not here is a mistake, or a decision to be made here and in
// docs/architecture.md.
var rooms = map[string][]string{
	".":                       {"async/file", "backends/docker", "backends/kubernetes", "backends/marathon", "backends/process", "caddymodule", "caddymodule/admin", "caddymodule/command", "caddymodule/liveview", "cluster/etcd", "cluster/kubernetes"},
	"caddymodule":             {"async", "async/callback", "caddymodule/answer", "caddymodule/hub", "caddymodule/option", "caddymodule/registryapi", "registry", "reserver", "scaler", "scaler/control", "scaler/policies"},
	"caddymodule/admin":       {"async", "caddymodule/answer", "caddymodule/hub", "caddymodule/registryapi", "scaler/control"},
	"caddymodule/command":     {"caddymodule", "caddymodule/answer", "caddymodule/hub", "scaler/control"},
	"caddymodule/liveview":    {"async", "caddymodule/answer", "caddymodule/hub", "caddymodule/option", "scaler/control"},
	"caddymodule/answer":      {"async", "caddymodule/hub", "scaler"},
	"caddymodule/option":      {},
	"caddymodule/zones":       {},
	"caddymodule/hub":         {"async", "caddymodule/registrystore", "caddymodule/zones", "cluster", "cluster/coordinator", "cluster/driver", "cluster/link", "registry", "reserver", "scaler", "scaler/control", "scaler/policies"},
	"caddymodule/registryapi": {"caddymodule/answer", "caddymodule/hub", "registry"},
	"async":                   {},
	"async/callback":          {"async"},
	"async/file":              {"async"},
	"async/storetest":         {"async"},
	"backends/docker":         {"scaler", "scaler/discovery"},
	"backends/kubernetes":     {"kubeaccess", "scaler", "scaler/discovery"},
	"backends/marathon":       {"scaler", "scaler/discovery"},
	"backends/process":        {"scaler"},
	"scaler":                  {},
	"scaler/backendtest":      {"scaler"},
	"scaler/control":          {"reserver", "scaler"},
	"scaler/discovery":        {"scaler"},
	"scaler/discoverytest":    {"scaler"},
	"scaler/policies":         {"scaler"},
	"kubeaccess":              {},
	"registry":                {},
	"registry/registrytest":   {"registry"},
	"reserver":                {},
	"cluster":                 {},
	"cluster/coordinator":     {"cluster"},
	"cluster/coordinatortest": {"cluster", "cluster/coordinator"},
	"cluster/driver":          {"cluster", "cluster/coordinator", "cluster/link"},
	"cluster/etcd":            {"cluster", "cluster/coordinator"},
	"cluster/kubernetes":      {"cluster", "cluster/coordinator", "kubeaccess"},
	"cluster/link":            {},

	"caddymodule/registrystore": {"registry"},
}

// pure are the rooms that know neither Caddy nor zap nor a platform.
var pure = []string{"async", "async/callback", "cluster", "cluster/coordinator", "registry", "registry/registrytest", "reserver", "scaler", "scaler/discovery", "scaler/policies", "scaler/control"}

// worldly are the modules that pure rooms do not know.
var worldly = []string{"github.com/caddyserver", "go.uber.org/zap", "k8s.io", "github.com/gambol99", "github.com/moby", "github.com/docker"}

func TestTheArrowsBetweenTheRooms(t *testing.T) {
	seen := make(map[string]bool)
	for room, imports := range importsOfRooms(t) {
		seen[room] = true
		allowed, ok := rooms[room]
		if !ok {
			t.Errorf("%s is in no plan: add it to rooms and to docs/architecture.md", room)
			continue
		}
		for _, i := range imports {
			if other, ok := strings.CutPrefix(i, module); ok {
				if other = strings.TrimPrefix(other, "/"); !slices.Contains(allowed, other) {
					t.Errorf("%s knows %s, which is no arrow of the plan", room, other)
				}
				continue
			}
			for _, w := range worldly {
				if slices.Contains(pure, room) && strings.HasPrefix(i, w) {
					t.Errorf("%s knows %s", room, i)
				}
			}
		}
	}
	for room := range rooms {
		if !seen[room] {
			t.Errorf("there is no room %s any more", room)
		}
	}
}

// importsOfRooms returns what the packages of the product import, tests left
// out.
func importsOfRooms(t *testing.T) map[string][]string {
	t.Helper()
	found := make(map[string][]string)
	err := filepath.WalkDir(".", func(file string, d fs.DirEntry, err error) error {
		if err != nil {
			return err
		}
		if d.IsDir() {
			if slices.Contains([]string{"test", "tools", "testdata", ".git", "docs", "deploy", "postgres"}, d.Name()) {
				return filepath.SkipDir
			}
			return nil
		}
		if !strings.HasSuffix(file, ".go") || strings.HasSuffix(file, "_test.go") {
			return nil
		}
		parsed, err := parser.ParseFile(token.NewFileSet(), file, nil, parser.ImportsOnly)
		if err != nil {
			return err
		}
		room := path.Dir(filepath.ToSlash(file))
		for _, i := range parsed.Imports {
			name, err := strconv.Unquote(i.Path.Value)
			if err != nil {
				return err
			}
			found[room] = append(found[room], name)
		}
		if found[room] == nil {
			found[room] = []string{}
		}
		return nil
	})
	if err != nil {
		t.Fatal(err)
	}
	return found
}
