package admin

import (
	"bufio"
	"bytes"
	"context"
	"encoding/json"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"

	"crossfade/audit/seal"
)

// memHeads is a HeadKeeper.
type memHeads struct {
	mu   sync.Mutex
	head AuditHead
}

func (m *memHeads) LoadHead(context.Context) (AuditHead, error) {
	m.mu.Lock()
	defer m.mu.Unlock()
	return m.head, nil
}

func (m *memHeads) SaveHead(_ context.Context, h AuditHead) error {
	m.mu.Lock()
	defer m.mu.Unlock()
	m.head = h
	return nil
}

func testKey(t *testing.T) seal.Key {
	t.Helper()
	k, err := seal.NewKey()
	check(t, err)
	return k
}

// writeLog opens a log, writes n records and closes it.
func writeLog(t *testing.T, path string, o AuditOptions, n int) AuditHead {
	t.Helper()
	l, err := OpenAuditLog(path, o)
	check(t, err)
	for i := range n {
		check(t, l.Record(Record{Time: time.Now(), By: "ada", Role: RoleAdmin, Action: "set-state", Object: fmt.Sprintf("u%d@example.org", i), Result: ResultOK, Detail: map[string]any{"n": i, "text": "ä<&>\u2028"}}))
	}
	head := l.Head()
	check(t, l.Close())
	return head
}

func lines(t *testing.T, path string) [][]byte {
	t.Helper()
	text, err := os.ReadFile(path)
	check(t, err)
	out := bytes.SplitAfter(text, []byte("\n"))
	return out[:len(out)-1]
}

// TestAuditChainIsFound alters a log in every way that somebody who can write the
// file has, and looks which line the check names.
func TestAuditChainIsFound(t *testing.T) {
	dir, key, other := t.TempDir(), testKey(t), testKey(t)
	good := filepath.Join(dir, "good")
	o := AuditOptions{Key: key, Node: "a", Heads: &memHeads{}}
	writeLog(t, good, o, 5)
	head := writeLog(t, good, o, 5) // 12 lines
	all := lines(t, good)
	forged := func(r Record, prev AuditHead, k seal.Key) []byte {
		line, _, err := encodeLine(r, prev, k)
		check(t, err)
		return append(line, '\n')
	}
	anew := func(k seal.Key) (out [][]byte) { // the whole chain made anew, with one record changed
		var h AuditHead
		for i, line := range all {
			var r Record
			check(t, json.Unmarshal(line, &r))
			if i == 3 {
				r.By = "nobody"
			}
			if k.Public() != key.Public() && r.By == logItself {
				r.Detail["key"] = k.Public()
			}
			text, next, err := encodeLine(r, h, k)
			check(t, err)
			h, out = next, append(out, append(text, '\n'))
		}
		return out
	}
	cut := func(from, to int) [][]byte { return append(append([][]byte{}, all[:from]...), all[to:]...) }
	swap := append([][]byte{}, all...)
	swap[4], swap[5] = swap[5], swap[4]
	for _, tt := range []struct {
		name  string
		lines [][]byte
		key   string
		want  AuditHead
		line  int // 0: good
		text  string
	}{
		{"as it is", all, key.Public(), head, 0, ""},
		{"as it is, without a key", all, "", AuditHead{}, 0, ""},
		{"a letter changed", append(append(cut(4, 12), bytes.Replace(all[4], []byte("ada"), []byte("bob"), 1)), all[5:]...), "", head, 5, "signed"},
		{"a line taken out", cut(4, 5), "", head, 5, "1 lines are missing"},
		{"lines taken out", cut(2, 7), "", head, 3, "5 lines are missing"},
		{"the first line taken out", cut(0, 1), key.Public(), head, 0, ""}, // it may be in another file, and is told
		{"two lines changed places", swap, "", head, 5, "missing"},
		{"a line twice", append(append(cut(5, 12), all[4]), all[5:]...), "", head, 6, "put in"},
		{"the end cut off", cut(9, 12), "", head, 9, "noted and is not there"},
		{"the end cut off, nothing noted", cut(9, 12), "", AuditHead{}, 0, ""},
		{"an empty line", append(append(cut(5, 12), []byte("\n")), all[5:]...), "", head, 6, "no line of the chain"},
		{"a record of one's own", append(append(cut(5, 12), []byte(`{"by":"ada","action":"x","result":"ok"}`+"\n")), all[5:]...), "", head, 6, "no line of the chain"},
		{"a forged end, not signed", append(cut(9, 12), forged(Record{By: "ada", Action: "x", Result: ResultOK}, AuditHead{Seq: 9, Hash: hashOf(bytes.TrimSpace(all[8]))}, seal.Key{})), "", AuditHead{}, 10, "not signed"},
		{"a forged end", append(cut(9, 12), forged(Record{By: "ada", Action: "x", Result: ResultOK}, AuditHead{Seq: 9, Hash: hashOf(bytes.TrimSpace(all[8]))}, other)), "", AuditHead{}, 10, "not signed with"},
		{"all anew, not signed", anew(seal.Key{}), key.Public(), AuditHead{}, 1, "not signed"},
		{"all anew, another key", anew(other), key.Public(), AuditHead{}, 1, "not signed with"},
		{"all anew, another key, none known", anew(other), "", AuditHead{}, 0, ""}, // which is why --key is asked for
		{"all anew, another key, a line noted", anew(other), "", head, 12, "was noted"},
	} {
		path := filepath.Join(dir, "altered")
		check(t, os.WriteFile(path, bytes.Join(tt.lines, nil), 0o600))
		c, err := CheckAuditLog([]string{path}, tt.key, tt.want)
		check(t, err)
		switch {
		case tt.line == 0 && c.Bad != nil:
			t.Errorf("%s: %s", tt.name, c.Bad)
		case tt.line > 0 && c.Bad == nil:
			t.Errorf("%s: not found", tt.name)
		case tt.line > 0 && (c.Bad.Line != tt.line || !strings.Contains(c.Bad.Text, tt.text)):
			t.Errorf("%s: found %s, want line %d and %q", tt.name, c.Bad, tt.line, tt.text)
		}
	}
}

// TestAuditEveryOctet changes each octet of a log, one after the other: none can be
// changed without a check telling, by the signatures or, without any, by the chain and
// a line that was noted.
func TestAuditEveryOctet(t *testing.T) {
	t.Run("signed", func(t *testing.T) { everyOctet(t, testKey(t)) })
	t.Run("chain alone", func(t *testing.T) { everyOctet(t, seal.Key{}) })
}

func everyOctet(t *testing.T, key seal.Key) {
	path := filepath.Join(t.TempDir(), "log")
	head := writeLog(t, path, AuditOptions{Key: key}, 2)
	text, err := os.ReadFile(path)
	check(t, err)
	for i := range text {
		changed := bytes.Clone(text)
		changed[i] ^= 1
		check(t, os.WriteFile(path, changed, 0o600))
		c, err := CheckAuditLog([]string{path}, key.Public(), head)
		if err == nil && c.Bad == nil {
			t.Fatalf("octet %d (%q) was changed and nobody notices: %v", i, text[i], c.Notes)
		}
	}
}

// TestAuditCutShort cuts the last line at each octet, as a crash does, and opens the
// log again: nothing is taken away, what is left is told of, and the chain goes on.
func TestAuditCutShort(t *testing.T) {
	dir, key := t.TempDir(), testKey(t)
	good := filepath.Join(dir, "good")
	writeLog(t, good, AuditOptions{Key: key}, 3)
	all := lines(t, good)
	before := bytes.Join(all[:3], nil)
	for n := range len(all[3]) + 1 {
		if n > 4 && n < len(all[3])-4 && n%40 != 0 {
			continue // each costs some syncs
		}
		path := filepath.Join(dir, "log")
		left := append(bytes.Clone(before), all[3][:n]...)
		check(t, os.WriteFile(path, left, 0o600))
		if c, err := CheckAuditLog([]string{path}, key.Public(), AuditHead{}); err != nil || c.Bad != nil || n > 0 && n < len(all[3]) && len(c.Notes) == 0 {
			t.Fatalf("cut at %d, not opened again: %+v %v", n, c, err)
		}
		writeLog(t, path, AuditOptions{Key: key}, 2)
		c, err := CheckAuditLog([]string{path}, key.Public(), AuditHead{})
		if err != nil || c.Bad != nil {
			t.Fatalf("cut at %d: %v %v", n, c.Bad, err)
		}
		whole := n >= len(all[3])-1 // the line end is all that may be missing
		if told := strings.Contains(strings.Join(c.Notes, " "), "cut short"); told == (whole || n == 0) {
			t.Fatalf("cut at %d: notes %v", n, c.Notes)
		}
		now, err := os.ReadFile(path)
		check(t, err)
		if !bytes.HasPrefix(now, left) {
			t.Fatalf("cut at %d: what was left was changed", n)
		}
		if n == 40 { // the rest of the line that was cut short is fixed too
			check(t, os.WriteFile(path, bytes.Replace(now, all[3][:n], append(bytes.Clone(all[3][:n-1]), 'X'), 1), 0o600))
			if c, err := CheckAuditLog([]string{path}, key.Public(), AuditHead{}); err != nil || c.Bad == nil || c.Bad.Line != 4 {
				t.Errorf("what was cut short was changed: %v %v", c.Bad, err)
			}
		}
	}
}

// TestAuditOldLog: a log from before the chain is taken over with a note, and cannot
// be changed from then on either.
func TestAuditOldLog(t *testing.T) {
	path, key := filepath.Join(t.TempDir(), "log"), testKey(t)
	old := `{"time":"2026-01-01T00:00:00Z","by":"ada","action":"reload","result":"ok"}` + "\n"
	check(t, os.WriteFile(path, []byte(old+old), 0o600))
	writeLog(t, path, AuditOptions{Key: key}, 2)
	c, err := CheckAuditLog([]string{path}, key.Public(), AuditHead{})
	if err != nil || c.Bad != nil || c.Lines != 3 || !strings.Contains(strings.Join(c.Notes, " "), "2 lines from before") {
		t.Errorf("%+v %v", c, err)
	}
	text, err := os.ReadFile(path)
	check(t, err)
	for _, change := range [][]byte{bytes.Replace(text, []byte("ada"), []byte("bob"), 1), bytes.Replace(text, []byte(old), nil, 1)} {
		check(t, os.WriteFile(path, change, 0o600))
		if c, err := CheckAuditLog([]string{path}, key.Public(), AuditHead{}); err != nil || c.Bad == nil || c.Bad.Line != 1 {
			t.Errorf("a line from before the chain was changed: %v %v", c.Bad, err)
		}
	}
}

// TestAuditEndCutOffAtRest: what is cut off, or put in another's place, while nobody
// has the log open is told of at the next start, and stays to be seen.
func TestAuditEndCutOffAtRest(t *testing.T) {
	for name, spoil := range map[string]func(path string) error{
		"cut off":     func(path string) error { return os.WriteFile(path, bytes.Join(lines(t, path)[:3], nil), 0o600) },
		"emptied":     func(path string) error { return os.Truncate(path, 0) },
		"taken away":  os.Remove,
		"made anew":   func(path string) error { os.Remove(path); writeLog(t, path, AuditOptions{}, 9); return nil },
		"other lines": func(path string) error { return os.WriteFile(path, []byte("{}\n{}\n"), 0o600) },
	} {
		path, key := filepath.Join(t.TempDir(), "log"), testKey(t)
		o := AuditOptions{Key: key, Heads: &memHeads{}}
		head := writeLog(t, path, o, 4)
		check(t, spoil(path))
		writeLog(t, path, o, 1)
		c, err := CheckAuditLog([]string{path}, key.Public(), head)
		check(t, err)
		if c.Bad == nil {
			t.Errorf("%s: the check finds nothing: %v", name, c.Notes)
		}
		text, err := os.ReadFile(path)
		check(t, err)
		if !bytes.Contains(text, []byte(`"expected":{"hash":"`+head.Hash)) && !bytes.Contains(text, []byte(`"broken"`)) {
			t.Errorf("%s: the line of the new start does not tell:\n%s", name, text)
		}
	}
}

// TestAuditPutAside: large files are put aside, the chain goes on in the next, also
// when somebody else moves the file away, and after a restart.
func TestAuditPutAside(t *testing.T) {
	dir, key := t.TempDir(), testKey(t)
	path := filepath.Join(dir, "log")
	o := AuditOptions{Key: key, Heads: &memHeads{}, MaxBytes: 1500}
	writeLog(t, path, o, 12)
	writeLog(t, path, o, 1)
	files, err := filepath.Glob(path + ".*")
	check(t, err)
	if len(files) < 2 {
		t.Fatalf("put aside: %v", files)
	}
	files = append(files, path)
	c, err := CheckAuditLog(files, key.Public(), AuditHead{})
	if err != nil || c.Bad != nil || len(c.Notes) > 0 {
		t.Errorf("%+v %v %v", c, c.Bad, err)
	}
	if c, err := CheckAuditLog([]string{files[0], files[len(files)-1]}, key.Public(), AuditHead{}); err != nil || c.Bad == nil {
		t.Errorf("a file in the middle is left out: %v %v", c, err)
	}
	l, err := OpenAuditLog(path, o)
	check(t, err)
	defer l.Close()
	check(t, os.Rename(path, filepath.Join(dir, "moved"))) // logrotate
	check(t, l.Record(Record{By: "ada", Action: "x", Result: ResultOK}))
	files[len(files)-1] = filepath.Join(dir, "moved")
	if c, err := CheckAuditLog(append(files, path), key.Public(), l.Head()); err != nil || c.Bad != nil {
		t.Errorf("moved away: %v %v", c.Bad, err)
	}
	if _, err := OpenAuditLog(path, o); err == nil || !strings.Contains(err.Error(), "another process") {
		t.Errorf("a second one on the same file: %v", err)
	}
}

// TestAuditKilled kills a process that writes a log, again and again: no record that
// was acknowledged is missing, and the chain is whole.
func TestAuditKilled(t *testing.T) {
	path := filepath.Join(t.TempDir(), "log")
	acknowledged := uint64(0)
	for range 6 {
		cmd := exec.Command(os.Args[0], "-test.run=^TestAuditChild$")
		cmd.Env = append(os.Environ(), "CROSSFADE_AUDIT_CHILD="+path)
		out, err := cmd.StdoutPipe()
		check(t, err)
		check(t, cmd.Start())
		in := bufio.NewScanner(out)
		for n := 0; n < 8 && in.Scan(); n++ {
			var seq uint64
			if _, err := fmt.Sscanf(in.Text(), "written %d", &seq); err == nil {
				acknowledged = seq
			}
		}
		check(t, cmd.Process.Kill())
		_ = cmd.Wait() // killed
	}
	c, err := CheckAuditLog([]string{path}, "", AuditHead{})
	if err != nil || c.Bad != nil || c.Last.Seq < acknowledged || acknowledged < 30 {
		t.Errorf("acknowledged %d: %+v %v %v", acknowledged, c, c.Bad, err)
	}
}

// TestAuditChild is the process that TestAuditKilled kills. It is no test.
func TestAuditChild(t *testing.T) {
	path := os.Getenv("CROSSFADE_AUDIT_CHILD")
	if path == "" {
		return
	}
	l, err := OpenAuditLog(path, AuditOptions{})
	check(t, err)
	for {
		check(t, l.Record(Record{By: "ada", Action: "x", Result: ResultOK, Reason: strings.Repeat("y", 5000)}))
		fmt.Println("written", l.Head().Seq)
	}
}

// FuzzAuditCheck: whatever is in a file, it can be opened and checked; and what the
// log writes behind is whole unless the file looked like a chain.
func FuzzAuditCheck(f *testing.F) {
	line, _, err := encodeLine(Record{By: "ada", Action: "x", Result: ResultOK}, AuditHead{}, seal.Key{})
	if err != nil {
		f.Fatal(err)
	}
	f.Add(append(line, '\n'))
	f.Add(line)
	f.Add([]byte("{}\n\nx"))
	f.Add([]byte(`{"seq":7,"prev":"` + noHash + `","action":"open-log","by":"crossfade","detail":{"outside":{"octets":-1}}}` + "\n"))
	f.Fuzz(func(t *testing.T, content []byte) {
		path := filepath.Join(t.TempDir(), "log")
		check(t, os.WriteFile(path, content, 0o600))
		l, err := OpenAuditLog(path, AuditOptions{})
		check(t, err)
		check(t, l.Record(Record{By: "ada", Action: "x", Result: ResultOK}))
		head := l.Head()
		check(t, l.Close())
		c, err := CheckAuditLog([]string{path}, "", head)
		check(t, err)
		if c.Bad != nil && !bytes.Contains(content, []byte("seq")) && !bytes.Contains(bytes.ToLower(content), []byte("seq")) && !bytes.Contains(content, []byte(`\u`)) {
			t.Errorf("%s", c.Bad)
		}
	})
}
