package caddymodule

import (
	"encoding/json"
	"slices"
	"strconv"
	"strings"

	"github.com/caddyserver/caddy/v2"
	"github.com/caddyserver/caddy/v2/caddyconfig"
	"github.com/caddyserver/caddy/v2/caddyconfig/caddyfile"
	"github.com/caddyserver/caddy/v2/modules/caddyhttp"
	"github.com/caddyserver/caddy/v2/modules/caddyhttp/fileserver"
	"github.com/caddyserver/caddy/v2/modules/caddyhttp/reverseproxy/fastcgi"
	"github.com/caddyserver/caddy/v2/modules/caddyhttp/rewrite"
)

// php is the option `php`: the directive becomes what php_fastcgi becomes, with
// an instance of the service in place of an address.
type php struct {
	transport fastcgi.Transport
	index     string
	tryFiles  []string
}

const phpIndex = "index.php"

// parsePHP reads the option. Syntax:
//
//	php {
//		index <file>|off
//		try_files <files...>
//		<options of transport fastcgi: root, split, env, resolve_root_symlink,
//		 dial_timeout, read_timeout, write_timeout, capture_stderr>
//	}
func (p *directiveParser) parsePHP(d *caddyfile.Dispenser) error {
	p.php = &php{index: phpIndex}
	name := d.Token()
	if d.NextArg() {
		return d.ArgErr()
	}
	open, end := name, name
	open.Text, end.Text = "{", "}"
	tokens := []caddyfile.Token{name, open}
	for nesting := d.Nesting(); d.NextBlock(nesting); {
		switch d.Val() {
		case "index":
			if !d.AllArgs(&p.php.index) {
				return d.ArgErr()
			}
		case "try_files":
			if p.php.tryFiles = d.RemainingArgs(); len(p.php.tryFiles) == 0 {
				return d.ArgErr()
			}
		default:
			tokens = append(tokens, d.NextSegment()...)
		}
	}
	if len(tokens) > 2 {
		last := tokens[len(tokens)-1]
		end.File, end.Line = last.File, last.Line+last.NumLineBreaks()+1
		if err := p.php.transport.UnmarshalCaddyfile(caddyfile.NewDispenser(append(tokens, end))); err != nil {
			return err
		}
	}
	if len(p.php.transport.SplitPath) == 0 {
		p.php.transport.SplitPath = []string{".php"}
	}
	return nil
}

// routes returns the routes of php_fastcgi, with last as the one for scripts.
func (p *php) routes(last caddyhttp.Route) caddyhttp.RouteList {
	var routes caddyhttp.RouteList
	if p.index != "off" {
		routes = p.indexRoutes()
	}
	var scripts caddyhttp.MatchPath
	for _, ext := range p.transport.SplitPath {
		scripts = append(scripts, "*"+ext)
	}
	last.MatcherSetsRaw = matching("path", scripts)
	return append(routes, last)
}

// indexRoutes are those that lead to the index file: a redirect of directories,
// and a rewrite of what is no file.
func (p *php) indexRoutes() caddyhttp.RouteList {
	index := "{http.request.uri.path}/" + p.index
	files, policy := p.tryFiles, "first_exist_fallback"
	if len(files) == 0 {
		files = []string{"{http.request.uri.path}", index, p.index}
	} else if !strings.HasSuffix(files[len(files)-1], ".php") {
		policy = ""
	}
	var routes caddyhttp.RouteList
	if slices.Contains(files, index) {
		directories := matching("file", fileserver.MatchFile{TryFiles: []string{index}})
		directories[0]["not"] = caddyconfig.JSON(caddyhttp.MatchNot{MatcherSetsRaw: matching("path", caddyhttp.MatchPath{"*/"})}, nil)
		// The location is relative: it leads to no other host, whatever the path is.
		routes = append(routes, caddyhttp.Route{MatcherSetsRaw: directories, HandlersRaw: []json.RawMessage{
			caddyconfig.JSONModuleObject(caddyhttp.StaticResponse{
				StatusCode: caddyhttp.WeakString(strconv.Itoa(308)),
				Headers:    map[string][]string{"Location": {"./{http.request.orig_uri.path.file_escaped}/{http.request.orig_uri.prefixed_query}"}},
			}, "handler", "static_response", nil),
		}})
	}
	return append(routes, caddyhttp.Route{
		MatcherSetsRaw: matching("file", fileserver.MatchFile{TryFiles: files, TryPolicy: policy, SplitPath: p.transport.SplitPath}),
		HandlersRaw: []json.RawMessage{
			caddyconfig.JSONModuleObject(rewrite.Rewrite{URI: "{http.matchers.file.relative}"}, "handler", "rewrite", nil),
		},
	})
}

func matching(name string, m any) caddyhttp.RawMatcherSets {
	return caddyhttp.RawMatcherSets{caddy.ModuleMap{name: caddyconfig.JSON(m, nil)}}
}
