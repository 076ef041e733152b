package answer

import (
	"net/http"
	"strings"
)

// preferencesMax is how much of a header with preferences is read. Those of
// browsers are much shorter. The time to parse one grows faster than its
// length, and a client may send a megabyte.
const PreferencesMax = 1 << 10

// preferences returns the list in a header like Accept or Accept-Language,
// without what comes late in a very long one.
func Preferences(h http.Header, name string) string {
	values := h[name]
	if len(values) == 1 && len(values[0]) <= PreferencesMax {
		return values[0]
	}
	var list strings.Builder
	for k, v := range values {
		if k > 0 {
			list.WriteByte(',')
		}
		if room := PreferencesMax - list.Len(); len(v) > room {
			// An entry that is cut off could mean something else.
			if end := strings.LastIndexByte(v[:max(room, 0)], ','); end >= 0 {
				list.WriteString(v[:end])
			}
			break
		}
		list.WriteString(v)
	}
	return list.String()
}
