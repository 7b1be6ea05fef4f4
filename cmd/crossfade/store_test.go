package main

import (
	"bufio"
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"time"

	"crossfade/internal/daemon"
	"crossfade/internal/redistest"
	"crossfade/mail"
	"crossfade/router"
	"crossfade/store/disk"
)

// newStore makes an embedded store with n messages.
func newStore(t *testing.T, n int) string {
	t.Helper()
	dir := filepath.Join(t.TempDir(), "data")
	s, err := disk.Open(dir, disk.Options{MinFree: -1})
	if err != nil {
		t.Fatal(err)
	}
	defer s.Close()
	if _, _, err := s.ImportUsers(t.Context(), []router.User{{Address: "a@example.org"}, {Address: "b@example.org"}}, router.Change{By: "x"}); err != nil {
		t.Fatal(err)
	}
	addr, err := mail.ParseAddress("a@example.org")
	if err != nil {
		t.Fatal(err)
	}
	body := bytes.Repeat([]byte("0123456789 abcdef\r\n"), 1500)
	done := make(chan error, n)
	for range n {
		go func() {
			e := &mail.Envelope{ID: mail.NewID(), Received: time.Now(), Recipients: []mail.Recipient{{Addr: addr, User: "a@example.org"}}}
			done <- s.Put(context.Background(), e, bytes.NewReader(body))
		}()
	}
	for range n {
		if err := <-done; err != nil {
			t.Fatal(err)
		}
	}
	return dir
}

// crossfade runs a command in this process.
func crossfade(t *testing.T, args ...string) (code int, stdout, stderr string) {
	t.Helper()
	var out, errs bytes.Buffer
	code = run(&app{ctx: t.Context(), stdout: &out, stderr: &errs, getenv: func(string) string { return "" }}, args)
	return code, out.String(), errs.String()
}

func wants(t *testing.T, code, want int, text, part string) {
	t.Helper()
	if code != want || !strings.Contains(text, part) {
		t.Fatalf("exit %d, want %d and %q in:\n%s", code, want, part, text)
	}
}

func TestStoreCopy(t *testing.T) {
	dir := newStore(t, 20)
	srv := redistest.Start(t)
	back := filepath.Join(t.TempDir(), "back")

	code, out, errs := crossfade(t, "store", "copy", "--from", dir, "--to", srv.URL())
	wants(t, code, 0, out+errs, "compared")
	wants(t, 0, 0, errs, "copy messages")
	code, out, errs = crossfade(t, "store", "copy", "--from", srv.URL(), "--to", back, "--json")
	wants(t, code, 0, out+errs, `"messages": 20`)
	var rep daemon.CopyReport
	if err := json.Unmarshal([]byte(out), &rep); err != nil || rep.Users != 2 || len(rep.Digest) != 64 {
		t.Fatalf("%v %+v", err, rep)
	}
	code, _, errs = crossfade(t, "store", "copy", "--from", dir, "--to", srv.URL())
	wants(t, code, 1, errs, "not empty")
	code, _, errs = crossfade(t, "store", "copy", "--from", dir, "--to", back)
	wants(t, code, 1, errs, "not empty")
	code, _, errs = crossfade(t, "store", "copy", "--from", dir, "--to", dir)
	wants(t, code, 1, errs, "same store")
	code, _, errs = crossfade(t, "store", "copy", "--from", dir)
	wants(t, code, 2, errs, "--to")
	code, _, errs = crossfade(t, "store", "copy", "--from", dir+"x", "--to", back+"x")
	wants(t, code, 1, errs, "no such file")
	if _, err := os.Stat(dir + "x"); !errors.Is(err, os.ErrNotExist) {
		t.Fatalf("a source that is not there was made: %v", err)
	}
	code, _, errs = crossfade(t, "store", "copy", "--from", dir, "--to", "redis://:secret@127.0.0.1:1/0")
	if wants(t, code, 1, errs, "127.0.0.1:1"); strings.Contains(errs, "secret") {
		t.Fatalf("the password is printed: %s", errs)
	}
	s, err := disk.Open(dir, disk.Options{MinFree: -1})
	if err != nil {
		t.Fatal(err)
	}
	defer s.Close()
	code, _, errs = crossfade(t, "store", "copy", "--from", dir, "--to", back+"x")
	wants(t, code, 1, errs, "in use")
	code, _, errs = crossfade(t, "store", "audit", "--store", dir)
	wants(t, code, 1, errs, "in use")
}

func TestStoreAudit(t *testing.T) {
	dir := newStore(t, 3)
	srv := redistest.Start(t)
	code, out, errs := crossfade(t, "store", "audit", "--store", dir)
	wants(t, code, 0, out+errs, "nothing is wrong")
	code, _, errs = crossfade(t, "store", "audit")
	wants(t, code, 2, errs, "--store")
	code, _, errs = crossfade(t, "store", "audit", "--store", srv.URL())
	wants(t, code, 1, errs, "no store is there")
	if code, _, errs := crossfade(t, "store", "copy", "--from", dir, "--to", srv.URL()); code != 0 {
		t.Fatal(errs)
	}
	code, out, errs = crossfade(t, "store", "audit", "--store", srv.URL())
	wants(t, code, 0, out+errs, "3 messages")

	srv.Must("DEL", "cx:{q}:q:11")
	srv.Must("HSET", "cx:{q}:U:-", "b@example.org", "rubbish")
	code, out, errs = crossfade(t, "store", "audit", "--store", srv.URL())
	wants(t, code, 1, out+errs, "missing in an index")
	wants(t, code, 1, errs, "--repair")
	code, out, errs = crossfade(t, "store", "audit", "--repair", "--json", "--store", srv.URL())
	wants(t, code, 3, out+errs, `"repaired": 4`)
	code, out, errs = crossfade(t, "store", "audit", "--repair", "--store", srv.URL())
	wants(t, code, 1, out+errs, "cannot be repaired")
	srv.Must("HDEL", "cx:{q}:U:-", "b@example.org")
	srv.Must("HSET", "cx:{q}:N", "old", "1")
	code, out, errs = crossfade(t, "store", "audit", "--repair", "--store", srv.URL())
	wants(t, code, 0, out+errs, "nothing is wrong")
}

// TestStoreCopyKilled kills the process in the middle of a copy: the target is
// no store, is named so, and the next run begins again when it is told to.
func TestStoreCopyKilled(t *testing.T) {
	dir := newStore(t, 300)
	srv := redistest.Start(t)
	for i, to := range []string{filepath.Join(t.TempDir(), "to"), srv.URL()} {
		t.Run(fmt.Sprint("target ", i), func(t *testing.T) {
			partial := false
			for try := 0; !partial; try++ {
				if try == 20 {
					t.Fatal("the copy was never in the middle of its work")
				}
				killInside(t, dir, to)
				_, _, errs := crossfade(t, "store", "copy", "--from", dir, "--to", to)
				if partial = strings.Contains(errs, "--discard-partial"); !partial { // it was killed too early, or too late
					remove(t, to, srv)
				}
			}
			code, out, errs := crossfade(t, "store", "copy", "--from", dir, "--to", to, "--discard-partial")
			wants(t, code, 0, out+errs, "compared")
			code, out, errs = crossfade(t, "store", "audit", "--store", to)
			wants(t, code, 0, out+errs, "300 messages")
		})
	}
}

func remove(t *testing.T, to string, srv *redistest.Server) {
	t.Helper()
	if strings.Contains(to, "://") {
		srv.Must("FLUSHALL")
		return
	}
	if err := os.RemoveAll(to); err != nil {
		t.Fatal(err)
	}
}

// killInside starts a copy, and kills it when it says that it is at the
// messages.
func killInside(t *testing.T, from, to string) {
	t.Helper()
	cmd := exec.Command("crossfade", "store", "copy", "--from", from, "--to", to)
	progress, err := cmd.StderrPipe()
	if err != nil {
		t.Fatal(err)
	}
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	for lines := bufio.NewScanner(progress); lines.Scan(); {
		if strings.HasPrefix(lines.Text(), "copy messages") {
			_ = cmd.Process.Signal(syscall.SIGKILL)
		}
	}
	_ = cmd.Wait()
}
