package command

import (
	"strings"
	"testing"
)

func TestTheTableOfAllServicesShowsTheBeginningOfAMessage(t *testing.T) {
	for message, want := range map[string]string{
		"exit status 1":                      "exit status 1",
		"exit status 1: no\nand much more":   "exit status 1: no ...",
		"signal: " + strings.Repeat("ü", 90): "signal: " + strings.Repeat("ü", 72) + " ...",
	} {
		if got := brief(message); got != want {
			t.Errorf("%q is shown as %q, want %q", message, got, want)
		}
	}
}
