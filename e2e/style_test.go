package e2e

import (
	"go/ast"
	"go/parser"
	"go/token"
	"io/fs"
	"path/filepath"
	"strings"
	"testing"
)

// TestStyle holds up what make lint doesn't: no function over 80 lines, and no init.
func TestStyle(t *testing.T) {
	t.Parallel()
	const longest = 80
	files := token.NewFileSet()
	err := filepath.WalkDir("..", func(path string, d fs.DirEntry, err error) error {
		switch {
		case err != nil:
			return err
		case d.IsDir() && d.Name() == "bin":
			return fs.SkipDir
		case filepath.Ext(path) != ".go" || strings.HasSuffix(path, "_test.go"):
			return nil
		}
		file, err := parser.ParseFile(files, path, nil, 0)
		if err != nil {
			return err
		}
		for _, declared := range file.Decls {
			f, ok := declared.(*ast.FuncDecl)
			if !ok {
				continue
			}
			begin, end := files.Position(f.Pos()), files.Position(f.End())
			if lines := end.Line - begin.Line + 1; lines > longest {
				t.Errorf("%s: %s has %d lines, of %d at most", begin, f.Name.Name, lines, longest)
			}
			if f.Name.Name == "init" && f.Recv == nil {
				t.Errorf("%s: an init", begin)
			}
		}
		return nil
	})
	if err != nil {
		t.Error(err)
	}
}
