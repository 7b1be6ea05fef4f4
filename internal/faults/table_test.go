package faults

import (
	"flag"
	"fmt"
	"os"
	"strings"
	"sync"
	"testing"
)

// row is a line of the table that the suite ends with.
type row struct {
	fault, store                         string
	runs                                 int // how often the fault was done
	accepted, delivered, lost, duplicate int // accepted in messages, delivered in final dots
	why                                  string
}

var table struct {
	mu   sync.Mutex
	rows []row
}

func report(r row) {
	table.mu.Lock()
	defer table.mu.Unlock()
	table.rows = append(table.rows, r)
}

// result makes a row of a verdict and fails the test where it is bad.
func result(t testing.TB, name, store string, runs int, v *verdict) {
	t.Helper()
	report(row{name, store, runs, v.Acked, v.Dots, len(v.Lost), v.twice(), v.reasons()})
	t.Logf("%s, %s: %d runs, accepted %d, refused %d, delivered %d, lost %d, duplicated %d (%s)", name, store, runs, v.Acked, v.refused, v.Dots,
		len(v.Lost), v.twice(), v.reasons())
	for i, s := range v.bad() {
		if i == 20 {
			t.Errorf("and %d more", len(v.bad())-i)
			break
		}
		t.Error(s)
	}
}

// caught makes a row of a variant that is broken on purpose, and fails the test
// when nobody noticed.
func caught(t testing.TB, name, store string, runs int, v *verdict, found []string) {
	t.Helper()
	report(row{"BROKEN ON PURPOSE: " + name, store, runs, v.Acked, v.Dots, len(v.Lost), v.twice(), fmt.Sprintf("caught: %d findings", len(found))})
	if len(found) == 0 {
		t.Errorf("the checker saw nothing wrong with %s", name)
		return
	}
	t.Logf("%s: accepted %d, delivered %d, lost %d, duplicated %d; caught by %d findings, the first: %s", name, v.Acked, v.Dots, len(v.Lost),
		v.twice(), len(found), found[0])
}

func (r row) String() string {
	return fmt.Sprintf("%-62s %-6s %5d %8d %9d %5d %5d  %s", r.fault, r.store, r.runs, r.accepted, r.delivered, r.lost, r.duplicate, r.why)
}

func TestMain(m *testing.M) {
	if conf := os.Getenv(nodeEnv); conf != "" {
		if err := runNode(conf); err != nil {
			fmt.Fprintln(os.Stderr, "node:", err)
			os.Exit(1)
		}
		os.Exit(0)
	}
	flag.Parse()
	if err := flag.Set("test.parallel", "4"); err != nil { // most wait most of the time
		fmt.Fprintln(os.Stderr, err)
	}
	code := m.Run()
	cleanup()
	if err := printTable(); err != nil {
		fmt.Fprintln(os.Stderr, "the file that CROSSFADE_FIGURES names:", err)
		code = max(code, 1)
	}
	os.Exit(code)
}

func printTable() error {
	if len(table.rows) == 0 {
		return nil
	}
	var b strings.Builder
	fmt.Fprintf(&b, "%-62s %-6s %5s %8s %9s %5s %5s  %s\n", "fault", "store", "runs", "accepted", "delivered", "lost", "twice", "why")
	for _, r := range table.rows {
		fmt.Fprintln(&b, r)
	}
	fmt.Print(b.String())
	name := os.Getenv("CROSSFADE_FIGURES")
	if name == "" {
		return nil
	}
	f, err := os.OpenFile(name, os.O_CREATE|os.O_APPEND|os.O_WRONLY, 0o644)
	if err != nil {
		return err
	}
	if _, err := f.WriteString(b.String()); err != nil {
		f.Close()
		return err
	}
	return f.Close()
}

// long tells whether the long form was asked for.
func long() bool { return os.Getenv("CROSSFADE_FAULTS") == "long" }

// times gives the size of a run: the short form's, or the long form's.
func times(short, lng int) int {
	if long() {
		return lng
	}
	return short
}

// needRoot tells whether what root may do can be done; where CI is set it has
// to.
func needRoot(t testing.TB, what string) {
	t.Helper()
	if os.Geteuid() == 0 {
		return
	}
	if os.Getenv("CI") != "" {
		t.Fatalf("%s needs root", what)
	}
	t.Skipf("%s needs root: NOT tested", what)
}
