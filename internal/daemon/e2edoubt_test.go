package daemon_test

import (
	"bytes"
	"fmt"
	"io"
	"net"
	"net/http"
	"path/filepath"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"crossfade/admin"
	"crossfade/internal/mailtest/realtest"
	"crossfade/queue"
)

// forwarder passes connections on to a server. Shut, it closes them at once. When
// loses is above 0, that many final dots get no reply: the connection ends when the
// server has said it.
type forwarder struct {
	t     *testing.T
	l     net.Listener
	to    string
	shut  atomic.Bool
	loses atomic.Int32
	wg    sync.WaitGroup
}

func newForwarder(t *testing.T, to string) *forwarder {
	t.Helper()
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	f := &forwarder{t: t, l: l, to: to}
	f.wg.Go(func() {
		for {
			c, err := l.Accept()
			if err != nil {
				return
			}
			f.wg.Go(func() { f.pass(c) })
		}
	})
	t.Cleanup(func() {
		_ = l.Close()
		f.wg.Wait()
	})
	return f
}

func (f *forwarder) addr() string { return f.l.Addr().String() }

func (f *forwarder) pass(client net.Conn) {
	defer client.Close()
	if f.shut.Load() {
		return
	}
	server, err := net.Dial("tcp", f.to)
	if err != nil {
		return
	}
	defer server.Close()
	dot := &atomic.Bool{}
	var wg sync.WaitGroup
	wg.Go(func() {
		defer server.Close()
		var last []byte
		copyTo(server, client, func(b []byte) bool {
			if last = append(last, b...); bytes.HasSuffix(last, []byte("\r\n.\r\n")) && f.loses.Add(-1) >= 0 {
				dot.Store(true)
			}
			last = last[max(0, len(last)-5):]
			return true
		})
	})
	copyTo(client, server, func([]byte) bool { return !dot.Load() })
	_ = client.Close()
	wg.Wait()
}

// copyTo copies as long as ok says so of what came.
func copyTo(to io.Writer, from io.Reader, ok func([]byte) bool) {
	buf := make([]byte, 32<<10)
	for {
		n, err := from.Read(buf)
		if n > 0 {
			if !ok(buf[:n]) {
				return
			}
			if _, err := to.Write(buf[:n]); err != nil {
				return
			}
		}
		if err != nil {
			return
		}
	}
}

// TestRealDoubtBehindPostfix: the reply to a final dot is lost while the process
// lives. That the message is not in the mailbox proves nothing: Postfix has it in
// its queue, because the mailbox's server does not take it yet. It is looked for
// until it comes, and is there once.
func TestRealDoubtBehindPostfix(t *testing.T) {
	user := "anna@" + e2eDomain
	w := &world{t: t, dir: t.TempDir(), book: newBook()}
	w.cfgPath, w.logPath = filepath.Join(w.dir, "crossfade.yaml"), filepath.Join(w.dir, "log")
	w.old = realtest.StartDovecot(t, realtest.DovecotOptions{
		Layout: realtest.DotINBOX, LMTP: true, Users: []string{user}, MasterUser: e2eMaster, MasterPassword: e2eSecret,
	})
	w.write("password", e2eSecret+"\n")
	mailbox := newForwarder(t, w.old.LMTPAddr)
	postfix := realtest.StartPostfix(t, realtest.PostfixOptions{
		Domains: []string{e2eDomain}, Recipients: []string{user}, NextHop: "lmtp:inet:" + mailbox.addr(), Extra: "maximal_backoff_time = 1s\n",
	})
	wire := newForwarder(t, postfix.Addr)
	w.write("crossfade.yaml", fmt.Sprintf(`hostname: mx.%[1]s
domains: [%[1]s]
store: ./data
smtp: {listen: ["127.0.0.1:0"], resolvers: ["127.0.0.1:1"]}
admin: {listen: "127.0.0.1:0", token_file: ./admin.token}
backends:
  old:
    smtp: smtp://%[2]s
    imap: %[3]s
    `+masterLine+`
  new: {smtp: smtp://127.0.0.1:9}
routing: {unknown: old}
queue: {min_free: 0, doubt_wait: 2m}
`, e2eDomain, wire.addr(), w.old.IMAPURL(), "authzid"))
	d := w.serve()
	send := func(subject string) {
		t.Helper()
		if out, status := realtest.Swaks(t, t.Context(), d.smtp, "--from", "sender@outside.test", "--to", user, "--header", "Subject: "+subject); status != 0 {
			t.Fatalf("swaks: status %d\n%s", status, out)
		}
	}
	arrived := func() int { return len(w.old.MaildirFiles(t, user)) }

	wire.loses.Store(1)
	send("the mailbox takes it at once")
	drain(t, d.client, 30*time.Second)
	if n := arrived(); n != 1 {
		t.Errorf("it is there %d times", n)
	}

	mailbox.shut.Store(true)
	wire.loses.Store(1)
	send("the mailbox takes it later")
	poll(t, 30*time.Second, "looking in vain", func() (bool, error) {
		page, err := d.client.Queue(t.Context(), admin.QueueFilter{State: queue.Queued}, "", 10)
		if err != nil || len(page.Messages) != 1 {
			return false, fmt.Errorf("%d messages wait: %w", len(page.Messages), err)
		}
		r := page.Messages[0].Rcpts[0]
		return !r.Doubt.IsZero() && strings.Contains(r.LastReply, "not in the mailbox on old yet"), fmt.Errorf("%+v", r)
	})
	if n := postfix.Queued(t); n != 1 {
		t.Errorf("%d messages in the queue of Postfix", n)
	}
	mailbox.shut.Store(false)
	drain(t, d.client, 60*time.Second)
	poll(t, 20*time.Second, "the end of Postfix's queue", func() (bool, error) { return postfix.Queued(t) == 0, nil })
	if n := arrived(); n != 2 {
		t.Errorf("there are %d messages of 2", n)
	}
	resp, err := http.Get(d.d.AdminURL() + "/metrics")
	if err != nil {
		t.Fatal(err)
	}
	defer resp.Body.Close()
	text, err := io.ReadAll(resp.Body)
	if err != nil {
		t.Fatal(err)
	}
	for _, want := range []string{`crossfade_delivery_doubts_total{result="found",route="old"} 2`, `crossfade_delivery_doubts_total{result="sent_again",route="old"} 0`} {
		if !bytes.Contains(text, []byte(want)) {
			t.Errorf("the metrics lack %s", want)
		}
	}
}
