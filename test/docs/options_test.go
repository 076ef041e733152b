package docs

import (
	"go/ast"
	"go/parser"
	"go/token"
	"go/types"
	"io/fs"
	"path/filepath"
	"regexp"
	"slices"
	"strconv"
	"strings"
	"testing"
)

// Every option that a parser of the Caddyfile knows stands in the syntax of a
// page and is explained there; and a page shows no option that is not known.
func TestEveryOptionIsExplained(t *testing.T) {
	t.Parallel()
	known := knownOptions(t)
	for _, sure := range []string{"backend", "wait_timeout", "start_limit", "try_files", "env_file", "kubeconfig", "port_index", "max_streams", "utilization", "refresh", "scheme"} {
		if !known[sure] {
			t.Fatalf("the parsers' option %s was not found: this test looks for options in the wrong way", sure)
		}
	}
	shown := make(map[string]bool)
	for _, b := range blocks(t) {
		if b.lang != "text" || !b.has("syntax") {
			continue
		}
		page := read(t, b.page)
		for line := range strings.Lines(b.text) {
			name := optionName.FindString(strings.TrimSpace(line))
			if name == "" {
				continue
			}
			shown[name] = true
			if name != "backend" && !strings.Contains(page, "`"+name+"`") && !strings.Contains(page, "`"+name+" ") {
				t.Errorf("%s shows %s, but the page does not explain it", b, name)
			}
			if outer := []string{"usher", "usher_status", "kubernetes", "marathon", "docker", "discover"}; !known[name] && !slices.Contains(outer, name) {
				t.Errorf("%s shows %s, which no parser knows", b, name)
			}
		}
	}
	for name := range known {
		if !shown[name] {
			t.Errorf("no page shows the option %s", name)
		}
	}
}

var optionName = regexp.MustCompile(`^[a-z][a-z_]+`)

// knownOptions looks for the names of options in the source: the cases of
// switches and the keys of tables, in functions that read a Caddyfile.
func knownOptions(t *testing.T) map[string]bool {
	t.Helper()
	known := make(map[string]bool)
	fset := token.NewFileSet()
	for _, dir := range []string{"caddymodule", "backends", "cluster", "postgres", "scaler"} {
		err := filepath.WalkDir(filepath.Join(root, dir), func(name string, _ fs.DirEntry, err error) error {
			if err != nil || !strings.HasSuffix(name, ".go") || strings.HasSuffix(name, "_test.go") {
				return err
			}
			file, err := parser.ParseFile(fset, name, nil, parser.SkipObjectResolution)
			if err != nil {
				return err
			}
			for _, decl := range file.Decls {
				optionsIn(decl, known)
			}
			return nil
		})
		if err != nil {
			t.Fatal(err)
		}
	}
	return known
}

// optionsIn adds the options that a declaration knows.
func optionsIn(decl ast.Decl, known map[string]bool) {
	add := func(e ast.Expr) {
		if lit, ok := e.(*ast.BasicLit); ok && lit.Kind == token.STRING {
			if s, err := strconv.Unquote(lit.Value); err == nil && s != "" && optionName.FindString(s) == s {
				known[s] = true
			}
		}
	}
	table := func(n ast.Node) {
		lit, ok := n.(*ast.CompositeLit)
		if !ok || lit.Type == nil {
			return
		}
		if kind := types.ExprString(lit.Type); kind != "map[string]*string" && kind != "map[string]*caddy.Duration" && !strings.Contains(kind, "caddyfile.Dispenser") {
			return
		}
		for _, e := range lit.Elts {
			if kv, ok := e.(*ast.KeyValueExpr); ok {
				add(kv.Key)
			}
		}
	}
	f, ok := decl.(*ast.FuncDecl)
	if !ok {
		ast.Inspect(decl, func(n ast.Node) bool { table(n); return true })
		return
	}
	// The name of an option is d.Val(), or a variable that has it.
	names := make(map[string]bool)
	for _, p := range f.Type.Params.List {
		if types.ExprString(p.Type) == "*caddyfile.Dispenser" && len(p.Names) == 1 {
			names[p.Names[0].Name+".Val()"] = true
		}
	}
	if len(names) == 0 {
		return
	}
	ast.Inspect(f, func(n ast.Node) bool {
		if s, ok := n.(*ast.AssignStmt); ok && len(s.Lhs) == 1 && names[types.ExprString(s.Rhs[0])] {
			names[types.ExprString(s.Lhs[0])] = true
		}
		return true
	})
	ast.Inspect(f, func(n ast.Node) bool {
		table(n)
		s, ok := n.(*ast.SwitchStmt)
		if !ok {
			return true
		}
		byName := s.Tag != nil && names[types.ExprString(s.Tag)]
		for _, c := range s.Body.List {
			for _, e := range c.(*ast.CaseClause).List {
				if byName {
					add(e)
				}
				if cmp, ok := e.(*ast.BinaryExpr); ok && cmp.Op == token.EQL && names[types.ExprString(cmp.X)] {
					add(cmp.Y)
				}
			}
		}
		return true
	})
}
