package docs

import (
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
)

// root is the directory of the repository.
const root = "../.."

// A block is a fenced block of a page.
type block struct {
	page    string // relative to the repository
	line    int
	section string // the heading of the second level above it
	lang    string
	words   []string // behind the language
	text    string
}

func (b block) String() string { return fmt.Sprintf("%s:%d", b.page, b.line) }

func (b block) has(word string) bool { return slices.Contains(b.words, word) }

// value returns what stands behind `key=`.
func (b block) value(key string) string {
	for _, w := range b.words {
		if v, ok := strings.CutPrefix(w, key+"="); ok {
			return v
		}
	}
	return ""
}

// file returns the name of the file that the block shows, or "".
func (b block) file() string {
	if len(b.words) == 1 && strings.Contains(b.words[0], ".") && !strings.Contains(b.words[0], "=") {
		return b.words[0]
	}
	return ""
}

// pages are README.md and all pages below docs/.
func pages(t *testing.T) []string {
	t.Helper()
	all := []string{"README.md"}
	for _, pattern := range []string{"docs/*.md", "docs/*/*.md"} {
		found, err := filepath.Glob(filepath.Join(root, pattern))
		if err != nil {
			t.Fatal(err)
		}
		for _, f := range found {
			rel, err := filepath.Rel(root, f)
			if err != nil {
				t.Fatal(err)
			}
			all = append(all, filepath.ToSlash(rel))
		}
	}
	if len(all) < 15 {
		t.Fatalf("only %d pages", len(all))
	}
	return all
}

func read(t *testing.T, name string) string {
	t.Helper()
	b, err := os.ReadFile(filepath.Join(root, name))
	if err != nil {
		t.Fatal(err)
	}
	return string(b)
}

// blocks returns the fenced blocks of all pages.
func blocks(t *testing.T) []block {
	t.Helper()
	var all []block
	for _, page := range pages(t) {
		all = append(all, blocksOf(t, page, read(t, page))...)
	}
	return all
}

func blocksOf(t *testing.T, page, text string) []block {
	t.Helper()
	var all []block
	var open *block
	section := ""
	for n, line := range strings.Split(text, "\n") {
		switch {
		case open == nil && strings.HasPrefix(line, "```"):
			words := strings.Fields(line[3:])
			if len(words) == 0 {
				t.Errorf("%s:%d: a block without a language", page, n+1)
				words = []string{"text"}
			}
			open = &block{page: page, line: n + 1, section: section, lang: words[0], words: words[1:]}
		case open == nil:
			if h, ok := strings.CutPrefix(line, "## "); ok {
				section = h
			}
		case line == "```":
			all = append(all, *open)
			open = nil
		default:
			open.text += line + "\n"
		}
	}
	if open != nil {
		t.Errorf("%s: the block has no end", open)
	}
	return all
}

// prose returns the lines of a page that are not in a fenced block.
func prose(text string) []string {
	var lines []string
	inside := false
	for line := range strings.SplitSeq(text, "\n") {
		if strings.HasPrefix(line, "```") {
			inside = !inside
			continue
		}
		if !inside {
			lines = append(lines, line)
		}
	}
	return lines
}
