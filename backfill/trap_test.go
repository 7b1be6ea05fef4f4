package backfill_test

import (
	"bytes"
	"crypto/tls"
	"fmt"
	"regexp"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"testing"

	"crossfade/backfill"
	"crossfade/backfill/imapconn"
	"crossfade/internal/mailtest"
	"crossfade/internal/mailtest/realtest"

	"github.com/emersion/go-imap/v2"
)

// TestManyBadMessagesInARow: a folder of what a broken program wrote. Ten refusals in a row once counted as a destination that
// takes nothing, and the user could never be copied.
func TestManyBadMessagesInARow(t *testing.T) {
	t.Parallel()
	src := realtest.StartDovecot(t, fast(realtest.DovecotOptions{Layout: realtest.DotINBOX}))
	dst := realtest.StartCyrus(t, realtest.CyrusOptions{})
	var bad []mailtest.StoredMessage
	for i := range 14 {
		bad = append(bad, mailtest.StoredMessage{Body: fmt.Appendf(nil, "this is no header %d\r\nSubject: x\r\n\r\ny\r\n", i)})
	}
	put(t, src, user, "INBOX", append(letters(0, 3, 10), bad...)...)
	c := copier(t, newLedger(t))
	job := backfill.Job{User: user, Source: account(src.IMAPAddr, user, "secret"), Dest: account(dst.IMAPAddr, user, "secret")}
	r := mustPass(t, c, job, backfill.Options{})
	if r.Copied != 3 || len(problems(r, backfill.ClassWrapped)) != 14 {
		t.Errorf("%+v", r)
	}
	if v, err := c.Verify(t.Context(), job); err != nil || !v.OK() {
		t.Errorf("%+v, %v", v, err)
	}
	if r := mustPass(t, c, job, backfill.Options{Final: true}); !r.Clean() {
		t.Errorf("%+v", r)
	}
}

// TestFolderVanishes: somebody deletes a folder while it is copied. The pass ends with an error that names the folder, and the
// next one has all of it; what was deleted on the source is not missed.
func TestFolderVanishes(t *testing.T) {
	t.Parallel()
	for _, tt := range []struct {
		side, point string
		want        int // messages on the destination in the end
	}{{"source", "after-create", 3}, {"source", "between-folders", 3}, {"destination", "after-create", 23}, {"destination", "after-fetch", 23},
		{"destination", "after-append", 23}, {"destination", "after-journal", 23}} {
		t.Run(tt.side+" "+tt.point, func(t *testing.T) {
			t.Parallel()
			src := realtest.StartDovecot(t, fast(realtest.DovecotOptions{Layout: realtest.DotINBOX}))
			dst := realtest.StartDovecot(t, fast(realtest.DovecotOptions{}))
			put(t, src, user, "INBOX", letters(0, 3, 100)...)
			put(t, src, user, "INBOX.weg", letters(10, 30, 100)...)
			put(t, dst, user, "INBOX") // makes the mailbox
			c := copier(t, newLedger(t))
			c.BatchMessages, c.Connections = 5, 1
			var once sync.Once
			n := 0
			c.CrashPoint = func(name string) {
				if name != tt.point {
					return
				}
				if n++; n < 2 && strings.HasPrefix(tt.point, "after-") && tt.point != "after-create" {
					return // in the middle
				}
				once.Do(func() {
					d, folder := src, "INBOX.weg"
					if tt.side == "destination" {
						d, folder = dst, "weg"
					}
					_ = d.Login(t, user).Delete(folder).Wait() // where it is not there yet there is nothing to do
				})
			}
			r, err := c.Pass(t.Context(), jobOf(src, dst), backfill.Options{})
			t.Logf("%+v, %v", r.Problems, err)
			if err != nil && !strings.Contains(err.Error(), "weg") {
				t.Errorf("the error does not say which folder: %v", err)
			}
			c.CrashPoint = nil
			mustPass(t, c, jobOf(src, dst), backfill.Options{Restore: true})
			got := holds(t, dst, user, false)
			if n := got.count(); tt.side == "destination" && n != tt.want || n < tt.want || n > 23 {
				t.Errorf("%d messages, want %d", n, tt.want)
			}
			if v, err := c.Verify(t.Context(), jobOf(src, dst)); err != nil || !v.OK() {
				t.Errorf("%+v, %v", v, err)
			}
			if r := mustPass(t, c, jobOf(src, dst), backfill.Options{Final: true}); !r.Clean() {
				t.Errorf("%+v", r)
			}
		})
	}
}

// TestNotAllowed: a destination that takes no mail, or no flags, says so in the error of the pass; nothing counts as refused,
// and with the right given the next pass goes on.
func TestNotAllowed(t *testing.T) {
	t.Parallel()
	src := realtest.StartDovecot(t, fast(realtest.DovecotOptions{Layout: realtest.DotINBOX}))
	dst := realtest.StartDovecot(t, fast(realtest.DovecotOptions{}))
	put(t, src, user, "INBOX", letters(0, 25, 100)...)
	for verb, words := range map[string]string{
		"APPEND": "NO [NOPERM] Permission denied", "SELECT": "NO [NOPERM] Permission denied",
		"AUTHENTICATE": "NO [LIMIT] Maximum number of connections from user+IP exceeded (mail_max_userip_connections=10)",
	} {
		t.Run(verb, func(t *testing.T) {
			name := strings.ToLower(verb) + "@example.org"
			var allowed atomic.Bool
			g := newGate(t, dst.IMAPAddr, func(cmd string) string {
				if strings.HasPrefix(cmd, verb) && !allowed.Load() {
					return words
				}
				return ""
			})
			c := copier(t, newLedger(t))
			job := jobOf(src, dst)
			job.Dest.Server.Address, job.Dest.Login.User = g.addr, name
			r, err := c.Pass(t.Context(), job, backfill.Options{})
			if err == nil || !strings.Contains(err.Error(), words[strings.Index(words, "]")+2:]) || !strings.Contains(err.Error(), "destination") {
				t.Errorf("error %v", err)
			}
			if r.Copied != 0 || len(problems(r, backfill.ClassRefused))+len(problems(r, backfill.ClassWrapped)) != 0 {
				t.Errorf("%+v", r)
			}
			allowed.Store(true)
			if r := mustPass(t, c, job, backfill.Options{}); r.Copied != 25 || len(r.Problems) != 0 {
				t.Errorf("%+v", r)
			}
			same(t, holds(t, src, user, true), holds(t, dst, name, true))
		})
	}
}

// TestSourceLiesAboutSizes: RFC822.SIZE is a hint, whatever it says.
func TestSourceLiesAboutSizes(t *testing.T) {
	t.Parallel()
	src := realtest.StartDovecot(t, fast(realtest.DovecotOptions{Layout: realtest.DotINBOX}))
	dst := realtest.StartDovecot(t, fast(realtest.DovecotOptions{}))
	put(t, src, user, "INBOX", letters(0, 30, 3000)...)
	size := regexp.MustCompile(`RFC822\.SIZE \d+`)
	for i, lie := range []string{"0", "1", "4294967295", "9223372036854775807"} {
		p := newProxy(t, src.IMAPAddr, func(_ *proxy, b []byte) []byte { return size.ReplaceAll(b, []byte("RFC822.SIZE "+lie)) })
		c := copier(t, newLedger(t))
		c.MemoryBytes = 20_000
		job := jobOf(src, dst)
		name := fmt.Sprintf("size%d@example.org", i)
		job.Source.Server.Address, job.Dest.Login.User = p.addr, name
		if r := mustPass(t, c, job, backfill.Options{}); r.Copied != 30 || len(r.Problems) != 0 {
			t.Errorf("%s: %+v", lie, r)
		}
		same(t, holds(t, src, user, true), holds(t, dst, name, true))
		if r := mustPass(t, c, job, backfill.Options{Final: true}); !r.Clean() {
			t.Errorf("%s: %+v", lie, r)
		}
	}
}

// TestAppendUIDLies: UIDs that cannot be those of the batch are not believed; they are looked for instead. Believed, they would
// pair messages with others, and flags and deletions would go to those.
func TestAppendUIDLies(t *testing.T) {
	t.Parallel()
	src := realtest.StartDovecot(t, fast(realtest.DovecotOptions{Layout: realtest.DotINBOX}))
	dst := realtest.StartDovecot(t, fast(realtest.DovecotOptions{}))
	put(t, src, user, "INBOX", letters(0, 20, 100)...)
	told := regexp.MustCompile(`\[APPENDUID (\d+) (\d+)(:\d+)?\]`)
	for name, lie := range map[string]func(m [][]byte) string{
		"those of others": func(m [][]byte) string { return "1:5" },
		"descending":      func(m [][]byte) string { return "995,994,993,992,991" },
		"all the same":    func(m [][]byte) string { return "991,991,991,991,991" },
		"none":            func(m [][]byte) string { return "0" },
		"nonsense":        func(m [][]byte) string { return "*:abc" },
		"too few":         func(m [][]byte) string { return string(m[2]) },
	} {
		t.Run(name, func(t *testing.T) {
			as := strings.ReplaceAll(name, " ", "") + "@example.org"
			put(t, dst, as, "INBOX", letters(100, 105, 10)...)
			others := holds(t, dst, as, true)["INBOX"]
			p := newProxy(t, dst.IMAPAddr, func(_ *proxy, b []byte) []byte {
				return told.ReplaceAllFunc(b, func(s []byte) []byte {
					m := told.FindSubmatch(s)
					return []byte("[APPENDUID " + string(m[1]) + " " + lie(m) + "]")
				})
			})
			c := copier(t, newLedger(t))
			c.BatchMessages = 5
			job := jobOf(src, dst)
			job.Dest.Server.Address, job.Dest.Login.User = p.addr, as
			if r := mustPass(t, c, job, backfill.Options{}); r.Copied != 20 || len(r.Problems) != 0 {
				t.Errorf("%+v", r)
			}
			if r := mustPass(t, c, job, backfill.Options{Final: true, Restore: true}); !r.Clean() {
				t.Errorf("%+v", r)
			}
			// What happens to a message afterwards happens to its copy, and not to another.
			setFlags(t, user, src, "INBOX", 3, imap.StoreFlagsAdd, imap.Flag("for-"+strings.ReplaceAll(name, " ", "")))
			mustPass(t, c, job, backfill.Options{})
			want := append(holds(t, src, user, true)["INBOX"], others...)
			slices.Sort(want)
			same(t, stored{"INBOX": want}, holds(t, dst, as, true))
		})
	}
}

// TestUnaskedAnswers: FETCH data that nobody asked for, as servers send them when somebody else reads the mailbox, in front of
// every answer on both sides.
func TestUnaskedAnswers(t *testing.T) {
	t.Parallel()
	src := realtest.StartDovecot(t, fast(realtest.DovecotOptions{Layout: realtest.DotINBOX}))
	dst := realtest.StartDovecot(t, fast(realtest.DovecotOptions{}))
	put(t, src, user, "INBOX", letters(0, 20, 100)...)
	answer := regexp.MustCompile(`(?m)^(C|T)\d+ OK `)
	noise := "* 1 FETCH (FLAGS (\\Seen))\r\n* 2 FETCH (UID 2 FLAGS (\\Flagged))\r\n* 20 EXISTS\r\n* 0 RECENT\r\n"
	edit := func(_ *proxy, b []byte) []byte {
		return answer.ReplaceAllFunc(b, func(m []byte) []byte { return append([]byte(noise), m...) })
	}
	c := copier(t, newLedger(t))
	job := jobOf(src, dst)
	job.Source.Server.Address, job.Dest.Server.Address = newProxy(t, src.IMAPAddr, edit).addr, newProxy(t, dst.IMAPAddr, edit).addr
	if r := mustPass(t, c, job, backfill.Options{}); r.Copied != 20 || len(r.Problems) != 0 {
		t.Errorf("%+v", r)
	}
	if n := holds(t, dst, user, false).count(); n != 20 {
		t.Errorf("%d messages", n)
	}
	if v, err := c.Verify(t.Context(), job); err != nil || !v.OK() {
		t.Errorf("%+v, %v", v, err)
	}
}

// TestCertificateOfAnother: the error names both names, and no password was sent.
func TestCertificateOfAnother(t *testing.T) {
	t.Parallel()
	ca, err := mailtest.NewCA()
	if err != nil {
		t.Fatal(err)
	}
	cert, err := ca.Issue("imap.test")
	if err != nil {
		t.Fatal(err)
	}
	files, err := ca.WritePEM(t.TempDir(), cert)
	if err != nil {
		t.Fatal(err)
	}
	src := realtest.StartDovecot(t, fast(realtest.DovecotOptions{Layout: realtest.DotINBOX, TLS: &files}))
	var login atomic.Bool
	p := newProxy(t, src.IMAPAddr, func(_ *proxy, b []byte) []byte {
		if bytes.Contains(b, []byte(" OK Logged in")) {
			login.Store(true)
		}
		return b
	})
	job := jobOf(src, src)
	job.Source.Server = imapconn.Server{Address: p.addr, Mode: imapconn.TLSStart, TLS: &tls.Config{RootCAs: ca.Pool(), ServerName: "mail.example.org"}}
	_, err = copier(t, newLedger(t)).Pass(t.Context(), job, backfill.Options{})
	if err == nil || !strings.Contains(err.Error(), "imap.test") || !strings.Contains(err.Error(), "mail.example.org") || !strings.Contains(err.Error(), "source") {
		t.Errorf("%v", err)
	}
	if login.Load() {
		t.Error("somebody logged in")
	}
}
