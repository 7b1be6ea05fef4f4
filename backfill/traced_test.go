package backfill_test

import (
	"bytes"
	"fmt"
	"net"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"crossfade/backfill"
	"crossfade/backfill/ondisk"
	"crossfade/backfill/pop3"
	"crossfade/internal/mailtest"
	"crossfade/internal/mailtest/realtest"
)

// relayed is a message as our relay brings it.
func relayed(n int) mailtest.StoredMessage {
	m := letter(n, 100)
	m.Flags = nil
	m.Body = []byte(fmt.Sprintf("Return-Path: <x@example.com>\r\nReceived: from far.example (far [192.0.2.1])\r\n\tby mx.example.org (Crossfade) with ESMTP\r\n\tid Q%d; today\r\n%s", n, m.Body))
	return m
}

func traced(t *testing.T, c *backfill.Copier, job backfill.Job, side backfill.Side) backfill.Traced {
	t.Helper()
	got, err := c.Traced(t.Context(), job, side, nil)
	if err != nil {
		t.Fatal(err)
	}
	return got
}

// paired tells of messages whether they are there and in a pair.
func paired(got backfill.Traced, ids ...string) string {
	var out []string
	for _, id := range ids {
		switch p := got.Places[id]; {
		case len(p) == 0:
			out = append(out, "no")
		case len(p) > 1:
			out = append(out, fmt.Sprint(len(p)))
		case p[0].Paired:
			out = append(out, "paired")
		default:
			out = append(out, "there")
		}
	}
	return strings.Join(out, " ")
}

// TestTracedSources: what lies in an old mailbox that is not reached over IMAP is found
// by its queue id, and what was copied is told from what was not.
func TestTracedSources(t *testing.T) {
	t.Parallel()
	for _, kind := range []string{"maildir", "mbox", "pop3"} {
		t.Run(kind, func(t *testing.T) {
			t.Parallel()
			src := realtest.StartDovecot(t, fast(realtest.DovecotOptions{POP3: true}))
			dst := realtest.StartDovecot(t, fast(realtest.DovecotOptions{}))
			dir := t.TempDir()
			job := jobOf(src, dst)
			add := func(m mailtest.StoredMessage) { put(t, src, user, "INBOX", m) }
			switch kind {
			case "maildir":
				job.From = ondisk.Maildir{Place: ondisk.Place{Base: src.MailRoot, Path: user + "/Maildir"}}
			case "pop3":
				job.From = pop3.Source{Server: pop3.Server{Address: src.POP3Addr, Mode: pop3.TLSNone}, Login: pop3.Login{User: user, Password: "secret"}}
			case "mbox":
				job.From = ondisk.Mbox{Folders: ondisk.Place{Base: dir, Path: "mail"}, Inbox: ondisk.Place{Base: dir, Path: "inbox"}}
				add = func(m mailtest.StoredMessage) { addToMbox(t, filepath.Join(dir, "inbox"), m) }
				if err := os.Mkdir(filepath.Join(dir, "mail"), 0o700); err != nil {
					t.Fatal(err)
				}
			}
			c := copier(t, newLedger(t))
			add(relayed(1))
			add(letter(3, 100)) // which never came through the relay
			if r := mustPass(t, c, job, backfill.Options{}); r.Copied != 2 {
				t.Fatalf("%+v", r)
			}
			add(relayed(2))
			got := traced(t, c, job, backfill.SideSource)
			if p := paired(got, "Q1", "Q2", "Q3"); p != "paired there no" || got.Messages != 3 || got.Unread != 0 || len(got.Anew) != 0 {
				t.Errorf("old: %s, %+v", p, got)
			}
			if p := paired(traced(t, c, job, backfill.SideDest), "Q1", "Q2"); p != "paired no" {
				t.Errorf("new: %s", p)
			}
			if r := mustPass(t, c, job, backfill.Options{}); r.Copied != 1 { // the look changed nothing
				t.Errorf("%+v", r)
			}
		})
	}
}

// TestTracedUnreadable: a message whose header the server does not hand out is counted, so that nobody takes what is not
// found for deleted.
func TestTracedUnreadable(t *testing.T) {
	t.Parallel()
	s := newSides(t)
	poison := relayed(2)
	poison.Body = bytes.Replace(poison.Body, []byte("today"), []byte("POISON"), 1)
	put(t, s.dst, user, "INBOX", relayed(1), poison, relayed(3))
	p := newProxy(t, s.dst.IMAPAddr, func(p *proxy, b []byte) []byte {
		before, _, found := bytes.Cut(b, []byte("POISON"))
		if !found {
			return b
		}
		p.mu.Lock()
		defer p.mu.Unlock()
		for c := range p.live {
			c.Close()
		}
		return before
	})
	s.job.Dest.Server.Address = p.addr
	got := traced(t, s.c, s.job, backfill.SideDest)
	if found := paired(got, "Q1", "Q2", "Q3"); found != "there no there" || got.Unread != 1 || got.Messages != 3 {
		t.Errorf("%s, %+v", found, got)
	}
}

func addToMbox(t *testing.T, path string, m mailtest.StoredMessage) {
	t.Helper()
	f, err := os.OpenFile(path, os.O_CREATE|os.O_APPEND|os.O_WRONLY, 0o600)
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	if _, err := fmt.Fprintf(f, "From x@example.com Thu Jan  1 00:00:00 2015\n%s\n", strings.ReplaceAll(string(m.Body), "\r\n", "\n")); err != nil {
		t.Fatal(err)
	}
}

// TestTracedAnew: a mailbox on new that is dropped and made again is told from one that
// the user emptied, before a sweep has looked at it and after.
func TestTracedAnew(t *testing.T) {
	t.Parallel()
	s := newSides(t)
	put(t, s.src, user, "INBOX", relayed(1), relayed(2))
	passOn(t, s.c, s.job, "forth")
	put(t, s.dst, user, "INBOX", relayed(3))
	deleteMail(t, s.dst, user, "INBOX", 2)
	before := traced(t, s.c, s.job, backfill.SideDest)
	if p := paired(before, "Q1", "Q2", "Q3"); p != "paired no there" || len(before.Anew) != 0 {
		t.Fatalf("%s, %+v", p, before)
	}
	old := traced(t, s.c, s.job, backfill.SideSource)
	if twin := old.Places["Q2"][0].Twin; twin.Wire != "INBOX" || twin.Validity != before.Folders["INBOX"] {
		t.Errorf("what the user deleted was in %+v, which is %d", twin, before.Folders["INBOX"])
	}
	dropMailbox(t, s, before.Folders["INBOX"])
	found := func(when string) {
		t.Helper()
		now := traced(t, s.c, s.job, backfill.SideDest)
		if len(now.Anew) != 1 || now.Anew[0].Folder != "INBOX" || now.Anew[0].Was != before.Folders["INBOX"] || now.Anew[0].Now != now.Folders["INBOX"] {
			t.Errorf("%s: %+v", when, now.Anew)
		}
		if len(now.Places["Q3"]) != 0 {
			t.Errorf("%s: %+v", when, now.Places)
		}
	}
	found("before a sweep")
	passOn(t, s.c, s.job, "settled forth")
	found("after it")
	quiet(t, s.c, s.job, "settled forth")
	found("and after another")
}

// dropMailbox removes the mailbox on new, and has it made again with another
// UIDVALIDITY, which is a time in seconds.
func dropMailbox(t *testing.T, s *sides, was uint32) {
	t.Helper()
	deadline := time.Now().Add(10 * time.Second)
	for {
		s.dst.Stop(t)
		if err := os.RemoveAll(filepath.Join(s.dst.MailRoot, user)); err != nil {
			t.Fatal(err)
		}
		s.dst.Start(t)
		put(t, s.dst, user, "INBOX", letter(50, 10))
		if now := traced(t, s.c, s.job, backfill.SideDest).Folders["INBOX"]; now != was {
			return
		}
		if time.Now().After(deadline) {
			t.Fatal("the UIDVALIDITY stays the same")
		}
	}
}

// A source that hangs up is an error, and not an empty mailbox.
func TestTracedUnreachable(t *testing.T) {
	t.Parallel()
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	l.Close()
	job := backfill.Job{User: user, From: pop3.Source{Server: pop3.Server{Address: l.Addr().String(), Mode: pop3.TLSNone}, Login: pop3.Login{User: user, Password: "x"}}}
	if got, err := copier(t, newLedger(t)).Traced(t.Context(), job, backfill.SideSource, nil); err == nil {
		t.Errorf("%+v", got)
	}
}
