package ondisk_test

import (
	"bytes"
	"crypto/sha256"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"crossfade/backfill"
	"crossfade/backfill/imapconn"
	"crossfade/internal/mailtest"
	"crossfade/internal/mailtest/realtest"

	"github.com/google/go-cmp/cmp"
)

const user = "anna@example.org"

// seen is a message as a source shows it or as a server does.
type seen struct {
	UID   uint32
	Body  string // its sum
	Date  string
	Flags string
}

func look(uid uint32, body []byte, date time.Time, flags []string) seen {
	slices.Sort(flags)
	return seen{uid, fmt.Sprintf("%x/%d", sha256.Sum256(body), len(body)), date.UTC().Format(time.RFC3339), strings.Join(flags, " ")}
}

// taker collects what a reader hands over.
type taker struct {
	t     testing.TB
	buf   bytes.Buffer
	size  int64
	msgs  []seen
	bytes map[uint32][]byte
}

func (k *taker) Begin(_ uint32, size int64) (io.Writer, error) {
	k.buf.Reset()
	k.size = size
	return &k.buf, nil
}

func (k *taker) End(m imapconn.Meta) error {
	if m.Size != int64(k.buf.Len()) || k.buf.Len() < 1<<20 && m.Size != k.size {
		k.t.Errorf("UID %d: size %d, announced as %d, and it has %d octets", m.UID, m.Size, k.size, k.buf.Len())
	}
	if k.bytes == nil {
		k.bytes = map[uint32][]byte{}
	}
	k.bytes[m.UID] = bytes.Clone(k.buf.Bytes())
	k.msgs = append(k.msgs, look(m.UID, k.buf.Bytes(), m.Date, m.Flags))
	return nil
}

func open(t testing.TB, src backfill.Source, l backfill.Ledger) backfill.Mailbox {
	t.Helper()
	n, err := backfill.NewNumbers(t.Context(), l, user)
	if err != nil {
		t.Fatal(err)
	}
	box, err := src.Open(t.Context(), n)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { box.Close() })
	return box
}

// contents reads a whole source.
func contents(t testing.TB, src backfill.Source, l backfill.Ledger) map[string][]seen {
	t.Helper()
	box := open(t, src, l)
	defer box.Close()
	folders, err := box.List()
	if err != nil {
		t.Fatal(err)
	}
	out := map[string][]seen{}
	for _, f := range folders {
		msgs, _ := readFolder(t, box, f)
		out[f.Name] = msgs
	}
	return out
}

func readFolder(t testing.TB, box backfill.Mailbox, f imapconn.Folder) ([]seen, []imapconn.Failure) {
	t.Helper()
	r := box.NewReader()
	defer r.Close()
	sel, err := r.Select(f)
	if err != nil {
		t.Fatal(err)
	}
	metas, _, err := r.ListAll(imapconn.Items{Flags: true, Size: true})
	if err != nil {
		t.Fatal(err)
	}
	var uids []uint32
	for _, m := range metas {
		uids = append(uids, m.UID)
	}
	if len(uids) != int(sel.Exists) || !slices.IsSorted(uids) {
		t.Errorf("%s: %d of %d listed, or out of order", f.Name, len(uids), sel.Exists)
	}
	k := &taker{t: t}
	failures, err := r.Fetch(uids, imapconn.Items{Flags: true, Date: true, Body: true}, k)
	if err != nil {
		t.Fatal(err)
	}
	if len(k.msgs)+len(failures) != len(uids) {
		t.Errorf("%s: %d messages and %d failures of %d", f.Name, len(k.msgs), len(failures), len(uids))
	}
	return k.msgs, failures
}

// served reads a whole mailbox over IMAP.
func served(t testing.TB, d *realtest.Dovecot) map[string][]seen {
	t.Helper()
	out := map[string][]seen{}
	for _, f := range d.Folders(t, user) {
		out[f] = nil
		for _, m := range d.Messages(t, user, f) {
			out[f] = append(out[f], look(m.UID, m.Body, m.InternalDate, m.Flags))
		}
	}
	return out
}

// content is what counts on both sides of a copy: no UIDs.
func content(all map[string][]seen, prefix string, delim string) map[string][]string {
	out := map[string][]string{}
	for f, msgs := range all {
		key := strings.ReplaceAll(strings.TrimPrefix(f, prefix), delim, "/")
		out[key] = []string{}
		for _, m := range msgs {
			out[key] = append(out[key], m.Body+" "+m.Date+" "+m.Flags)
		}
		slices.Sort(out[key])
	}
	return out
}

func same(t testing.TB, want, got any) {
	t.Helper()
	if d := cmp.Diff(want, got); d != "" {
		t.Errorf("they differ (-want +got):\n%s", d)
	}
}

func put(t testing.TB, d *realtest.Dovecot, folder string, from, to, size int) {
	t.Helper()
	c := d.Login(t, user)
	defer c.Close()
	if folder != "INBOX" {
		_ = c.Create(folder, nil).Wait() // it may be there
	}
	for n := from; n < to; n++ {
		d.Append(t, user, folder, mailtest.Letter(n, size))
	}
}

func job(src backfill.Source, dst *realtest.Dovecot) backfill.Job {
	return backfill.Job{User: user, Host: "mx.example.org", From: src, Dest: imapconn.Account{
		Server: imapconn.Server{Address: dst.IMAPAddr, Mode: imapconn.TLSNone},
		Login:  imapconn.Login{User: user, Password: "secret"},
	}}
}

func pass(t testing.TB, l backfill.Ledger, j backfill.Job, o backfill.Options) backfill.Report {
	t.Helper()
	c := &backfill.Copier{Ledger: l, Settle: 100 * time.Millisecond}
	r, err := c.Pass(t.Context(), j, o)
	if err != nil {
		t.Fatal(err)
	}
	return r
}

func write(t testing.TB, path, text string) {
	t.Helper()
	if err := os.MkdirAll(filepath.Dir(path), 0o755); err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(path, []byte(text), 0o644); err != nil {
		t.Fatal(err)
	}
}

// tree is what a directory holds, to see that nothing writes into it.
func tree(t testing.TB, dir string) string {
	t.Helper()
	var out []string
	err := filepath.WalkDir(dir, func(path string, e os.DirEntry, err error) error {
		if err != nil {
			return err
		}
		st, err := e.Info()
		out = append(out, fmt.Sprint(path, " ", st.Size(), " ", st.ModTime(), " ", st.Mode()))
		return err
	})
	if err != nil {
		t.Fatal(err)
	}
	return strings.Join(out, "\n")
}
