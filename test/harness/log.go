package harness

import (
	"bytes"
	"encoding/json"
	"os"
	"path/filepath"
	"strings"
)

// A LogEntry is one line of Caddy's log. Lines that are not JSON, like the
// trace of a crash, stand whole in Msg.
type LogEntry struct {
	Level  string
	Logger string
	Msg    string
	Fields map[string]any
}

func (c *Caddy) logPath() string { return filepath.Join(c.Dir, "caddy.log") }

// RawLog returns all that Caddy wrote to its standard output and error.
func (c *Caddy) RawLog() string {
	data, _ := os.ReadFile(c.logPath())
	return string(data)
}

// Log returns Caddy's log so far.
func (c *Caddy) Log() []LogEntry {
	data, _ := os.ReadFile(c.logPath())
	var entries []LogEntry
	for line := range bytes.Lines(data) {
		fields := make(map[string]any)
		if json.Unmarshal(line, &fields) != nil {
			entries = append(entries, LogEntry{Msg: string(line)})
			continue
		}
		e := LogEntry{Fields: fields}
		e.Level, _ = fields["level"].(string)
		e.Logger, _ = fields["logger"].(string)
		e.Msg, _ = fields["msg"].(string)
		entries = append(entries, e)
	}
	return entries
}

// AccessLog returns the entries of the access log.
func (c *Caddy) AccessLog() []LogEntry {
	var entries []LogEntry
	for _, e := range c.Log() {
		if strings.HasPrefix(e.Logger, "http.log.access") {
			entries = append(entries, e)
		}
	}
	return entries
}

// Logged tells whether the log has an entry with such a message.
func (c *Caddy) Logged(part string) bool {
	for _, e := range c.Log() {
		if strings.Contains(e.Msg, part) {
			return true
		}
	}
	return false
}

// lastLines returns the end of the log, for the report of a failed test.
func lastLines(s string, n int) string {
	lines := strings.SplitAfter(s, "\n")
	if len(lines) > n {
		lines = append([]string{"...\n"}, lines[len(lines)-n:]...)
	}
	return strings.Join(lines, "")
}
