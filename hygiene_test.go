package crossfade_test

import (
	"io/fs"
	"os"
	"path/filepath"
	"regexp"
	"strings"
	"testing"
)

// declared gives the functions of tests whose names begin with a word, by name, with the
// packages that have them.
func declared(t *testing.T, word string) map[string][]string {
	t.Helper()
	out := map[string][]string{}
	name := regexp.MustCompile(`(?m)^func (` + word + `\w+)\(`)
	err := filepath.WalkDir(".", func(path string, e fs.DirEntry, err error) error {
		if err != nil || e.IsDir() || !strings.HasSuffix(path, "_test.go") {
			return err
		}
		text, err := os.ReadFile(path)
		for _, m := range name.FindAllSubmatch(text, -1) {
			out[string(m[1])] = append(out[string(m[1])], filepath.ToSlash(filepath.Dir(path)))
		}
		return err
	})
	if err != nil {
		t.Fatal(err)
	}
	return out
}

// TestFuzzingPage: each fuzz target stands in the table of docs/fuzzing.md, and nothing
// else does.
func TestFuzzingPage(t *testing.T) {
	page := map[string]bool{}
	row := regexp.MustCompile("(?m)^\\| `([^`]+)` \\| (`Fuzz.*) \\|$")
	for _, m := range row.FindAllStringSubmatch(read(t, "docs/fuzzing.md"), -1) {
		for _, target := range regexp.MustCompile(`Fuzz\w+`).FindAllString(m[2], -1) {
			page[m[1]+" "+target] = true
		}
	}
	for target, dirs := range declared(t, "Fuzz") {
		for _, dir := range dirs {
			if !page[dir+" "+target] {
				t.Errorf("docs/fuzzing.md lacks `%s` of `%s`", target, dir)
			}
			delete(page, dir+" "+target)
		}
	}
	for target := range page {
		t.Errorf("docs/fuzzing.md has %s, and the code has not", target)
	}
}

// TestThreatModel: each test that SECURITY.md names as the proof of a defence is there.
func TestThreatModel(t *testing.T) {
	have := declared(t, "(?:Test|Fuzz)")
	text := read(t, "SECURITY.md")
	rows := 0
	row := regexp.MustCompile(`(?m)^\| (Spoofing|Tampering|Repudiation|Information|Denial|Elevation)[^|]*\|([^|]+)\|([^|]+)\|([^|]+)\|$`)
	for _, m := range row.FindAllStringSubmatch(text, -1) {
		rows++
		names := regexp.MustCompile("`((?:Test|Fuzz)\\w+)`").FindAllStringSubmatch(m[4], -1)
		if len(names) == 0 && !strings.Contains(m[4], "no test") {
			t.Errorf("the threat %q has neither a test nor the words that there is none", strings.TrimSpace(m[2]))
		}
		for _, n := range names {
			if len(have[n[1]]) == 0 {
				t.Errorf("SECURITY.md names %s, and there is no such test", n[1])
			}
		}
	}
	for _, part := range []string{"SMTP in", "SMTP out", "IMAP", "Admin API", "Command line", "Stores", "Redis", "DNS", "Logs", "Supply chain"} {
		if !strings.Contains(text, "\n## "+part) {
			t.Errorf("SECURITY.md says nothing of %s", part)
		}
	}
	if rows < 30 {
		t.Errorf("SECURITY.md has %d threats", rows)
	}
}

// TestImage: the container has a static binary and nothing else, runs as a user that is not
// root, writes to its volume alone; the manifests and the compose file demand a root that
// is read-only and no rights.
func TestImage(t *testing.T) {
	text := read(t, "Dockerfile")
	stages := regexp.MustCompile(`(?m)^FROM .*$`).FindAllStringIndex(text, -1)
	if len(stages) != 2 {
		t.Fatalf("the Dockerfile has %d stages", len(stages))
	}
	last := text[stages[1][0]:]
	for _, want := range []string{"FROM scratch\n", "\nUSER 65532:65532\n", "\nVOLUME /var/lib/crossfade\n", "\nWORKDIR /var/lib/crossfade\n", "\nENV TMPDIR=/var/lib/crossfade\n", "\nENTRYPOINT [", "\nHEALTHCHECK "} {
		if !strings.Contains(last, want) {
			t.Errorf("the image lacks %q", strings.TrimSpace(want))
		}
	}
	if strings.Contains(last, "\nRUN ") || strings.Contains(last, "\nADD ") || !strings.Contains(text, "CGO_ENABLED=0") {
		t.Error("the last stage runs something, or the binary is not static")
	}
	if !strings.Contains(read(t, "deploy/kubernetes/crossfade.yaml"), "{name: data, mountPath: /var/lib/crossfade}") {
		t.Error("the manifests mount nothing where the image writes")
	}
	compose, _ := parseYAML(t, read(t, "docker-compose.yml"))[0]["services"].(map[string]any)
	for _, name := range []string{"node-a", "node-b"} {
		s, _ := compose[name].(map[string]any)
		if s["read_only"] != true || s["cap_drop"] == nil || s["security_opt"] == nil {
			t.Errorf("docker-compose.yml: %s has no read-only root, or rights", name)
		}
	}
	for _, want := range []string{"runAsNonRoot: true", "readOnlyRootFilesystem: true", "allowPrivilegeEscalation: false", "drop: [ALL]", "seccompProfile: {type: RuntimeDefault}"} {
		if !strings.Contains(read(t, "deploy/kubernetes/crossfade.yaml"), want) {
			t.Errorf("the manifests lack %q", want)
		}
	}
}
