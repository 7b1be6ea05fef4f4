package ondisk

import (
	"bytes"
	"compress/gzip"
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"

	"crossfade/backfill"
	"crossfade/backfill/imapconn"
	"crossfade/internal/mailtest"

	"golang.org/x/sys/unix"
)

// one is a message of an mbox.
func one(n int) string {
	return fmt.Sprintf("From a Fri Jan  2 03:04:05 2015\nSubject: %d\n\nbody\n\n", n)
}

// mboxOf is an mbox that is one file, with at called at its points.
func mboxOf(file string, at func(string)) Mbox {
	return Mbox{Folders: Place{Base: filepath.Dir(file), Path: filepath.Base(file)}, at: at}
}

func opened(ctx context.Context, t *testing.T, m Mbox, l backfill.Ledger) backfill.Mailbox {
	t.Helper()
	n, err := backfill.NewNumbers(ctx, l, "anna@example.org")
	if err != nil {
		t.Fatal(err)
	}
	box, err := m.Open(ctx, n)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { box.Close() })
	if _, err := box.List(); err != nil {
		t.Fatal(err)
	}
	return box
}

func writeFile(t *testing.T, file, text string) {
	t.Helper()
	if err := os.WriteFile(file, []byte(text), 0o600); err != nil {
		t.Fatal(err)
	}
}

// TestMboxWithAHostileHeader: a header is read in the time of its length. One mail
// with many lines must not stall its user.
func TestMboxWithAHostileHeader(t *testing.T) {
	for name, header := range map[string]string{
		"a field of no interest": "X-Long: x\n" + strings.Repeat(" \n", 1<<20),
		"a field of ours":        "X-Keywords: x\n" + strings.Repeat(" work\n", 1<<18),
		"many fields of ours":    "X-IMAPbase: 5 9 " + strings.Repeat("k ", 2000) + "\n" + strings.Repeat("X-Keywords: "+strings.Repeat("work ", 800)+"\n", 2000),
	} {
		t.Run(name, func(t *testing.T) {
			text := "From a Fri Jan  2 03:04:05 2015\n" + header + "\nbody\n\n" + one(2)
			began := time.Now()
			x, err := indexMbox(strings.NewReader(text), int64(len(text)))
			if err != nil || len(x.messages) != 2 || len(x.messages[0].flags) > 1 {
				t.Fatalf("%+v, %v", x, err)
			}
			if took := time.Since(began); took > 4*time.Second {
				t.Errorf("it took %v", took)
			}
		})
	}
}

// TestMboxIsNotLockedWhileItIsRead, and the reading ends when the pass does.
func TestMboxIsNotLockedWhileItIsRead(t *testing.T) {
	file := filepath.Join(t.TempDir(), "INBOX")
	writeFile(t, file, one(1)+one(2))
	other, err := os.OpenFile(file, os.O_RDWR|os.O_APPEND, 0)
	if err != nil {
		t.Fatal(err)
	}
	defer other.Close()
	reads := 0
	box := opened(t.Context(), t, mboxOf(file, func(point string) {
		if point != "index" {
			return
		}
		if reads++; reads > 1 {
			return
		}
		// A server delivers, with a lock of its own.
		lock := unix.Flock_t{Type: unix.F_WRLCK, Whence: io.SeekStart}
		if err := unix.FcntlFlock(other.Fd(), unix.F_OFD_SETLK, &lock); err != nil {
			t.Errorf("it is locked while it is read: %v", err)
		}
		if _, err := other.WriteString(one(3)); err != nil {
			t.Error(err)
		}
		lock.Type = unix.F_UNLCK
		if err := unix.FcntlFlock(other.Fd(), unix.F_OFD_SETLK, &lock); err != nil {
			t.Error(err)
		}
	}), &mailtest.Ledger{})
	stats, errs, err := box.Statuses([]string{"INBOX"})
	if err != nil || len(errs) > 0 || stats["INBOX"].Messages != 3 || reads != 2 {
		t.Errorf("%+v, %v, %v, read %d times", stats, errs, err, reads)
	}
	ctx, cancel := context.WithCancel(t.Context())
	defer cancel()
	box = opened(ctx, t, mboxOf(file, func(point string) {
		if point == "index" {
			cancel()
		}
	}), &mailtest.Ledger{})
	if stats, errs, err := box.Statuses([]string{"INBOX"}); !errors.Is(err, context.Canceled) {
		t.Errorf("it was called off, and there are %+v, %v, %v", stats, errs, err)
	}
}

// TestMboxThatIsAlwaysChanged: the last try keeps writers away.
func TestMboxThatIsAlwaysChanged(t *testing.T) {
	file := filepath.Join(t.TempDir(), "INBOX")
	writeFile(t, file, one(1))
	other, err := os.OpenFile(file, os.O_RDWR|os.O_APPEND, 0)
	if err != nil {
		t.Fatal(err)
	}
	defer other.Close()
	reads, refused := 0, 0
	box := opened(t.Context(), t, mboxOf(file, func(point string) {
		if point != "index" {
			return
		}
		reads++
		lock := unix.Flock_t{Type: unix.F_WRLCK, Whence: io.SeekStart}
		if err := unix.FcntlFlock(other.Fd(), unix.F_OFD_SETLK, &lock); err != nil {
			refused++
			return
		}
		if _, err := other.WriteString(one(1 + reads)); err != nil {
			t.Error(err)
		}
		lock.Type = unix.F_UNLCK
		if err := unix.FcntlFlock(other.Fd(), unix.F_OFD_SETLK, &lock); err != nil {
			t.Error(err)
		}
	}), &mailtest.Ledger{})
	stats, errs, err := box.Statuses([]string{"INBOX"})
	if err != nil || len(errs) > 0 || stats["INBOX"].Messages != 3 || reads != mostTries || refused != 1 {
		t.Errorf("%+v, %v, %v, read %d times, %d writers waited", stats, errs, err, reads, refused)
	}
}

// TestMboxLockedBehindOurLook: who makes the file of a lock right after it was
// looked for, and has written half a message, is waited for.
func TestMboxLockedBehindOurLook(t *testing.T) {
	file := filepath.Join(t.TempDir(), "INBOX")
	writeFile(t, file, one(1))
	whole := one(1) + one(2)
	looks := 0
	box := opened(t.Context(), t, mboxOf(file, func(point string) {
		switch {
		case point == "locked" && looks == 0:
			looks++
			writeFile(t, file+".lock", "")
			writeFile(t, file, whole[:len(whole)-4])
		case point == "wait" && looks == 1:
			looks++
			writeFile(t, file, whole)
			if err := os.Remove(file + ".lock"); err != nil {
				t.Error(err)
			}
		}
	}), &mailtest.Ledger{})
	r := box.NewReader()
	if _, err := r.Select(imapconn.Folder{Name: "INBOX", Wire: "INBOX"}); err != nil {
		t.Fatal(err)
	}
	var got bodies
	failures, err := r.Fetch([]uint32{1, 2}, imapconn.Items{Body: true}, &got)
	if err != nil || len(failures) > 0 || len(got) != 2 || got[1] != "Subject: 2\r\n\r\nbody\r\n" {
		t.Errorf("%q, %v, %v", got, failures, err)
	}
}

// TestMboxThatGrew: what was added since the pass looked is for the next one, and nothing
// is read twice for it; a file that was written anew is.
func TestMboxThatGrew(t *testing.T) {
	file := filepath.Join(t.TempDir(), "INBOX")
	writeFile(t, file, one(1)+one(2))
	reads := 0
	box := opened(t.Context(), t, mboxOf(file, func(point string) {
		if point == "index" {
			reads++
		}
	}), &mailtest.Ledger{})
	if _, errs, err := box.Statuses([]string{"INBOX"}); err != nil || len(errs) > 0 {
		t.Fatal(errs, err)
	}
	r := box.NewReader()
	inbox := imapconn.Folder{Name: "INBOX", Wire: "INBOX"}
	for _, x := range []struct {
		text          string
		reads, exists int
		last          string
	}{{one(1) + one(2) + one(3), 1, 2, "2"}, {one(4), 2, 1, "4"}, {one(4) + one(5), 2, 1, "4"}} {
		writeFile(t, file, x.text)
		sel, err := r.Select(inbox)
		if err != nil || int(sel.Exists) != x.exists || reads != x.reads {
			t.Fatalf("%+v, %v, read %d times, want %d and %d", sel, err, reads, x.exists, x.reads)
		}
		var got bodies
		if failures, err := r.Fetch([]uint32{sel.UIDNext - 1}, imapconn.Items{Body: true}, &got); err != nil || len(failures) > 0 || len(got) != 1 || got[0] != "Subject: "+x.last+"\r\n\r\nbody\r\n" {
			t.Errorf("%q, %v, %v", got, failures, err)
		}
	}
	if stats, _, err := box.Statuses([]string{"INBOX"}); err != nil || stats["INBOX"].Messages != 2 {
		t.Errorf("%+v, %v", stats, err)
	}
}

// TestMboxUnderDeliveries: a server that delivers one message after the other, and
// leaves the file alone for a moment only in between, keeps nobody from reading it.
func TestMboxUnderDeliveries(t *testing.T) {
	file := filepath.Join(t.TempDir(), "INBOX")
	writeFile(t, file, one(1)+one(2))
	ctx, stop := context.WithCancel(t.Context())
	var server sync.WaitGroup
	defer server.Wait()
	defer stop()
	server.Go(func() {
		for n := 3; ctx.Err() == nil; n++ {
			deliver(t, file, one(n), 20*time.Millisecond)
			<-time.After(time.Millisecond)
		}
	})
	box := opened(t.Context(), t, mboxOf(file, nil), &mailtest.Ledger{})
	r := box.NewReader()
	began := time.Now()
	for range 5 {
		sel, err := r.Select(imapconn.Folder{Name: "INBOX", Wire: "INBOX"})
		if err != nil {
			t.Fatal(err)
		}
		<-time.After(50 * time.Millisecond) // it is another file by now
		var got bodies
		failures, err := r.Fetch([]uint32{1, 2, sel.UIDNext - 1}, imapconn.Items{Body: true}, &got)
		last := fmt.Sprintf("Subject: %d\r\n\r\nbody\r\n", sel.UIDNext-1)
		if err != nil || len(failures) > 0 || len(got) != 3 || got[2] != last {
			t.Fatalf("%q, %v, %v; want %q last", got, failures, err, last)
		}
	}
	if took := time.Since(began); took > 8*time.Second {
		t.Errorf("it took %s", took)
	}
}

// deliver appends to an mbox behind the file of a lock, in two parts.
func deliver(t *testing.T, file, text string, pause time.Duration) {
	if err := os.WriteFile(file+".lock", nil, 0o600); err != nil {
		t.Error(err)
	}
	f, err := os.OpenFile(file, os.O_WRONLY|os.O_APPEND, 0)
	if err != nil {
		t.Error(err)
		return
	}
	defer f.Close()
	for _, part := range []string{text[:len(text)/2], text[len(text)/2:]} {
		if _, err := f.WriteString(part); err != nil {
			t.Error(err)
		}
		<-time.After(pause / 2)
	}
	if err := os.Remove(file + ".lock"); err != nil {
		t.Error(err)
	}
}

// bodies takes messages whole.
type bodies []string

func (b *bodies) Begin(uint32, int64) (io.Writer, error) { *b = append(*b, ""); return b, nil }
func (b *bodies) End(imapconn.Meta) error                { return nil }
func (b *bodies) Write(p []byte) (int, error) {
	(*b)[len(*b)-1] += string(p)
	return len(p), nil
}

// TestMboxIsReadWhenItChanged, and not in every pass.
func TestMboxIsReadWhenItChanged(t *testing.T) {
	file := filepath.Join(t.TempDir(), "INBOX")
	old := time.Now().Add(-time.Hour)
	l := &mailtest.Ledger{}
	rest := time.Hour
	look := func(want int) imapconn.Status {
		t.Helper()
		reads := 0
		m := mboxOf(file, func(point string) {
			if point == "index" {
				reads++
			}
		})
		m.rest = rest
		box := opened(t.Context(), t, m, l)
		defer box.Close()
		stats, errs, err := box.Statuses([]string{"INBOX"})
		if err != nil || len(errs) > 0 || reads != want {
			t.Errorf("%v, %v, read %d times, want %d", errs, err, reads, want)
		}
		return stats["INBOX"]
	}
	put := func(text string) {
		t.Helper()
		writeFile(t, file, text)
		if err := os.Chtimes(file, old, old); err != nil {
			t.Fatal(err)
		}
	}
	put(one(1) + one(2))
	fresh := look(1)
	look(1) // it was changed just now
	rest = time.Nanosecond
	first, second := look(1), look(0)
	if first != second || first != fresh || first.Messages != 2 {
		t.Errorf("%+v, %+v, %+v", fresh, first, second)
	}
	// A change that leaves size and time as they were.
	put(one(1) + one(3))
	if third := look(1); third.ModSeq == second.ModSeq || third.UIDNext != 4 || third != look(0) {
		t.Errorf("%+v, then %+v", second, third)
	}
	// What the ledger knows of the numbers is gone: so is the note.
	for _, name := range []string{"numbers/INBOX", "numbers/INBOX/0"} {
		if err := l.SaveLedger(t.Context(), "", name, nil); err != nil {
			t.Fatal(err)
		}
	}
	if anew := look(1); anew.UIDNext != 3 {
		t.Errorf("%+v", anew)
	}
}

// TestMessageThatGrowsWithoutEnd: a small file may be a large message.
func TestMessageThatGrowsWithoutEnd(t *testing.T) {
	var packed bytes.Buffer
	z := gzip.NewWriter(&packed)
	for range 8 {
		if _, err := z.Write(make([]byte, 1<<20)); err != nil {
			t.Fatal(err)
		}
	}
	if err := z.Close(); err != nil {
		t.Fatal(err)
	}
	src, err := unpack(&packed)
	if err != nil {
		t.Fatal(err)
	}
	var a announcing
	h := handing{recv: &a, most: 3 << 20}
	if err := h.message(imapconn.Meta{UID: 1, Size: inMemory}, src); !errors.Is(err, errTooLarge) || a.octets > h.most {
		t.Errorf("%d octets were handed on: %v", a.octets, err)
	}
	if a.size <= inMemory {
		t.Errorf("announced as %d octets, and more follow", a.size)
	}
}

type announcing struct{ size, octets int64 }

func (a *announcing) Begin(_ uint32, size int64) (io.Writer, error) { a.size = size; return a, nil }
func (a *announcing) End(imapconn.Meta) error                       { return nil }
func (a *announcing) Write(p []byte) (int, error) {
	a.octets += int64(len(p))
	return len(p), nil
}

// TestKeywordFilesAreBounded by what they have together.
func TestKeywordFilesAreBounded(t *testing.T) {
	dir := t.TempDir()
	sub := filepath.Join(dir, "courierimapkeywords")
	if err := os.Mkdir(sub, 0o700); err != nil {
		t.Fatal(err)
	}
	for i := range mostKeywords>>20 + 1 {
		file := filepath.Join(sub, fmt.Sprintf("%d.message", i))
		writeFile(t, file, "work\n")
		if err := os.Truncate(file, 1<<20); err != nil {
			t.Fatal(err)
		}
	}
	root, err := os.OpenRoot(dir)
	if err != nil {
		t.Fatal(err)
	}
	defer root.Close()
	if _, err := readKeywords(root); err == nil || !strings.Contains(err.Error(), "together") {
		t.Errorf("%v", err)
	}
	if err := os.Remove(filepath.Join(sub, "0.message")); err != nil {
		t.Fatal(err)
	}
	if err := os.Remove(filepath.Join(sub, "1.message")); err != nil {
		t.Fatal(err)
	}
	if k, err := readKeywords(root); err != nil || len(k.courier) != mostKeywords>>20-1 {
		t.Error(err)
	}
}
