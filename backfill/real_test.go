package backfill_test

import (
	"context"
	"crypto/sha256"
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"log/slog"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"crossfade/backfill"
	"crossfade/backfill/imapconn"
	"crossfade/internal/mailtest"
	"crossfade/internal/mailtest/realtest"

	"github.com/emersion/go-imap/v2"
	"github.com/emersion/go-imap/v2/imapclient"
	"github.com/google/go-cmp/cmp"
)

const user = "anna@example.org"

// fileLedger keeps the records of one user in a file that is replaced whole.
type fileLedger struct {
	mu   sync.Mutex
	path string
	fail error
}

func (l *fileLedger) LoadLedger(context.Context, string) (map[string][]byte, error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.load()
}

func (l *fileLedger) load() (map[string][]byte, error) {
	m := map[string][]byte{}
	b, err := os.ReadFile(l.path)
	if errors.Is(err, fs.ErrNotExist) {
		return m, nil
	}
	if err != nil {
		return nil, err
	}
	return m, json.Unmarshal(b, &m)
}

func (l *fileLedger) SaveLedger(ctx context.Context, _, name string, data []byte) error {
	l.mu.Lock()
	defer l.mu.Unlock()
	if l.fail != nil {
		return l.fail
	}
	if err := ctx.Err(); err != nil {
		return err
	}
	m, err := l.load()
	if err != nil {
		return err
	}
	if m[name] = data; data == nil {
		delete(m, name)
	}
	b, err := json.Marshal(m)
	if err != nil {
		return err
	}
	if err := os.WriteFile(l.path+".new", b, 0o600); err != nil {
		return err
	}
	return os.Rename(l.path+".new", l.path)
}

func newLedger(t testing.TB) *fileLedger {
	return &fileLedger{path: filepath.Join(t.TempDir(), "ledger")}
}

func account(addr, name, password string) imapconn.Account {
	return imapconn.Account{
		Server: imapconn.Server{Address: addr, Mode: imapconn.TLSNone},
		Login:  imapconn.Login{User: name, Password: password},
	}
}

func jobOf(src, dst *realtest.Dovecot) backfill.Job { return jobFor(src, dst, user) }

func jobFor(src, dst *realtest.Dovecot, name string) backfill.Job {
	return backfill.Job{User: name, Host: "mx.example.org",
		Source: account(src.IMAPAddr, name, "secret"), Dest: account(dst.IMAPAddr, name, "secret")}
}

// mustPass runs a pass that has to succeed.
func mustPass(t testing.TB, c *backfill.Copier, job backfill.Job, o backfill.Options) backfill.Report {
	t.Helper()
	r, err := c.Pass(t.Context(), job, o)
	if err != nil {
		t.Fatal(err)
	}
	return r
}

// stored is what a mailbox holds, told by content, date and flags.
type stored map[string][]string

func (s stored) count() int {
	n := 0
	for _, l := range s {
		n += len(l)
	}
	return n
}

// holds reads a whole mailbox with a client of the test's own. Names come
// without the prefix and with "/" between levels.
func holds(t testing.TB, d *realtest.Dovecot, name string, flags bool) stored {
	t.Helper()
	out := stored{}
	for _, f := range d.Folders(t, name) {
		key := f
		if d.Options.Layout == realtest.DotINBOX {
			key = strings.ReplaceAll(strings.TrimPrefix(f, "INBOX."), ".", "/")
		}
		out[key] = []string{}
		for _, m := range d.Messages(t, name, f) {
			line := fmt.Sprintf("%x %s", sha256.Sum256(m.Body), m.InternalDate.UTC().Format(time.RFC3339))
			if flags {
				line += " " + strings.Join(m.Flags, " ")
			}
			out[key] = append(out[key], line)
		}
		slices.Sort(out[key])
	}
	return out
}

// put appends messages over one connection; a folder is made when it is needed.
func put(t testing.TB, d *realtest.Dovecot, name, folder string, msgs ...mailtest.StoredMessage) {
	t.Helper()
	c := d.Login(t, name)
	defer func() { _ = c.Close() }()
	if folder != "INBOX" {
		_ = c.Create(folder, nil).Wait() // it may be there
	}
	for _, m := range msgs {
		if err := appendOne(c, folder, m); err != nil {
			t.Fatalf("append to %s: %v", folder, err)
		}
	}
}

func appendOne(c *imapclient.Client, folder string, m mailtest.StoredMessage) error {
	opts := &imap.AppendOptions{Time: m.InternalDate}
	for _, f := range m.Flags {
		opts.Flags = append(opts.Flags, imap.Flag(f))
	}
	cmd := c.Append(folder, int64(len(m.Body)), opts)
	if _, err := cmd.Write(m.Body); err != nil {
		return err
	}
	if err := cmd.Close(); err != nil {
		return err
	}
	_, err := cmd.Wait()
	return err
}

func letter(n, size int) mailtest.StoredMessage { return mailtest.Letter(n, size) }

func letters(from, to, size int) []mailtest.StoredMessage {
	var out []mailtest.StoredMessage
	for n := from; n < to; n++ {
		out = append(out, letter(n, size))
	}
	return out
}

func copier(t testing.TB, l backfill.Ledger) *backfill.Copier {
	var log *slog.Logger
	if testing.Verbose() {
		log = slog.New(slog.NewTextHandler(t.Output(), nil))
	}
	return &backfill.Copier{Ledger: l, Log: log, Settle: 100 * time.Millisecond}
}

func same(t testing.TB, want, got stored) {
	t.Helper()
	if d := cmp.Diff(want, got); d != "" {
		t.Errorf("the mailboxes differ (-source +destination):\n%s", d)
	}
}

func TestPassCopiesAMailboxOnce(t *testing.T) {
	for _, layouts := range [][2]realtest.Layout{{realtest.DotINBOX, realtest.Slash}, {realtest.Slash, realtest.DotINBOX}} {
		t.Run(fmt.Sprint(layouts), func(t *testing.T) {
			t.Parallel()
			src := realtest.StartDovecot(t, realtest.DovecotOptions{Layout: layouts[0], MailFsync: "never"})
			dst := realtest.StartDovecot(t, realtest.DovecotOptions{Layout: layouts[1], MailFsync: "never"})
			name := func(s string) string {
				if layouts[0] == realtest.DotINBOX {
					return "INBOX." + strings.ReplaceAll(s, "/", ".")
				}
				return s
			}
			put(t, src, user, "INBOX", letters(0, 230, 2000)...)
			put(t, src, user, "INBOX", letter(7, 2000), letter(8, 3<<20)) // one twice, and one that waits in a file
			for _, f := range []string{"Projekte/Grün & Weiß/2024", "Grüße 🚀", "leer", "a\"b\\c"} {
				put(t, src, user, name(f))
			}
			put(t, src, user, name("Projekte/Grün & Weiß/2024"), letters(300, 310, 100)...)
			put(t, src, user, name("Grüße 🚀"), letters(310, 313, 100)...)

			c := copier(t, newLedger(t))
			job := jobOf(src, dst)
			plan, err := c.Plan(t.Context(), job)
			if err != nil || plan.Messages != 245 {
				t.Fatalf("plan: %+v, %v", plan, err)
			}
			if got := holds(t, dst, user, false); got.count() != 0 || len(got) != 1 {
				t.Errorf("Plan changed the destination: %v", got)
			}
			r := mustPass(t, c, job, backfill.Options{})
			if r.Copied != 245 || r.Adopted != 0 || r.Clean() || len(r.Problems) != 0 {
				t.Errorf("first pass: %+v", r)
			}
			want := holds(t, src, user, true)
			same(t, want, holds(t, dst, user, true))
			for _, o := range []backfill.Options{{}, {Final: true}} {
				if r = mustPass(t, c, job, o); !r.Clean() || r.Messages != 245 {
					t.Errorf("second pass (%+v): %+v", o, r)
				}
			}
			same(t, want, holds(t, dst, user, true))
			v, err := c.Verify(t.Context(), job)
			if err != nil || !v.OK() || len(v.Problems) > 0 {
				t.Errorf("verify: %+v, %v", v, err)
			}
		})
	}
}
