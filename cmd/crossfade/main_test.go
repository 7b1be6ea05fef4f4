package main

import (
	"bytes"
	"errors"
	"fmt"
	"io"
	"net/http"
	"net/http/httptest"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"sync"
	"testing"

	"github.com/rogpeppe/go-internal/testscript"
)

func TestMain(m *testing.M) {
	testscript.Main(m, map[string]func(){"crossfade": main})
}

// TestScripts runs testdata/*.txtar. Each has an API server of its own that
// answers from the files api/METHOD.path (a status and a content type on the
// first line, then the body; with .1, .2 and so on at the end of the name, the
// first, second and so on answer), and notes the requests in the file requests.
// crossfade.yaml is a configuration whose admin API is that server.
func TestScripts(t *testing.T) { runScripts(t, "testdata", "") }

// runScripts runs the scripts of a directory; more is added to the configuration.
func runScripts(t *testing.T, dir, more string) {
	testscript.Run(t, testscript.Params{
		Dir:                 dir,
		RequireExplicitExec: true,
		Setup: func(env *testscript.Env) error {
			web := httptest.NewServer(&canned{dir: env.WorkDir, asked: map[string]int{}})
			env.Defer(web.Close)
			env.Setenv("CROSSFADE_URL", web.URL)
			env.Setenv("CROSSFADE_TOKEN", "0123456789abcdef")
			env.Setenv("NO_PROXY", "*")
			conf := fmt.Sprintf("hostname: mx.example.org\ndomains: [example.org]\nadmin: {listen: %q, token_file: ./good}\n"+
				"backends: {old: {smtp: smtp://old.example.net}, new: {smtp: smtp://new.example.net}}\n", strings.TrimPrefix(web.URL, "http://")) + more
			if err := os.WriteFile(filepath.Join(env.WorkDir, "crossfade.yaml"), []byte(conf), 0o600); err != nil {
				return err
			}
			env.Setenv("TZ", "UTC")
			if _, err := os.Stat(filepath.Join(env.WorkDir, "good")); err == nil { // the archive cannot say so
				return os.Chmod(filepath.Join(env.WorkDir, "good"), 0o600)
			}
			return nil
		},
		Cmds: map[string]func(ts *testscript.TestScript, neg bool, args []string){"exits": exits},
	})
}

// exits runs a command and compares its exit code: exits CODE COMMAND...
func exits(ts *testscript.TestScript, neg bool, args []string) {
	if neg || len(args) < 2 {
		ts.Fatalf("usage: exits CODE COMMAND...")
	}
	want, err := strconv.Atoi(args[0])
	ts.Check(err)
	got := 0
	var exit *exec.ExitError
	switch err := ts.Exec(args[1], args[2:]...); {
	case errors.As(err, &exit):
		got = exit.ExitCode()
	case err != nil:
		ts.Fatalf("%v", err)
	}
	if got != want {
		ts.Fatalf("exit code %d, want %d\nstdout: %s\nstderr: %s", got, want, ts.ReadFile("stdout"), ts.ReadFile("stderr"))
	}
}

// canned answers from files.
type canned struct {
	dir   string
	mu    sync.Mutex
	asked map[string]int
}

func (c *canned) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	c.mu.Lock()
	defer c.mu.Unlock()
	body, _ := io.ReadAll(r.Body)
	query := ""
	if r.URL.RawQuery != "" {
		query = "?" + r.URL.RawQuery
	}
	log, err := os.OpenFile(filepath.Join(c.dir, "requests"), os.O_APPEND|os.O_CREATE|os.O_WRONLY, 0o600)
	if err == nil {
		fmt.Fprintf(log, "%s %s%s %s\n", r.Method, r.URL.EscapedPath(), query, body)
		log.Close()
	}
	name := filepath.Join(c.dir, "api", r.Method+strings.ReplaceAll(r.URL.Path, "/", "."))
	c.asked[name]++
	answer, err := os.ReadFile(fmt.Sprintf("%s.%d", name, c.asked[name]))
	for n := c.asked[name]; err != nil && n > 1; n-- {
		answer, err = os.ReadFile(fmt.Sprintf("%s.%d", name, n-1))
	}
	if err != nil {
		answer, err = os.ReadFile(name)
	}
	if err != nil {
		answer = []byte("404 application/problem+json\n" + `{"type":"/problems/not-found","title":"no such path","status":404,"detail":"` + name + `"}`)
	}
	head, rest, _ := bytes.Cut(answer, []byte("\n"))
	status, contentType, _ := strings.Cut(string(head), " ")
	code, err := strconv.Atoi(status)
	if err != nil {
		panic(fmt.Sprintf("%s: bad first line %q", name, head))
	}
	w.Header().Set("Content-Type", contentType)
	w.WriteHeader(code)
	if code != http.StatusNoContent {
		w.Write(rest)
	}
}

func TestClean(t *testing.T) {
	for _, tt := range []struct{ in, want string }{
		{"plain text, äöü, 日本", "plain text, äöü, 日本"},
		{"\x1b[31mred\x1b[0m", `\x1b[31mred\x1b[0m`},
		{"a\r\nb\tc", "a  b c"},
		{"\u009b31m", `\x9b31m`},
		{"\x9b31m", `\x9b31m`},
		{"safe\u202etxt.exe", `safe\u202etxt.exe`},
		{"zero\u200bwidth\x00\x7f", `zero\u200bwidth\x00\x7f`},
		{"\ufffd", `\ufffd`},
	} {
		if got := clean(tt.in); got != tt.want {
			t.Errorf("clean(%q) = %q, want %q", tt.in, got, tt.want)
		}
	}
}

func FuzzClean(f *testing.F) {
	f.Add("\x1b]0;title\a")
	f.Add("\u009b\u202e")
	f.Fuzz(func(t *testing.T, s string) {
		for _, r := range clean(s) {
			if r < ' ' || r >= 0x7f && r < 0xa0 || r >= 0x200b && r <= 0x200f || r >= 0x202a && r <= 0x202e || r >= 0x2066 && r <= 0x2069 {
				t.Errorf("%q became %q", s, clean(s))
			}
		}
	})
}

func TestPrintJSONEscapes(t *testing.T) {
	var b bytes.Buffer
	a := &app{stdout: &b}
	if err := a.printJSON([]string{"\x1b[31m\u009b\u202e ä <&> \U000e0001"}); err != nil {
		t.Fatal(err)
	}
	want := "[\n  \"\\u001b[31m\\u009b\\u202e ä <&> \\udb40\\udc01\"\n]\n"
	if b.String() != want {
		t.Errorf("got %q, want %q", b.String(), want)
	}
}

func TestBar(t *testing.T) {
	var b bytes.Buffer
	p := progress{w: &b, width: 20}
	p.line("not on a terminal")
	p.bar(barText(1, 2, 1, 2) + " 1/2 users and more text")
	p.clear()
	p.end()
	if got := b.String(); got != "\r\x1b[K[=================…\r\x1b[K" {
		t.Errorf("%q", got)
	}
	for _, n := range [][4]int{{0, 0, 0, 0}, {5, 5, 0, 0}, {0, 3, 9, 3}} {
		if got := barText(n[0], n[1], n[2], n[3]); len(got) != 26 {
			t.Errorf("%v: %q", n, got)
		}
	}
}
