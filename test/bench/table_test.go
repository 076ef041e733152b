package main

import (
	"math"
	"os"
	"path/filepath"
	"strings"
	"testing"
)

func TestABudgetIsMissedByMoreThanTheNoise(t *testing.T) {
	for _, c := range []struct {
		limit         *budget
		figure, noise float64
		want          verdict
	}{
		{atMost("", 100, ""), 100, 0, met},
		{atMost("", 100, ""), 105, 0.06, within},
		{atMost("", 100, ""), 105, 0.04, missed},
		{atLeast("", 0.97, ""), 0.98, 0, met},
		{atLeast("", 0.97, ""), 0.95, 0.03, within},
		{atLeast("", 0.97, ""), 0.95, 0.01, missed},
		{atMost("", 1, ""), math.NaN(), 1, missed},
	} {
		if got := c.limit.judge(c.figure, c.noise); got != c.want {
			t.Errorf("%v ± %v against %v: %s, want %s", c.figure, c.noise, c.limit.bound, got, c.want)
		}
	}
}

func TestRatiosAreThoseOfTheRounds(t *testing.T) {
	// The machine became twice as slow in the middle of the run.
	ours, theirs := series{10, 20, 20}, series{20, 40, 40}
	if r := ours.over(theirs); r.median() != 0.5 || r.noise() != 0 {
		t.Errorf("ratio %v ± %v, want 0.5 without noise", r.median(), r.noise())
	}
}

func TestTheTableGoesBetweenTheMarksOfAPage(t *testing.T) {
	file := filepath.Join(t.TempDir(), "page.md")
	if err := os.WriteFile(file, []byte("before\n"+beginMark+"old\n"+endMark+"\nafter\n"), 0o644); err != nil {
		t.Fatal(err)
	}
	b := &bench{part: "part"}
	b.add(row{part: "part", what: "new"})
	for range 2 {
		if err := b.write(file); err != nil {
			t.Fatal(err)
		}
	}
	page, err := os.ReadFile(file)
	if err != nil {
		t.Fatal(err)
	}
	text := string(page)
	if !strings.HasPrefix(text, "before\n"+beginMark) || !strings.HasSuffix(text, endMark+"\nafter\n") ||
		strings.Count(text, "| new |") != 1 || strings.Contains(text, "old") {
		t.Errorf("the page is\n%s", text)
	}
	if err := os.WriteFile(file, []byte("another file"), 0o644); err != nil {
		t.Fatal(err)
	}
	if err := b.write(file); err == nil {
		t.Error("a page without marks was overwritten")
	}
}
