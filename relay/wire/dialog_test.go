package wire

import (
	"fmt"
	"io"
	"os"
	"path/filepath"
	"regexp"
	"strconv"
	"strings"
	"testing"

	"github.com/emersion/go-smtp"
)

// dialogConfig is what every dialogue in testdata runs against.
func dialogConfig(t *testing.T) Config {
	return withTLS(t, Config{
		Hostname:   "mx.test",
		Greeting:   "ESMTP ready",
		Extensions: []string{"PIPELINING", "SIZE 1000", "8BITMIME", "SMTPUTF8", "CHUNKING", "ENHANCEDSTATUSCODES"},
		Postmaster: "root@ours.test",
		MaxErrors:  5, MaxRcptErrors: 4, MaxNoise: 6, MaxLine: 200, MaxCommand: 512,
	})
}

// TestDialogs runs testdata/*.dlg. Its lines: "C: text" is sent with CRLF, and
// "R: text" is sent as the Go string it is the inside of; lines that follow each
// other go out in one write. "S: regexp" is one reply line of the server, or <eof>.
// "TLS" starts a handshake. "Q: n" wants n messages taken so far, "F: n" n bodies
// that ended in an error, "B: text" the last message's body, "P: text" and "L: text" the last
// path and line that the session saw, "E: from -> rcpt rcpt" the last envelope. "#" is a comment.
func TestDialogs(t *testing.T) { runDialogs(t) }

// TestDialogsDirect runs them with a session that reads past the library.
func TestDialogsDirect(t *testing.T) {
	runDialogs(t, func(s *server, _ *smtp.Server) { s.direct = direct })
}

func direct(c *Conn, _ io.Reader) io.Reader { return c.Body(0) }

func runDialogs(t *testing.T, with ...func(*server, *smtp.Server)) {
	files, err := filepath.Glob("testdata/*.dlg")
	if err != nil || len(files) == 0 {
		t.Fatalf("no dialogues: %v", err)
	}
	for _, f := range files {
		t.Run(strings.TrimSuffix(filepath.Base(f), ".dlg"), func(t *testing.T) {
			text, err := os.ReadFile(f)
			if err != nil {
				t.Fatal(err)
			}
			s := start(t, dialogConfig(t), with...)
			d := &dialog{s: s, p: s.dial(), t: t}
			for i, line := range strings.Split(string(text), "\n") {
				d.where = fmt.Sprintf("%s:%d: %s", f, i+1, line)
				d.line(line)
			}
			s.mu.Lock()
			defer s.mu.Unlock()
			if s.log.Len() > 0 && !strings.Contains(s.log.String(), "panic serving") {
				t.Errorf("the library logged %q", s.log.String())
			}
		})
	}
}

type dialog struct {
	t     *testing.T
	s     *server
	p     *peer
	out   strings.Builder
	where string
}

func (d *dialog) line(line string) {
	d.t.Helper()
	key, arg, _ := strings.Cut(line, ":")
	arg = strings.TrimPrefix(arg, " ")
	switch {
	case line == "" || line[0] == '#':
		return
	case key == "C":
		d.out.WriteString(arg + "\r\n")
		return
	case key == "R":
		d.out.WriteString(d.unquote(arg))
		return
	}
	if d.out.Len() > 0 {
		d.p.send(d.out.String())
		d.out.Reset()
	}
	switch key {
	case "S":
		d.serverSays(arg)
	case "TLS":
		d.p.upgrade()
	case "Q", "F":
		d.count(key, arg)
	default:
		d.check(key, arg)
	}
}

func (d *dialog) unquote(s string) string {
	d.t.Helper()
	u, err := strconv.Unquote(`"` + strings.ReplaceAll(s, `"`, `\"`) + `"`)
	if err != nil {
		d.t.Fatalf("%s: %v", d.where, err)
	}
	return u
}

func (d *dialog) serverSays(want string) {
	d.t.Helper()
	got, err := d.p.r.ReadString('\n')
	got = strings.TrimSuffix(got, "\r\n")
	if err != nil {
		got += "<eof>"
	}
	if !regexp.MustCompile("^(?:" + want + ")$").MatchString(got) {
		d.t.Fatalf("%s\ngot: %s", d.where, got)
	}
}

func (d *dialog) count(key, arg string) {
	d.t.Helper()
	n, err := strconv.Atoi(arg)
	if err != nil {
		d.t.Fatal(err)
	}
	eventually(d.t, d.where, func() bool {
		if key == "F" {
			return len(d.s.errors()) == n
		}
		return len(d.s.messages()) == n
	})
}

func (d *dialog) check(key, arg string) {
	d.t.Helper()
	d.s.mu.Lock()
	defer d.s.mu.Unlock()
	var got string
	var m message
	if n := len(d.s.queued); n > 0 {
		m = d.s.queued[n-1]
	}
	switch key {
	case "B":
		got, arg = m.body, d.unquote(arg)
	case "E":
		got = m.from + " -> " + strings.Join(m.rcpts, " ")
	case "P":
		got = d.s.paths[len(d.s.paths)-1]
	case "L":
		got = d.s.lines[len(d.s.lines)-1]
	default:
		d.t.Fatalf("%s: unknown kind of line", d.where)
	}
	if got != arg {
		d.t.Fatalf("%s\ngot: %q", d.where, got)
	}
}
