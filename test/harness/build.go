package harness

import (
	"flag"
	"fmt"
	"io/fs"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"

	"go.uber.org/goleak"
)

// Race tells whether everything runs with the race detector, which makes it
// several times slower: tests may give themselves more time then.
const Race = raceEnabled

// Binaries are the programs that the tests run.
type Binaries struct {
	Caddy string // Caddy with Usher
	App   string // the instance program, test/app
}

var (
	buildDir  string
	buildOnce = sync.OnceValues(build)
)

// Main runs the tests of a package that uses the harness: it sees to it that
// tests which mostly wait do so side by side, that no goroutine is left over,
// and that what was built goes away. Call it from TestMain.
func Main(m interface{ Run() int }) {
	flag.Parse()
	given := false
	flag.Visit(func(f *flag.Flag) { given = given || f.Name == "test.parallel" })
	if !given {
		// The default is the number of cores; the tests wait more than they work.
		_ = flag.Set("test.parallel", fmt.Sprint(2*maxCaddys))
	}
	code := m.Run()
	stopStarter()
	if buildDir != "" {
		os.RemoveAll(buildDir)
	}
	if code == 0 {
		if err := goleak.Find(); err != nil {
			fmt.Fprintln(os.Stderr, err)
			code = 1
		}
	}
	os.Exit(code)
}

// Build returns the programs under test, built once per test process.
// USHER_TEST_CADDY names a Caddy to be used instead of a fresh one.
func Build(t testing.TB) Binaries {
	t.Helper()
	bin, err := buildOnce()
	if err != nil {
		t.Fatal(err)
	}
	return bin
}

func build() (Binaries, error) {
	if err := lookAtSources(); err != nil {
		return Binaries{}, err
	}
	dir, err := os.MkdirTemp("", "usher-bin-")
	if err != nil {
		return Binaries{}, err
	}
	buildDir = dir
	// Processes of another user must be able to execute the app.
	if err := os.Chmod(dir, 0o755); err != nil {
		return Binaries{}, err
	}
	bin := Binaries{Caddy: os.Getenv("USHER_TEST_CADDY"), App: filepath.Join(dir, "app")}
	if bin.Caddy == "" {
		bin.Caddy = filepath.Join(dir, "caddy")
		if err := goBuild(bin.Caddy, "github.com/caddy-usher/usher/test/caddy", raceEnabled); err != nil {
			return Binaries{}, err
		}
	}
	// The app is never built with -race: it is not what is tested, and it
	// has to start fast.
	return bin, goBuild(bin.App, "github.com/caddy-usher/usher/test/app", false)
}

var otherClockOnce = sync.OnceValues(func() (string, error) {
	if _, err := buildOnce(); err != nil {
		return "", err
	}
	program := filepath.Join(buildDir, "otherclock")
	return program, goBuild(program, "github.com/caddy-usher/usher/test/caddy/otherclock", raceEnabled, "-checklinkname=0")
})

// OtherClock returns a Caddy for Program whose wall clock is ahead by what the
// file says that its environment names as OTHERCLOCK: 1h, for example. There is
// one for Linux on amd64 only.
func OtherClock(t testing.TB) string {
	t.Helper()
	program, err := otherClockOnce()
	if err != nil {
		t.Fatal(err)
	}
	return program
}

// lookAtSources looks at every file that the programs are made of. Go takes the
// result of an earlier run for as long as the files that the tests have looked
// at are the same, and knows nothing of what they build.
func lookAtSources() error {
	root, err := os.Getwd()
	if err != nil {
		return err
	}
	for _, err := os.Stat(filepath.Join(root, "go.mod")); err != nil; _, err = os.Stat(filepath.Join(root, "go.mod")) {
		if root == filepath.Dir(root) {
			return fmt.Errorf("no go.mod above the test: %w", err)
		}
		root = filepath.Dir(root)
	}
	for _, part := range []string{"go.sum", "usher.go", "async", "caddymodule", "backends", "cluster", "kubeaccess", "scaler", "reserver", "test/app", "test/caddy"} {
		err := filepath.WalkDir(filepath.Join(root, part), func(path string, _ fs.DirEntry, err error) error {
			if err == nil {
				_, err = os.Stat(path)
			}
			return err
		})
		if err != nil {
			return err
		}
	}
	return nil
}

func goBuild(output, pkg string, race bool, linkerFlags ...string) error {
	// Without symbols linking takes half the time.
	args := []string{"build", "-ldflags=" + strings.Join(append(linkerFlags, "-s", "-w"), " "), "-o", output}
	if race {
		args = append(args, "-race")
	}
	cmd := exec.Command("go", append(args, pkg)...)
	start := time.Now()
	if out, err := cmd.CombinedOutput(); err != nil {
		return fmt.Errorf("building %s (%s): %w\n%s", pkg, time.Since(start).Round(time.Second), err, out)
	}
	return nil
}
