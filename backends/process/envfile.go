package process

import (
	"errors"
	"fmt"
	"io"
	"maps"
	"os"
	"strings"
)

// maxEnvFile bounds what is read of one file of variables.
const maxEnvFile = 1 << 20

// readEnvFile returns the variables of a file. Its errors name the file and
// the line, and never a value.
func readEnvFile(path string) (map[string]string, error) {
	info, err := os.Stat(path)
	if err == nil && !info.Mode().IsRegular() {
		// Opening a pipe would block the load.
		return nil, fmt.Errorf("env_file %s is not a regular file", path)
	}
	var file *os.File
	if err == nil {
		file, err = os.Open(path)
	}
	if err != nil {
		return nil, fileMissing("env_file "+path, err)
	}
	defer file.Close()
	content, err := io.ReadAll(io.LimitReader(file, maxEnvFile+1))
	if err != nil {
		return nil, fileMissing("env_file "+path, err)
	}
	if len(content) > maxEnvFile {
		return nil, fmt.Errorf("env_file %s is larger than 1 MiB", path)
	}
	variables, err := parseEnvFile(string(content))
	if err != nil {
		return nil, fmt.Errorf("env_file %s: %w", path, err)
	}
	return variables, nil
}

// unwrapPath returns the bare reason: the message names the path already.
func unwrapPath(err error) error {
	if e, ok := errors.AsType[*os.PathError](err); ok {
		return e.Err
	}
	return err
}

// fileEnv returns the variables of all files. A later file goes before an
// earlier one.
func (b *Backend) fileEnv(resolve resolver) (map[string]string, error) {
	variables := make(map[string]string)
	for _, name := range b.EnvFile {
		t, err := resolve.parse(name)
		if err != nil {
			return nil, fmt.Errorf("env_file: %w", err)
		}
		path, ok := t.constant()
		if !ok {
			return nil, errors.New("env_file: the file is read before there is an instance, so {usher.*} has no place in its name")
		}
		if path == "" {
			return nil, fmt.Errorf("env_file: the name of the file, %q, is empty", name)
		}
		read, err := readEnvFile(path)
		if err != nil {
			return nil, fileUnusable(err)
		}
		maps.Copy(variables, read)
	}
	return variables, nil
}

// parseEnvFile reads lines of the form NAME=value. Empty lines and lines that
// begin with # or ; are skipped, and an `export` before the name too. Without
// quotes a value is the rest of the line, without the space around it. Single
// quotes keep everything as it is. In double quotes \n, \r, \t, \", \\, \$ and
// \` stand for what they mean in a shell. A quoted value may go on over several
// lines. Nothing is expanded: a $ is a $. A name that comes twice has its last
// value.
func parseEnvFile(text string) (map[string]string, error) {
	variables := make(map[string]string)
	text = strings.ReplaceAll(strings.TrimPrefix(text, "\ufeff"), "\r\n", "\n")
	for line := 1; text != ""; {
		at := line
		first, rest, _ := strings.Cut(text, "\n")
		trimmed := strings.TrimSpace(first)
		if trimmed == "" || trimmed[0] == '#' || trimmed[0] == ';' {
			text = rest
			line++
			continue
		}
		name, _, ok := strings.Cut(first, "=")
		if !ok {
			// The line may be a part of a secret: it is not repeated.
			return nil, fmt.Errorf("line %d has no '=': each line is NAME=value", at)
		}
		value, after, err := envValue(text[len(name)+1:])
		if err != nil {
			return nil, fmt.Errorf("line %d: %w", at, err)
		}
		line += strings.Count(text[:len(text)-len(after)], "\n")
		text = after

		name = strings.TrimSpace(name)
		if bare, ok := strings.CutPrefix(name, "export"); ok && bare != strings.TrimSpace(bare) {
			name = strings.TrimSpace(bare)
		}
		switch {
		case name == "" || strings.ContainsAny(name, " \t\"'\\\x00"):
			return nil, fmt.Errorf("line %d: what stands before the '=' is no name of a variable", at)
		case strings.ContainsRune(value, 0):
			return nil, fmt.Errorf("line %d: the value of %s has a NUL byte, which no variable can hold", at, name)
		}
		if err := checkVariable(name); err != nil {
			return nil, fmt.Errorf("line %d: %w", at, err)
		}
		variables[name] = value
	}
	return variables, nil
}

// envValue reads the value at the beginning of text, and returns what follows
// its line.
func envValue(text string) (value, after string, err error) {
	start := strings.TrimLeft(text, " \t")
	if start == "" || start[0] != '"' && start[0] != '\'' {
		value, after, _ = strings.Cut(text, "\n")
		return strings.TrimSpace(value), after, nil
	}
	quote := start[0]
	var b strings.Builder
	for i := 1; i < len(start); i++ {
		switch c := start[i]; {
		case c == quote:
			tail, after, _ := strings.Cut(start[i+1:], "\n")
			if tail = strings.TrimSpace(tail); tail != "" && tail[0] != '#' {
				return "", "", errors.New("there is text after the closing quote: put the whole value in quotes, or none of it")
			}
			return b.String(), after, nil
		case c == '\\' && quote == '"' && i+1 < len(start):
			i++
			b.WriteString(unescaped(start[i]))
		default:
			b.WriteByte(c)
		}
	}
	return "", "", errors.New("a quoted value is not closed")
}

// unescaped is what a backslash and c stand for in double quotes.
func unescaped(c byte) string {
	switch c {
	case 'n':
		return "\n"
	case 'r':
		return "\r"
	case 't':
		return "\t"
	case '"', '\\', '$', '`':
		return string(c)
	case '\n': // the line goes on
		return ""
	}
	return `\` + string(c)
}
