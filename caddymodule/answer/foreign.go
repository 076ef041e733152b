package answer

import (
	"fmt"
	"html/template"
	"strings"
	"unicode/utf8"

	"github.com/caddy-usher/usher/scaler"
)

// Texts of clients, instances and platforms get into the answers that Usher
// gives. A program that the answer passes on its way to the client may look
// for marks of its own in it: the delimiters of a template language, which may
// be any two signs, or the start of a server-side include. The functions here
// write such a text so that it contains none.

// plainRune says whether c cannot be part of a mark.
func plainRune(c rune) bool {
	switch {
	case c >= utf8.RuneSelf, c >= 'a' && c <= 'z', c >= 'A' && c <= 'Z', c >= '0' && c <= '9':
		return true
	}
	return strings.ContainsRune(" \n\t.,:;/-_", c)
}

// foreignHTML writes a text for HTML, and for the value of an attribute in it.
func ForeignHTML(text string) template.HTML {
	text = scaler.Readable(text)
	var b strings.Builder
	for _, c := range text {
		switch {
		case strings.ContainsRune("<>&\"'", c):
			b.WriteString(template.HTMLEscapeString(string(c)))
		case plainRune(c) && c != ';':
			b.WriteRune(c)
		default:
			_, _ = fmt.Fprintf(&b, "&#%d;", c)
		}
	}
	return template.HTML(b.String()) //nolint:gosec // only letters, digits and references are left
}

// foreignJSON writes the texts in a JSON document so that they contain no mark.
func ForeignJSON(document []byte) []byte {
	var out []byte // nil as long as it would be equal
	inside := false
	var last byte
	for k := range document {
		c := document[k]
		switch {
		case c == '"' && (!inside || last != '\\'):
			inside, last = !inside, ' '
		case inside && c == '\\' && last == '\\':
			last = ' ' // an escaped backslash escapes nothing
			if out != nil {
				out = append(out, c)
			}
			continue
		case inside && opens(rune(c)) && (!plainRune(rune(last)) || !plainRune(rune(document[k+1])) && document[k+1] != '"'):
			if out == nil {
				out = append(make([]byte, 0, len(document)+64), document[:k]...)
			}
			out, last = fmt.Appendf(out, `\u%04x`, c), 'x'
			continue
		default:
			last = c
		}
		if out != nil {
			out = append(out, c)
		}
	}
	if out == nil {
		return document
	}
	return out
}

// foreignLine writes a text on one line of plain text: what an instance or a
// platform wrote on several lines cannot pass for an answer of its own, and a
// terminal does nothing for it. Plain text knows no other way to write a sign,
// so a space stands between two that could be a mark together.
func ForeignLine(text string) string {
	text = strings.Join(strings.FieldsFunc(scaler.Readable(text), func(c rune) bool { return c == '\n' }), "; ")
	var b strings.Builder
	last := ' '
	for _, c := range text {
		if opens(last) && !plainRune(c) || opens(c) && !plainRune(last) {
			b.WriteByte(' ')
		}
		b.WriteRune(c)
		last = c
	}
	return b.String()
}

// opens says whether c is a sign with which marks of two signs are made.
func opens(c rune) bool { return c == '{' || c == '[' || c == '(' || c == '<' }

// urlReference writes a request URI so that it can stand in a header, an
// attribute and a text. It means the same: what is escaped there may always
// be, and what the client had escaped stays as it is.
func UrlReference(uri string) string {
	safe := func(c byte) bool {
		return c < utf8.RuneSelf && (plainRune(rune(c)) && c > ' ' || strings.IndexByte("~?&=%+@!$*", c) >= 0)
	}
	n := 0
	for n < len(uri) && safe(uri[n]) {
		n++
	}
	if n == len(uri) {
		return uri
	}
	b := append(make([]byte, 0, len(uri)+16), uri[:n]...)
	for ; n < len(uri); n++ {
		if safe(uri[n]) {
			b = append(b, uri[n])
		} else {
			b = fmt.Appendf(b, "%%%02X", uri[n])
		}
	}
	return string(b)
}
