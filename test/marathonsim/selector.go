package marathonsim

import (
	"fmt"
	"regexp"
	"slices"
	"strings"
)

// A selector is a list of conditions on labels, all of which must hold:
// a, b==v, c!=v, d in (x,y), e notin (z).
type selector []condition

type condition struct {
	label    string
	operator string // exists, ==, !=, in, notin
	values   []string
}

var (
	labelSet   = regexp.MustCompile(`^\s*([A-Za-z0-9_.-]+)\s+(in|notin)\s+\(([^)]*)\)\s*(?:,|$)`)
	labelEqual = regexp.MustCompile(`^\s*([A-Za-z0-9_.-]+)\s*(==|!=)\s*([A-Za-z0-9_.-]*)\s*(?:,|$)`)
	labelNamed = regexp.MustCompile(`^\s*([A-Za-z0-9_.-]+)\s*(?:,|$)`)
)

func parseSelector(s string) (selector, error) {
	var out selector
	for strings.TrimSpace(s) != "" {
		if m := labelSet.FindStringSubmatch(s); m != nil {
			values := strings.Split(m[3], ",")
			for i := range values {
				values[i] = strings.TrimSpace(values[i])
			}
			out = append(out, condition{m[1], m[2], values})
			s = s[len(m[0]):]
		} else if m := labelEqual.FindStringSubmatch(s); m != nil {
			out = append(out, condition{m[1], m[2], []string{m[3]}})
			s = s[len(m[0]):]
		} else if m := labelNamed.FindStringSubmatch(s); m != nil {
			out = append(out, condition{m[1], "exists", nil})
			s = s[len(m[0]):]
		} else {
			return nil, fmt.Errorf("Can not parse label selector: %s", s) //nolint:staticcheck // the words go out as they are
		}
	}
	return out, nil
}

func (s selector) matches(labels map[string]any) bool {
	for _, c := range s {
		v, has := labels[c.label].(string)
		found := has && (c.operator == "exists" || slices.Contains(c.values, v))
		if negative := c.operator == "!=" || c.operator == "notin"; negative == found {
			return false
		}
	}
	return true
}
