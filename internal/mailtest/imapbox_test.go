package mailtest_test

import (
	"fmt"
	"sync"
	"testing"
	"time"

	"crossfade/internal/mailtest"

	"github.com/emersion/go-imap/v2"
	"github.com/emersion/go-imap/v2/imapclient"
	"github.com/google/go-cmp/cmp"
)

func fill(t *testing.T, m *mailtest.Mailsystem, n int) {
	t.Helper()
	for i := 1; i <= n; i++ {
		body := fmt.Sprintf("Message-ID: <%d@x.test>\r\nSubject: folded\r\n subject\r\nDate: Mon, %02d Jan 2024 10:00:00 +0000\r\n\r\ntext %d\r\n", i, i, i)
		_, err := m.Append(alice, "INBOX", []string{"$kw"}, time.Date(2020, 1, i, 23, 0, 0, 0, time.UTC), []byte(body))
		must(t, err)
	}
}

func TestMailsystemSearch(t *testing.T) {
	m := newSystem(t, mailtest.MailsystemConfig{})
	fill(t, m, 5)
	c := login(t, m)
	_, err := c.Select("INBOX", nil).Wait()
	must(t, err)
	day := func(y, d int) time.Time { return time.Date(y, 1, d, 0, 0, 0, 0, time.UTC) }
	tests := []struct {
		name string
		c    imap.SearchCriteria
		want []imap.UID
	}{
		{"message-id", imap.SearchCriteria{Header: []imap.SearchCriteriaHeaderField{{Key: "message-id", Value: "<3@x.test>"}}}, []imap.UID{3}},
		{"folded header", imap.SearchCriteria{Header: []imap.SearchCriteriaHeaderField{{Key: "Subject", Value: "Folded Subject"}}, UID: []imap.UIDSet{{{Start: 4}}}}, []imap.UID{4, 5}},
		{"since", imap.SearchCriteria{Since: day(2020, 3), Before: day(2020, 5)}, []imap.UID{3, 4}},
		{"sent", imap.SearchCriteria{SentBefore: day(2024, 2)}, []imap.UID{1}},
		{"keyword", imap.SearchCriteria{Flag: []imap.Flag{"$KW"}, NotFlag: []imap.Flag{imap.FlagSeen}, SeqNum: []imap.SeqSet{{{Start: 2, Stop: 2}}}}, []imap.UID{2}},
		{"text or not", imap.SearchCriteria{Or: [][2]imap.SearchCriteria{{{Body: []string{"text 1"}}, {Text: []string{"<2@"}}}}, Not: []imap.SearchCriteria{{Larger: 5000}}}, []imap.UID{1, 2}},
		{"nothing", imap.SearchCriteria{Smaller: 3}, nil},
		{"star above the end", imap.SearchCriteria{UID: []imap.UIDSet{{{Start: 99}}}}, []imap.UID{5}},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			data, err := c.UIDSearch(&tt.c, nil).Wait()
			must(t, err)
			if got := data.AllUIDs(); !cmp.Equal(got, tt.want) {
				t.Errorf("UIDs %v, want %v", got, tt.want)
			}
		})
	}
}

func TestMailsystemStoreCopyMoveExpunge(t *testing.T) {
	m := newSystem(t, mailtest.MailsystemConfig{})
	fill(t, m, 5)
	c := login(t, m)
	_, err := c.Select("INBOX", nil).Wait()
	must(t, err)
	must(t, c.Create("to", nil).Wait())
	uid := func(n ...imap.UID) imap.UIDSet { return imap.UIDSetNum(n...) }

	l, err := c.Store(uid(1, 2), &imap.StoreFlags{Op: imap.StoreFlagsAdd, Flags: []imap.Flag{imap.FlagDeleted}}, nil).Collect()
	must(t, err)
	if len(l) != 2 || !cmp.Equal(l[0].Flags, []imap.Flag{"$kw", imap.FlagDeleted}) {
		t.Errorf("STORE: %+v", l)
	}
	must(t, c.Store(uid(2), &imap.StoreFlags{Op: imap.StoreFlagsDel, Flags: []imap.Flag{"$KW"}, Silent: true}, nil).Close())
	cp, err := c.Copy(uid(3), "to").Wait()
	must(t, err)
	if cp.DestUIDs.String() != "1" || cp.SourceUIDs.String() != "3" {
		t.Errorf("COPYUID %+v", cp)
	}
	if _, err := c.Copy(uid(3), "nowhere").Wait(); err == nil {
		t.Error("COPY into a folder that does not exist")
	}
	mv, err := c.Move(uid(4), "to").Wait()
	must(t, err)
	if destUIDs := mv.DestUIDs.String(); destUIDs != "2" {
		t.Errorf("MOVE: %+v", mv)
	}
	must(t, c.UIDExpunge(uid(2, 5)).Close())
	left := func(folder string) (s string) {
		msgs, err := m.Messages(alice, folder)
		must(t, err)
		for _, msg := range msgs {
			s += fmt.Sprint(msg.UID, msg.Flags, msg.InternalDate.UTC().Day(), ";")
		}
		return s
	}
	if got, want := left("INBOX"), `1 [$kw \Deleted] 1;3 [$kw] 3;5 [$kw] 5;`; got != want {
		t.Errorf("INBOX: %s, want %s", got, want)
	}
	if got, want := left("to"), `1 [$kw] 3;2 [$kw] 4;`; got != want {
		t.Errorf("to: %s, want %s", got, want)
	}
	old, err := m.UIDValidity(alice, "to")
	must(t, err)
	must(t, c.Delete("to").Wait())
	must(t, c.Create("to", nil).Wait())
	if now, _ := m.UIDValidity(alice, "to"); now == old {
		t.Error("a folder made anew kept its UIDVALIDITY")
	}
}

func TestMailsystemIdle(t *testing.T) {
	m := newSystem(t, mailtest.MailsystemConfig{TraceHeaders: true})
	news := make(chan uint32, 10)
	c, err := imapclient.DialInsecure(m.IMAPAddr(), &imapclient.Options{UnilateralDataHandler: &imapclient.UnilateralDataHandler{
		Mailbox: func(data *imapclient.UnilateralDataMailbox) {
			if data.NumMessages != nil {
				news <- *data.NumMessages
			}
		},
	}})
	must(t, err)
	defer func() { _ = c.Close() }()
	must(t, c.Login(alice, "secret").Wait())
	_, err = c.Select("INBOX", nil).Wait()
	must(t, err)
	idle, err := c.Idle()
	must(t, err)
	play(t, m.Sink().Addr(), deliverOne)
	select {
	case n := <-news:
		if n != 1 {
			t.Errorf("%d EXISTS", n)
		}
	case <-timeout(t).Done():
		t.Error("no EXISTS during IDLE")
	}
	must(t, idle.Close())
	must(t, idle.Wait())
	l, err := m.Messages(alice, "INBOX")
	must(t, err)
	if want := "Return-Path: <a@x.test>\r\nDelivered-To: Alice@example.org\r\nSubject: hi\r\n\r\nbody\r\n"; string(l[0].Body) != want {
		t.Errorf("body %q", l[0].Body)
	}
}

// Readers, deliveries and expunges at the same time: no answer may be one that the client cannot read.
func TestMailsystemConcurrent(t *testing.T) {
	m := newSystem(t, mailtest.MailsystemConfig{})
	fill(t, m, 5)
	var wg sync.WaitGroup
	for range 3 {
		c := login(t, m)
		wg.Go(func() {
			if _, err := c.Select("INBOX", nil).Wait(); err != nil {
				t.Error(err)
				return
			}
			for i := range 30 {
				l, err := c.Fetch(imap.UIDSet{{Start: 1}}, &imap.FetchOptions{Flags: true, BodySection: []*imap.FetchItemBodySection{{}}}).Collect()
				if err == nil && len(l) > 0 && i%3 == 0 {
					set := imap.UIDSetNum(l[0].UID)
					err = c.Store(set, &imap.StoreFlags{Op: imap.StoreFlagsAdd, Flags: []imap.Flag{imap.FlagDeleted}}, nil).Close()
					if err == nil {
						err = c.UIDExpunge(set).Close()
					}
				}
				if err != nil {
					t.Error(err)
					return
				}
			}
		})
	}
	wg.Go(func() {
		for range 100 {
			if _, err := m.Append(alice, "INBOX", nil, time.Time{}, []byte("Subject: x\r\n\r\nx\r\n")); err != nil {
				t.Error(err)
			}
		}
	})
	wg.Wait()
}
