package docs

import (
	"io/fs"
	"maps"
	"net/url"
	"os"
	"path"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"testing"
)

func TestREADMEIsShort(t *testing.T) {
	t.Parallel()
	if n := strings.Count(read(t, "README.md"), "\n"); n > 200 {
		t.Errorf("README.md has %d lines: at most 200, the rest belongs to docs/", n)
	}
}

// Each page can be reached from README.md within three clicks.
func TestEveryPageIsLinked(t *testing.T) {
	t.Parallel()
	reached := map[string]bool{"README.md": true}
	for range 3 {
		for page := range maps.Clone(reached) {
			for _, l := range linksOf(t, page) {
				if l.file != "" && strings.HasSuffix(l.file, ".md") && (l.file == "README.md" || strings.HasPrefix(l.file, "docs/")) {
					reached[l.file] = true
				}
			}
		}
	}
	for _, page := range pages(t) {
		if !reached[page] {
			t.Errorf("no page links to %s", page)
		}
	}
}

// A link within the repository leads to a file, and to a heading that is there.
func TestLinksResolve(t *testing.T) {
	t.Parallel()
	count := 0
	for _, page := range append(pages(t), "CHANGELOG.md", "SECURITY.md") {
		for _, l := range linksOf(t, page) {
			count++
			if _, err := os.Stat(filepath.Join(root, l.file)); err != nil {
				t.Errorf("%s links to %s, which is not there", page, l.file)
				continue
			}
			if l.anchor != "" && !slices.Contains(anchorsOf(read(t, l.file)), l.anchor) {
				t.Errorf("%s links to %s#%s, a heading that is not there", page, l.file, l.anchor)
			}
		}
	}
	if count < 100 {
		t.Errorf("only %d links were found", count)
	}
}

type link struct{ file, anchor string }

var linkPattern = regexp.MustCompile(`\]\(([^)\s]+)\)|(?:src|srcset|href)="([^"]+)"`)

// linksOf returns the links of a page to files of the repository.
func linksOf(t *testing.T, page string) []link {
	t.Helper()
	var all []link
	for _, m := range linkPattern.FindAllStringSubmatch(strings.Join(prose(read(t, page)), "\n"), -1) {
		u, err := url.Parse(m[1] + m[2])
		if err != nil {
			t.Errorf("%s: %v", page, err)
			continue
		}
		if u.Scheme != "" || strings.HasPrefix(m[1]+m[2], "{") {
			continue
		}
		file := page
		if u.Path != "" {
			file = path.Join(path.Dir(page), u.Path)
		}
		all = append(all, link{file, u.Fragment})
	}
	return all
}

var notInAnchor = regexp.MustCompile(`[^\p{L}\p{N} _-]`)

// anchorsOf returns the names of the headings, as the page's host makes them.
func anchorsOf(text string) []string {
	var all []string
	for _, line := range prose(text) {
		if !strings.HasPrefix(line, "#") {
			continue
		}
		name := strings.ToLower(strings.TrimSpace(strings.TrimLeft(line, "#")))
		all = append(all, strings.ReplaceAll(notInAnchor.ReplaceAllString(name, ""), " ", "-"))
	}
	return all
}

// What these tests cannot run is counted here, with the reason, so that it does
// not grow by itself.
func TestBlocksThatAreNotRun(t *testing.T) {
	t.Parallel()
	want := map[string]int{
		"ci":      5, // the build, the example and the tests themselves: .ci/run does that
		"long":    6, // runs of many minutes, with tests of their own
		"cluster": 1, // kubectl; test/kubernetes runs these manifests on a real cluster
		"ports":   1, // the Marathon demo, with ports that are fixed
		"docker":  1, // an engine; test/docker runs these commands
		"labels":  1, // a compose file for caddy-docker-proxy
		"systemd": 1, // a unit, of the service manager
		"shown":   2, // what commands print in a situation that is not made here
	}
	got := make(map[string]int)
	for _, b := range blocks(t) {
		if why := b.value("not-here"); why != "" {
			got[why]++
			continue
		}
		switch b.lang {
		case "console":
			if b.has("shown") {
				got["shown"]++
			}
		case "sh":
			t.Errorf("%s: commands are in a block 'console', with what they print, or say not-here=reason", b)
		case "caddyfile":
			if len(b.words) > 1 || len(b.words) == 1 && b.words[0] != "directive" {
				t.Errorf("%s: a Caddyfile is whole or a directive, not %v", b, b.words)
			}
		case "json":
			if !b.has("config") {
				t.Errorf("%s: JSON that no test loads", b)
			}
		case "ini", "html", "python", "ruby", "php", "go":
			if b.file() == "" {
				t.Errorf("%s: a block of %s is a file with a name", b, b.lang)
			}
		case "text":
		default:
			t.Errorf("%s: no test knows what to do with %s", b, b.lang)
		}
	}
	if !maps.Equal(got, want) {
		t.Errorf("blocks that are not run: %v, want %v", got, want)
	}
}

// Code that a page shows is a file that is compiled.
func TestCodeIsThatOfTheFiles(t *testing.T) {
	t.Parallel()
	for _, b := range blocks(t) {
		if b.lang != "go" {
			continue
		}
		if b.file() == "" {
			t.Errorf("%s: Go code without the name of its file", b)
		} else if b.text != read(t, b.file()) {
			t.Errorf("%s: this is not the text of %s", b, b.file())
		}
	}
}

// The architecture page has a row for each package of the product.
func TestEveryRoomIsNamed(t *testing.T) {
	t.Parallel()
	page, count := read(t, "docs/architecture.md"), 0
	for _, top := range []string{"caddymodule", "backends", "scaler", "reserver"} {
		err := filepath.WalkDir(filepath.Join(root, top), func(name string, d fs.DirEntry, err error) error {
			if err != nil || !d.IsDir() {
				return err
			}
			if d.Name() == "testdata" {
				return fs.SkipDir
			}
			if files, err := filepath.Glob(filepath.Join(name, "*.go")); err != nil || len(files) == 0 {
				return err
			}
			count++
			rel, err := filepath.Rel(root, name)
			if err == nil && !strings.Contains(page, "\n| `"+filepath.ToSlash(rel)+"/` |") {
				t.Errorf("the architecture page has no row for %s", rel)
			}
			return err
		})
		if err != nil {
			t.Fatal(err)
		}
	}
	if count < 10 {
		t.Errorf("only %d packages", count)
	}
}
