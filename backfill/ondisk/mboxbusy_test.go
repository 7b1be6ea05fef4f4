package ondisk_test

import (
	"context"
	"net"
	"net/textproto"
	"path/filepath"
	"sync"
	"testing"
	"time"

	"crossfade/backfill/imapconn"
	"crossfade/backfill/ondisk"
	"crossfade/internal/mailtest"
	"crossfade/internal/mailtest/realtest"
)

// TestMboxUnderRealDeliveries: a Dovecot that delivers to an mbox over twenty
// connections, so that its lock goes from one to the next, keeps nobody from reading it.
func TestMboxUnderRealDeliveries(t *testing.T) {
	t.Parallel()
	d := realtest.StartDovecot(t, realtest.DovecotOptions{LMTP: true, Users: []string{user}, MailFsync: "never", Extra: "mail_location = mbox:~/mail:INBOX=~/inbox\n"})
	ctx, stop := context.WithCancel(t.Context())
	var senders sync.WaitGroup
	defer senders.Wait()
	defer stop()
	delivered := make(chan struct{})
	for i := range 20 {
		senders.Go(func() {
			if err := lmtpStream(ctx, d.LMTPAddr, i, delivered); err != nil {
				t.Error(err)
			}
		})
	}
	<-delivered
	box := open(t, ondisk.Mbox{Folders: ondisk.Place{Base: filepath.Join(d.MailRoot, user), Path: "mail"}, Inbox: ondisk.Place{Base: filepath.Join(d.MailRoot, user), Path: "inbox"}}, &mailtest.Ledger{})
	if _, err := box.List(); err != nil {
		t.Fatal(err)
	}
	r := box.NewReader()
	for range 4 {
		for range 5 {
			<-delivered
		}
		began := time.Now()
		sel, err := r.Select(imapconn.Folder{Name: "INBOX", Wire: "INBOX"})
		if err != nil {
			t.Fatal(err)
		}
		metas, _, err := r.ListAll(imapconn.Items{})
		if err != nil {
			t.Fatal(err)
		}
		var uids []uint32
		for _, m := range metas {
			uids = append(uids, m.UID)
		}
		k := &taker{t: t}
		failures, err := r.Fetch(uids, imapconn.Items{Body: true, Flags: true, Date: true}, k)
		if err != nil || len(failures) > 0 || len(k.msgs) != int(sel.Exists) {
			t.Fatalf("%d of %d, %v, %v", len(k.msgs), sel.Exists, failures, err)
		}
		t.Logf("%d messages in %s", len(k.msgs), time.Since(began))
	}
}

// lmtpStream delivers one message after the other.
func lmtpStream(ctx context.Context, addr string, n int, done chan<- struct{}) error {
	nc, err := net.Dial("tcp", addr)
	if err != nil {
		return err
	}
	defer nc.Close()
	c := textproto.NewConn(nc)
	if _, _, err := c.ReadResponse(220); err != nil {
		return err
	}
	say := func(code int, format string, args ...any) error {
		if err := c.PrintfLine(format, args...); err != nil {
			return err
		}
		_, _, err := c.ReadResponse(code)
		return err
	}
	if err := say(250, "LHLO x"); err != nil {
		return err
	}
	for k := 0; ctx.Err() == nil; k++ {
		if err := say(250, "MAIL FROM:<a@example.net>"); err != nil {
			return err
		}
		if err := say(250, "RCPT TO:<%s>", user); err != nil {
			return err
		}
		if err := say(354, "DATA"); err != nil {
			return err
		}
		if err := say(250, "Subject: %d of %d\r\n\r\nbody\r\n.", k, n); err != nil {
			return err
		}
		select {
		case done <- struct{}{}:
		default: // nobody counts now
		}
	}
	return nil
}
