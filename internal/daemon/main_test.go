package daemon

import (
	"flag"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"sync"
	"testing"
)

// TestMain lets more tests run at once than there are cores, unless -parallel says how
// many: most of their time they wait, for a hold, for a grace to end, for a process that
// was killed.
func TestMain(m *testing.M) {
	flag.Parse()
	if n := flag.Lookup("test.parallel"); n.Value.String() == n.DefValue {
		if err := n.Value.Set("4"); err != nil {
			panic(err)
		}
	}
	code := m.Run()
	if programs.dir != "" {
		_ = os.RemoveAll(programs.dir)
	}
	os.Exit(code)
}

// programs are what tests start, in a directory of their own.
var programs struct {
	mu   sync.Mutex
	dir  string
	made map[string]bool
}

// Built gives a program that the go command makes of a package, by build or test -c. It
// is made once for all tests: each would else link it anew.
func Built(t testing.TB, name, pkg string, verb ...string) string {
	t.Helper()
	p := &programs
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.dir == "" {
		var err error
		if p.dir, err = os.MkdirTemp("", "crossfade-daemon-"); err != nil {
			t.Fatal(err)
		}
		p.made = map[string]bool{}
	}
	path := filepath.Join(p.dir, name)
	if !p.made[name] {
		if out, err := exec.Command("go", slices.Concat(verb, []string{"-o", path, pkg})...).CombinedOutput(); err != nil {
			t.Fatalf("go %v %s: %v\n%s", verb, pkg, err, out)
		}
		p.made[name] = true
	}
	return path
}
