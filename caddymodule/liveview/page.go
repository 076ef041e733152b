package liveview

import (
	"bytes"
	"crypto/sha256"
	"embed"
	"encoding/hex"
	"fmt"
	"html/template"
	"net/http"

	"github.com/caddyserver/caddy/v2/modules/caddyhttp"
)

// statusFiles is the page of the live view, as it is sent: nothing is built
// from anything.
//
//go:embed page/page.html page/view.css page/view.js page/icon.svg
var statusFiles embed.FS

// statusAsset is a file that the page needs.
type statusAsset struct {
	body        []byte
	contentType string
	version     string // changes with the body
}

var statusAssets = map[string]statusAsset{
	"view.css": newStatusAsset("view.css", "text/css; charset=utf-8"),
	"view.js":  newStatusAsset("view.js", "text/javascript; charset=utf-8"),
	"icon.svg": newStatusAsset("icon.svg", "image/svg+xml"),
}

func newStatusAsset(name, contentType string) statusAsset {
	body, err := statusFiles.ReadFile("page/" + name)
	if err != nil {
		panic(err) // it is embedded
	}
	sum := sha256.Sum256(body)
	return statusAsset{body, contentType, hex.EncodeToString(sum[:6])}
}

var statusTemplate = template.Must(template.ParseFS(statusFiles, "page/page.html"))

// statusPolicy lets the page use what comes from its own origin and nothing
// else, run no text as a script, and be in no frame.
const statusPolicy = "default-src 'none'; script-src 'self'; style-src 'self'; connect-src 'self'; img-src 'self'; " +
	"base-uri 'none'; form-action 'none'; frame-ancestors 'none'; require-trusted-types-for 'script'; trusted-types 'none'"

func renderStatusPage(title string, control, output bool) ([]byte, error) {
	versions := make(map[string]string)
	for name, a := range statusAssets {
		versions[name] = "?asset=" + name + "&v=" + a.version
	}
	var b bytes.Buffer
	err := statusTemplate.Execute(&b, map[string]any{
		"Title": title, "Control": control, "Output": output,
		"Style": versions["view.css"], "Script": versions["view.js"], "Icon": versions["icon.svg"],
	})
	return b.Bytes(), err
}

func servePage(w http.ResponseWriter, page []byte) {
	h := w.Header()
	h.Set("Content-Type", "text/html; charset=utf-8")
	h.Set("Content-Security-Policy", statusPolicy)
	h.Set("Cross-Origin-Opener-Policy", "same-origin")
	h.Set("Cache-Control", "no-store")
	_, _ = w.Write(page)
}

func serveStatusAsset(w http.ResponseWriter, r *http.Request, name string) error {
	a, ok := statusAssets[name]
	if !ok {
		return caddyhttp.Error(http.StatusNotFound, fmt.Errorf("the live view has no file %q", name))
	}
	h := w.Header()
	h.Set("Content-Type", a.contentType)
	h.Set("Cache-Control", "no-store")
	if r.URL.Query().Get("v") == a.version {
		// Private, because the route may be.
		h.Set("Cache-Control", "private, max-age=31536000, immutable")
	}
	_, _ = w.Write(a.body)
	return nil
}
