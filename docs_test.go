package crossfade_test

import (
	"bufio"
	"os"
	"regexp"
	"slices"
	"strings"
	"testing"

	"crossfade/config"
	"crossfade/router"
)

func read(t *testing.T, name string) string {
	t.Helper()
	b, err := os.ReadFile(name)
	if err != nil {
		t.Fatal(err)
	}
	return string(b)
}

// TestConfigurationPage: the page is made from the code and must not differ.
func TestConfigurationPage(t *testing.T) {
	if read(t, "docs/configuration.md") != config.Reference() {
		t.Error("docs/configuration.md differs from the code: run `make docs`")
	}
}

// TestStatesPage compares the table of docs/states.md with router.Transition,
// for every pair of states.
func TestStatesPage(t *testing.T) {
	row := regexp.MustCompile("^\\| `(\\w+)` \\|[^|]*\\|[^|]*\\|([^|]*)\\|([^|]*)\\|$")
	words := func(s string) []string { return regexp.MustCompile(`\w+`).FindAllString(s, -1) }
	seen := 0
	for sc := bufio.NewScanner(strings.NewReader(read(t, "docs/states.md"))); sc.Scan(); {
		m := row.FindStringSubmatch(sc.Text())
		if m == nil {
			continue
		}
		seen++
		plain, forced := words(m[2]), words(m[3])
		for _, to := range router.States() {
			from := router.State(m[1])
			if got, want := router.Transition(from, to, false) == nil, slices.Contains(plain, string(to)); got != want {
				t.Errorf("%s to %s: the code says %t, the page says %t", from, to, got, want)
			}
			got := router.Transition(from, to, true) == nil
			if want := slices.Contains(plain, string(to)) || slices.Contains(forced, string(to)); got != want {
				t.Errorf("%s to %s by force: the code says %t, the page says %t", from, to, got, want)
			}
		}
	}
	if seen != len(router.States()) {
		t.Errorf("the page has %d states, the code %d", seen, len(router.States()))
	}
}

// TestDependenciesPage: every direct dependency has its reason.
func TestDependenciesPage(t *testing.T) {
	page := read(t, "docs/dependencies.md")
	for _, line := range strings.Split(read(t, "go.mod"), "\n") {
		f := strings.Fields(line)
		if len(f) == 2 && strings.HasPrefix(f[1], "v") && !strings.Contains(page, f[0]) {
			t.Errorf("docs/dependencies.md does not say why %s is here", f[0])
		}
	}
}

// TestLinks: what README and docs point to is there.
func TestLinks(t *testing.T) {
	link := regexp.MustCompile(`\]\(([^)#:]+)\)`)
	files := []string{"README.md"}
	entries, err := os.ReadDir("docs")
	if err != nil {
		t.Fatal(err)
	}
	for _, e := range entries {
		files = append(files, "docs/"+e.Name())
	}
	for _, f := range files {
		dir := ""
		if strings.HasPrefix(f, "docs/") {
			dir = "docs/"
		}
		for _, m := range link.FindAllStringSubmatch(read(t, f), -1) {
			if _, err := os.Stat(dir + m[1]); err != nil {
				t.Errorf("%s links to %s: %v", f, m[1], err)
			}
		}
	}
}
