package backfill_test

import (
	"bytes"
	"crypto/tls"
	"fmt"
	"io/fs"
	"net"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"testing"

	"crossfade/backfill"
	"crossfade/backfill/imapconn"
	"crossfade/internal/mailtest"
	"crossfade/internal/mailtest/realtest"

	"github.com/google/go-cmp/cmp"
)

// proxy stands in front of a server. It cuts connections when budget octets
// went to the server, and edits what the server says.
type proxy struct {
	addr, to string
	edit     func(p *proxy, b []byte) []byte

	mu     sync.Mutex
	up     func(b []byte) []byte
	budget int // octets until the cut; negative: none
	live   map[net.Conn]bool
	wg     sync.WaitGroup
}

func newProxy(t *testing.T, to string, edit func(p *proxy, b []byte) []byte) *proxy {
	return newProxyBothWays(t, to, nil, edit)
}

// newProxyBothWays changes what clients say, too.
func newProxyBothWays(t *testing.T, to string, up func(b []byte) []byte, edit func(p *proxy, b []byte) []byte) *proxy {
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	p := &proxy{addr: l.Addr().String(), to: to, up: up, edit: edit, budget: -1, live: map[net.Conn]bool{}}
	p.wg.Go(func() {
		for {
			c, err := l.Accept()
			if err != nil {
				return
			}
			s, err := net.Dial("tcp", p.to)
			if err != nil {
				c.Close()
				continue
			}
			p.mu.Lock()
			p.live[c], p.live[s] = true, true
			p.mu.Unlock()
			p.wg.Go(func() { p.pump(s, c, true) })
			p.wg.Go(func() { p.pump(c, s, false) })
		}
	})
	t.Cleanup(func() {
		l.Close()
		p.mu.Lock()
		for c := range p.live {
			c.Close()
		}
		p.mu.Unlock()
		p.wg.Wait()
	})
	return p
}

func (p *proxy) set(budget int) {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.budget = budget
}

func (p *proxy) pump(dst, src net.Conn, toServer bool) {
	defer dst.Close()
	defer src.Close()
	buf := make([]byte, 4096)
	for {
		n, err := src.Read(buf)
		b := buf[:n]
		cut := false
		if toServer {
			if p.up != nil {
				b = p.up(b)
			}
			b, cut = p.spend(b)
		} else if p.edit != nil {
			b = p.edit(p, b)
		}
		if _, werr := dst.Write(b); werr != nil || err != nil || cut {
			return
		}
	}
}

func (p *proxy) spend(b []byte) ([]byte, bool) {
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.budget < 0 {
		return b, false
	}
	if len(b) > p.budget {
		b = b[:p.budget]
		p.budget = 0
		return b, true
	}
	p.budget -= len(b)
	return b, false
}

// TestConnectionsDropAnywhere cuts the connections to the destination after
// more and more octets; the last pass has one that holds.
func TestConnectionsDropAnywhere(t *testing.T) {
	t.Parallel()
	src := realtest.StartDovecot(t, fast(realtest.DovecotOptions{Layout: realtest.DotINBOX}))
	dst := realtest.StartDovecot(t, fast(realtest.DovecotOptions{}))
	put(t, src, user, "INBOX", append(letters(0, 20, 300), fragile()...)...)
	put(t, src, user, "INBOX.x", letters(20, 30, 300)...)
	c := copier(t, newLedger(t))
	c.BatchMessages = 6
	p := newProxy(t, dst.IMAPAddr, nil)
	job := jobOf(src, dst)
	job.Dest.Server.Address = p.addr
	failed := 0
	for budget := 50; budget < 20_000; budget = budget*4/3 + 7 {
		p.set(budget)
		if _, err := c.Pass(t.Context(), job, backfill.Options{}); err != nil {
			failed++
		}
	}
	p.set(-1)
	mustPass(t, c, job, backfill.Options{})
	if n := holds(t, dst, user, false).count(); n != 33 || failed < 10 {
		t.Errorf("%d messages after %d failures, want 33", n, failed)
	}
	if v, err := c.Verify(t.Context(), job); err != nil || !v.OK() {
		t.Errorf("%+v, %v", v, err)
	}
	if r := mustPass(t, c, job, backfill.Options{Final: true}); !r.Clean() {
		t.Errorf("%+v", r)
	}
}

// TestSourceDropsAnywhere: the reader goes on by itself.
func TestSourceDropsAnywhere(t *testing.T) {
	t.Parallel()
	src := realtest.StartDovecot(t, fast(realtest.DovecotOptions{Layout: realtest.DotINBOX}))
	dst := realtest.StartDovecot(t, fast(realtest.DovecotOptions{}))
	put(t, src, user, "INBOX", letters(0, 60, 3000)...)
	bytesLeft := 20_000
	var mu sync.Mutex
	p := newProxy(t, src.IMAPAddr, func(p *proxy, b []byte) []byte { // a connection for every 20 KB
		mu.Lock()
		defer mu.Unlock()
		if bytesLeft -= len(b); bytesLeft < 0 {
			bytesLeft = 20_000
			p.mu.Lock()
			for c := range p.live {
				c.Close()
			}
			p.mu.Unlock()
		}
		return b
	})
	c := copier(t, newLedger(t))
	job := jobOf(src, dst)
	job.Source.Server.Address = p.addr
	r := mustPass(t, c, job, backfill.Options{})
	if r.Copied != 60 || len(r.Problems) != 0 {
		t.Errorf("%+v", r)
	}
	same(t, holds(t, src, user, true), holds(t, dst, user, true))
}

// TestUnreadableMessage: the source drops the connection over one message. The
// others are copied, the passes stay unclean, and once it can be read it comes.
func TestUnreadableMessage(t *testing.T) {
	t.Parallel()
	src := realtest.StartDovecot(t, fast(realtest.DovecotOptions{Layout: realtest.DotINBOX}))
	dst := realtest.StartDovecot(t, fast(realtest.DovecotOptions{}))
	msgs := letters(0, 20, 10)
	msgs[11].Body = []byte("Subject: POISON\r\n\r\nx\r\n")
	put(t, src, user, "INBOX", msgs...)
	p := newProxy(t, src.IMAPAddr, func(p *proxy, b []byte) []byte {
		if before, _, found := bytes.Cut(b, []byte("POISON")); found {
			p.mu.Lock()
			defer p.mu.Unlock()
			if p.budget < 0 {
				for c := range p.live {
					c.Close()
				}
				return before
			}
		}
		return b
	})
	c := copier(t, newLedger(t))
	job := jobOf(src, dst)
	job.Source.Server.Address = p.addr
	for i, copied := range []int{19, 0} {
		r := mustPass(t, c, job, backfill.Options{})
		if r.Copied != copied || r.Clean() || len(problems(r, backfill.ClassUnreadable)) != 1 || r.Problems[0].UID != 12 {
			t.Errorf("pass %d: %+v", i, r)
		}
	}
	if v, err := c.Verify(t.Context(), job); err != nil || v.OK() || !cmp.Equal(v.Folders[0].Missing, []uint32{12}) {
		t.Errorf("%+v, %v", v, err)
	}
	p.set(1 << 30) // mended
	if r := mustPass(t, c, job, backfill.Options{}); r.Copied != 1 {
		t.Errorf("%+v", r)
	}
	if r := mustPass(t, c, job, backfill.Options{}); !r.Clean() {
		t.Errorf("%+v", r)
	}
	same(t, holds(t, src, user, true), holds(t, dst, user, true))
}

func TestKeywordsThatCannotBeKept(t *testing.T) {
	t.Parallel()
	src := realtest.StartDovecot(t, fast(realtest.DovecotOptions{Layout: realtest.DotINBOX}))
	dst := realtest.StartDovecot(t, fast(realtest.DovecotOptions{}))
	p := newProxy(t, dst.IMAPAddr, func(_ *proxy, b []byte) []byte { return bytes.ReplaceAll(b, []byte(` \*)]`), []byte(" kept)]")) })
	for i := range 3 {
		put(t, src, user, "INBOX", mailtest.StoredMessage{Body: letter(i, 10).Body, Flags: []string{`\Seen`, "kept", "lost"}})
	}
	c := copier(t, newLedger(t))
	job := jobOf(src, dst)
	job.Dest.Server.Address = p.addr
	r := mustPass(t, c, job, backfill.Options{})
	if got := problems(r, backfill.ClassFlag); r.Copied != 3 || !cmp.Equal(got, []string{`INBOX: the destination cannot keep "lost"`}) {
		t.Errorf("%+v", r)
	}
	for _, m := range dst.Messages(t, user, "INBOX") {
		if !cmp.Equal(m.Flags, []string{`\Seen`, "kept"}) {
			t.Errorf("flags: %q", m.Flags)
		}
	}
	if r := mustPass(t, c, job, backfill.Options{Final: true}); !r.Clean() {
		t.Errorf("%+v", r)
	}
}

// TestKeywordsThatMakeItRefuse: a keyword is no reason to lose a message.
func TestKeywordsThatMakeItRefuse(t *testing.T) {
	t.Parallel()
	src := realtest.StartDovecot(t, fast(realtest.DovecotOptions{Layout: realtest.DotINBOX, Extra: "mail_max_keyword_length = 200\n"}))
	dst := realtest.StartDovecot(t, fast(realtest.DovecotOptions{}))
	long := strings.Repeat("k", 120)
	msgs := letters(0, 12, 10)
	msgs[5].Flags = []string{`\Flagged`, long}
	put(t, src, user, "INBOX", msgs...)
	c := copier(t, newLedger(t))
	r := mustPass(t, c, jobOf(src, dst), backfill.Options{})
	if r.Copied != 12 || len(problems(r, backfill.ClassRefused)) != 0 || len(problems(r, backfill.ClassFlag)) != 2 {
		t.Errorf("%+v", r)
	}
	same(t, holds(t, src, user, false), holds(t, dst, user, false))
	if r := mustPass(t, c, jobOf(src, dst), backfill.Options{Final: true}); !r.Clean() {
		t.Errorf("%+v", r)
	}
}

// TestDeliveriesMeanwhile: others append to the destination without pause while
// the pass runs, and its UIDs are not in one row.
func TestDeliveriesMeanwhile(t *testing.T) {
	t.Parallel()
	for what, caps := range map[string]string{"all": "", "no UIDPLUS": "IMAP4rev1 MULTIAPPEND LITERAL+"} {
		t.Run(what, func(t *testing.T) {
			t.Parallel()
			src := realtest.StartDovecot(t, fast(realtest.DovecotOptions{Layout: realtest.DotINBOX}))
			dst := realtest.StartDovecot(t, fast(realtest.DovecotOptions{Capability: caps}))
			put(t, src, user, "INBOX", letters(0, 150, 1000)...)
			want := holds(t, src, user, false)["INBOX"]
			c := copier(t, newLedger(t))
			c.BatchMessages = 5
			stop, stopped := make(chan struct{}), make(chan int)
			// Two first logins at once are a race inside Dovecot, which makes the
			// mailbox then and may end one of the connections.
			cl := dst.Login(t, user)
			if err := appendOne(cl, "INBOX", letter(5000, 500)); err != nil {
				t.Fatal(err)
			}
			go func() {
				n := 1
				for ; ; n++ {
					select {
					case <-stop:
						stopped <- n
						return
					default:
						if err := appendOne(cl, "INBOX", letter(5000+n, 500)); err != nil {
							// go-imap keeps its lock after that: the next APPEND would hang.
							t.Error(err)
							<-stop
							stopped <- n
							return
						}
					}
				}
			}()
			r := mustPass(t, c, jobOf(src, dst), backfill.Options{})
			close(stop)
			extra := <-stopped
			got := holds(t, dst, user, false)["INBOX"]
			if r.Copied != 150 || len(got) != 150+extra || extra == 0 {
				t.Errorf("copied %d, delivered %d, there are %d", r.Copied, extra, len(got))
			}
			for _, line := range want {
				if n := strings.Count(strings.Join(got, "\n"), line); n != 1 {
					t.Errorf("%s is there %d times", line, n)
				}
			}
			if r := mustPass(t, c, jobOf(src, dst), backfill.Options{Final: true}); !r.Clean() {
				t.Errorf("%+v", r)
			}
		})
	}
}

// TestRefusedMessages: a batch with refused messages is halved until they are
// alone; they are reported in every pass, and make none of them unclean.
func TestRefusedMessages(t *testing.T) {
	t.Parallel()
	for what, caps := range map[string]string{"MULTIAPPEND": "", "single": "IMAP4rev1 UIDPLUS"} {
		t.Run(what, func(t *testing.T) {
			t.Parallel()
			src := realtest.StartDovecot(t, fast(realtest.DovecotOptions{Layout: realtest.DotINBOX}))
			small := "mail_plugins = $mail_plugins quota\nplugin {\n quota = count:User quota\n quota_vsizes = yes\n quota_max_mail_size = 4k\n}\n"
			dst := realtest.StartDovecot(t, fast(realtest.DovecotOptions{Extra: small, Capability: caps}))
			msgs := letters(0, 20, 100)
			msgs[7], msgs[13] = letter(7, 5000), letter(13, 5000)
			put(t, src, user, "INBOX", msgs...)
			c := copier(t, newLedger(t))
			job := jobOf(src, dst)
			r := mustPass(t, c, job, backfill.Options{})
			if r.Copied != 18 || len(problems(r, backfill.ClassRefused)) != 2 {
				t.Fatalf("%+v", r)
			}
			t.Log(r.Problems[0].Text)
			for _, o := range []backfill.Options{{}, {Final: true}, {}, {RetryRefused: true}} {
				if r = mustPass(t, c, job, o); !r.Clean() || len(problems(r, backfill.ClassRefused)) != 2 {
					t.Errorf("%+v: %+v", o, r)
				}
			}
			v, err := c.Verify(t.Context(), job)
			if err != nil || v.Missing != 2 || len(v.Problems) != 2 || v.Problems[0].Class != backfill.ClassRefused {
				t.Errorf("%+v, %v", v, err)
			}
			if n := holds(t, dst, user, false).count(); n != 18 {
				t.Errorf("%d messages", n)
			}
		})
	}
}

// TestCorpus copies real messages with everything that is wrong with real
// messages. Dovecot may alter some: none may be missing.
func TestCorpus(t *testing.T) {
	t.Parallel()
	root := filepath.Join("..", "..", "shared", "corpus")
	var msgs []mailtest.StoredMessage
	err := filepath.WalkDir(root, func(path string, e fs.DirEntry, err error) error {
		if err != nil || e.IsDir() || strings.Contains(filepath.Base(path), "LICENSE") || filepath.Ext(path) == ".md" {
			return err
		}
		b, err := os.ReadFile(path)
		if len(b) > 0 {
			msgs = append(msgs, mailtest.StoredMessage{Body: b})
		}
		return err
	})
	if err != nil || len(msgs) == 0 {
		t.Skipf("SKIPPED, NOT PROVEN: the corpus is not at %s: %v", root, err)
	}
	src := realtest.StartDovecot(t, fast(realtest.DovecotOptions{Layout: realtest.DotINBOX}))
	dst := realtest.StartDovecot(t, fast(realtest.DovecotOptions{}))
	put(t, src, user, "INBOX", msgs...)
	c := copier(t, newLedger(t))
	r := mustPass(t, c, jobOf(src, dst), backfill.Options{})
	n := holds(t, dst, user, false).count()
	if r.Copied != len(msgs) || n != len(msgs) {
		t.Errorf("copied %d of %d, there are %d: %v", r.Copied, len(msgs), n, r.Problems)
	}
	v, err := c.Verify(t.Context(), jobOf(src, dst))
	if err != nil || !v.OK() {
		t.Errorf("%d missing, %v", v.Missing, err)
	}
	t.Logf("%d messages, %d altered", len(msgs), len(v.Problems))
	if r := mustPass(t, c, jobOf(src, dst), backfill.Options{Final: true}); !r.Clean() {
		t.Errorf("%+v", r)
	}
	// Without a ledger everything is recognised.
	r = mustPass(t, copier(t, newLedger(t)), jobOf(src, dst), backfill.Options{})
	if r.Adopted != len(msgs) || r.Copied != 0 {
		t.Errorf("a new ledger: adopted %d, copied %d", r.Adopted, r.Copied)
	}
}

// TestUnrecognisable: a destination that tells no UIDs and changes messages
// beyond recognition gets each of them once all the same.
func TestUnrecognisable(t *testing.T) {
	t.Parallel()
	src := realtest.StartDovecot(t, fast(realtest.DovecotOptions{Layout: realtest.DotINBOX}))
	dst := realtest.StartDovecot(t, fast(realtest.DovecotOptions{Capability: "IMAP4rev1 MULTIAPPEND"}))
	put(t, src, user, "INBOX", letters(0, 5, 10)...)
	p := newProxy(t, dst.IMAPAddr, func(_ *proxy, b []byte) []byte { return bytes.ReplaceAll(b, []byte("Subject:"), []byte("SUBJECT:")) })
	c := copier(t, newLedger(t))
	job := jobOf(src, dst)
	job.Dest.Server.Address = p.addr
	r := mustPass(t, c, job, backfill.Options{})
	if r.Copied != 5 || len(problems(r, backfill.ClassAltered)) != 5 {
		t.Errorf("%+v", r)
	}
	if r := mustPass(t, c, job, backfill.Options{Final: true}); !r.Clean() || len(r.Problems) != 5 {
		t.Errorf("%+v", r)
	}
	if n := holds(t, dst, user, false).count(); n != 5 {
		t.Errorf("%d messages", n)
	}
}

func TestPassOverTLS(t *testing.T) {
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
	imaps := realtest.FreePort(t)
	dst := realtest.StartDovecot(t, fast(realtest.DovecotOptions{TLS: &files,
		Extra: fmt.Sprintf("service imap-login {\n inet_listener imaps {\n port = %d\n ssl = yes\n }\n}\n", imaps)}))
	put(t, src, user, "INBOX", letters(0, 3, 10)...)
	job := jobOf(src, dst)
	good := &tls.Config{RootCAs: ca.Pool(), ServerName: "imap.test"}
	job.Source.Server.Mode, job.Source.Server.TLS = imapconn.TLSStart, good
	job.Dest.Server = imapconn.Server{Address: fmt.Sprintf("127.0.0.1:%d", imaps), Mode: imapconn.TLSImplicit, TLS: good}
	c := copier(t, newLedger(t))
	if r := mustPass(t, c, job, backfill.Options{}); r.Copied != 3 {
		t.Errorf("%+v", r)
	}
	job.Dest.Server.TLS = nil
	if _, err := c.Pass(t.Context(), job, backfill.Options{}); err == nil || !strings.Contains(err.Error(), "certificate") {
		t.Errorf("a certificate of nobody's is taken: %v", err)
	}
}
