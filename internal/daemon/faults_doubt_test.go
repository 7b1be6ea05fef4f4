package daemon

import (
	"bufio"
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"crossfade/admin"
	"crossfade/backfill/find"
	"crossfade/internal/mailtest/realtest"
	"crossfade/mail"
	"crossfade/queue"
	"crossfade/relay"
)

// The finders that must make the checker fail.
const (
	findsAll     = "finds-all"     // whatever is looked for is there: what never arrived is lost
	findsNothing = "finds-nothing" // nothing is ever there: what arrived arrives twice
)

type liar bool

func (l liar) Find(_ context.Context, s relay.Search) (relay.Found, error) {
	if l {
		return relay.Found{Copies: s.Copies, Where: "nowhere"}, nil
	}
	return relay.Found{}, nil
}

// brokenFinder is the daemon's own finder unless the variant breaks it.
func (d *Daemon) brokenFinder(variant string) relay.Finder {
	switch variant {
	case findsAll:
		return liar(true)
	case findsNothing:
		return liar(false)
	}
	return d.newFinder()
}

// doubtWorld is a world between two real Dovecots, which deliver over LMTP.
type doubtWorld struct {
	*world
	dovecots []*realtest.Dovecot
}

func newDoubtWorld(t *testing.T, binary, variant string, imap bool) *doubtWorld {
	t.Helper()
	w := &doubtWorld{world: &world{t: t, dir: t.TempDir(), binary: binary, variant: variant, book: newBook(), up: make(chan struct{})}}
	for i := range 6 {
		w.users = append(w.users, fmt.Sprintf("u%d@%s", i, faultsDomain))
	}
	var backends strings.Builder
	for i, layout := range []realtest.Layout{realtest.DotINBOX, realtest.Slash} {
		d := realtest.StartDovecot(t, realtest.DovecotOptions{Layout: layout, LMTP: true, Users: w.users, MailFsync: "never", MasterUser: "master", MasterPassword: "mastersecret"})
		w.dovecots = append(w.dovecots, d)
		fmt.Fprintf(&backends, "  %s:\n    smtp: %s\n", []string{"old", "new"}[i], d.LMTPURL())
		if imap {
			fmt.Fprintf(&backends, "    imap: %s\n    imap_login: {user: master, password_file: ./password, as: authzid}\n", d.IMAPURL())
		}
	}
	text := fmt.Sprintf(`hostname: mx.%s
domains: [%[1]s]
store: ./data
smtp: {listen: ["127.0.0.1:0"], resolvers: ["127.0.0.1:1"], max_connections_per_ip: 0}
admin: {listen: "127.0.0.1:0", token_file: ./admin.token}
log: {level: info}
routing: {unknown: old}
queue: {min_free: 0, doubt_wait: 2s}
backends:
%s`, faultsDomain, backends.String())
	for name, text := range map[string]string{"crossfade.yaml": text, "password": "mastersecret\n"} {
		if err := os.WriteFile(filepath.Join(w.dir, name), []byte(text), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	c := w.start("")
	defer w.stop(c)
	csv := "address,state\n"
	for i, u := range w.users {
		csv += u + []string{",old\n", ",new\n"}[i%2]
	}
	if _, err := c.client.ImportUsers(t.Context(), strings.NewReader(csv), admin.ImportOptions{Reason: "faults"}); err != nil {
		t.Fatal(err)
	}
	return w
}

// suffer kills the relay again and again between the permission for a final dot
// and the record of the reply: right behind the permission, when the reply is
// there and is not recorded, when it is recorded and nobody knows, and at random.
func (w *doubtWorld) suffer(kills int, points []string) {
	w.t.Helper()
	ctx, stop := context.WithCancel(context.Background())
	mailing := w.traffic(ctx, 4, 0)
	defer func() {
		stop()
		mailing.Wait()
	}()
	for i := range kills {
		crash := points[i%len(points)]
		if crash != "" {
			crash += fmt.Sprintf(":%d", 1+i*7%20)
		}
		c, err := w.launch(crash)
		if errors.Is(err, errDied) && crash != "" {
			w.ended(c, true)
			continue
		}
		if err != nil {
			w.t.Fatalf("life %d: %v\n%s", i, err, c.stderr.String())
		}
		limit := 5 * time.Second
		if crash == "" {
			limit = time.Duration(50+i*37%200) * time.Millisecond
		}
		t := time.NewTimer(limit)
		select {
		case <-c.exited:
			w.ended(c, true)
		case <-t.C:
			w.kill(c)
		}
		t.Stop()
	}
}

// drain lets a last life deliver all there is. What is parked, because three lives
// in a row ended over it, is let go by an operator.
func (w *doubtWorld) drain(limit time.Duration) {
	w.t.Helper()
	c := w.start("")
	defer w.stop(c)
	eventually(w.t, limit, "the queue is empty", func() bool {
		_, err := c.client.Apply(w.t.Context(), admin.QueueApply{Filter: admin.QueueFilter{State: queue.Parked}, Action: queue.DoRetry})
		if err != nil {
			w.t.Errorf("let parked mail go: %v", err)
		}
		page, err := c.client.Queue(w.t.Context(), admin.QueueFilter{}, "", 10)
		return err == nil && len(page.Messages) == 0 && page.Next == ""
	})
}

// doubtVerdict is what is in the mailboxes, and what the relays said.
type doubtVerdict struct {
	accepted, delivered int // recipients
	lost                []string
	twice               []string
	unreported          []string       // that are there more often than the relay told
	told                map[string]int // "ID ADDRESS": sent again
	found               int            // recipients that were found in their mailboxes
}

func (v *doubtVerdict) summary(w *doubtWorld) string {
	again := 0
	for _, n := range v.told {
		again += n
	}
	return fmt.Sprintf("deliveries in doubt: %d kills between dot and settle, accepted %d, delivered %d, lost %d, twice %d (not told of: %d); found in the mailbox %d, sent again %d",
		len(w.lives)-2, v.accepted, v.delivered, len(v.lost), len(v.twice), len(v.unreported), v.found, again)
}

// judge reads the Maildirs, and compares.
func (w *doubtWorld) judge() *doubtVerdict {
	w.t.Helper()
	v := &doubtVerdict{told: map[string]int{}}
	w.readLogs(v)
	w.book.mu.Lock()
	defer w.book.mu.Unlock()
	got := map[string]int{} // token and user
	ids := map[string]string{}
	for i, u := range w.users {
		for _, path := range w.dovecots[i%2].MaildirFiles(w.t, u) {
			raw, err := os.ReadFile(path)
			if err != nil {
				w.t.Fatal(err)
			}
			raw = bytes.ReplaceAll(raw, []byte("\n"), []byte("\r\n"))
			m := tokenField.FindSubmatch(raw)
			if m == nil {
				w.t.Fatalf("a message of nobody's: %s", path)
			}
			got[string(m[1])+" "+u]++
			for _, id := range idField.FindAllSubmatch(raw, -1) {
				ids[string(m[1])] = string(id[1])
			}
			v.delivered++
		}
	}
	for token := range w.book.accepted {
		for _, u := range w.book.to[token] {
			v.accepted++
			if got[token+" "+u] == 0 {
				v.lost = append(v.lost, token+" "+u)
			}
		}
	}
	for key, n := range got {
		token, u, _ := strings.Cut(key, " ")
		if n > 1 {
			v.twice = append(v.twice, key)
		}
		if told := v.told[ids[token]+" "+u]; n-1 > told {
			v.unreported = append(v.unreported, fmt.Sprintf("%s (%s): %d times, and told of %d", key, ids[token], n, told))
		}
	}
	slices.Sort(v.lost)
	return v
}

func (w *doubtWorld) readLogs(v *doubtVerdict) {
	for _, l := range w.lives {
		b, err := os.ReadFile(l.log)
		if err != nil {
			continue // it died before it wrote one
		}
		for lines := bufio.NewScanner(bytes.NewReader(b)); lines.Scan(); {
			var d struct{ Msg, ID, Rcpt, Reply string }
			switch {
			case json.Unmarshal(lines.Bytes(), &d) != nil:
			case d.Msg == "a delivery in doubt is sent again, it may arrive twice":
				v.told[d.ID+" "+d.Rcpt]++
			case d.Msg == "attempt" && strings.Contains(d.Reply, "it was in doubt and is in the mailbox"):
				v.found++
			}
		}
	}
}

// TestFaultsDoubt: kill -9 between the final dot and the record of the reply, again
// and again, between real servers. With IMAP nothing is lost and nothing is twice;
// without it what is twice was told of, one by one. A finder that lies is caught.
func TestFaultsDoubt(t *testing.T) {
	t.Parallel() // beside those that wait for a grace to end
	binary := childBinary(t)
	kills := 16
	if long() {
		kills = 300
	}
	sent, unsent := "settle.before-commit", "renew.sending"
	all := []string{sent, unsent, sent, "settle.after-commit", ""}
	run := func(t *testing.T, variant string, imap bool, kills int, points ...string) *doubtVerdict {
		t.Parallel()
		w := newDoubtWorld(t, binary, variant, imap)
		w.suffer(kills, points)
		w.drain(120 * time.Second)
		v := w.judge()
		t.Log(v.summary(w))
		return v
	}
	t.Run("imap", func(t *testing.T) {
		v := run(t, "", true, kills, all...)
		if len(v.lost)+len(v.twice) > 0 {
			t.Errorf("lost %q, twice %q", v.lost, v.twice)
		}
		if v.found == 0 {
			t.Error("no delivery was found in a mailbox: the kills hit none")
		}
	})
	t.Run("without imap", func(t *testing.T) {
		v := run(t, "", false, kills, all...)
		if len(v.lost)+len(v.unreported) > 0 {
			t.Errorf("lost %q, not told of %q", v.lost, v.unreported)
		}
		if len(v.twice) == 0 {
			t.Error("nothing is twice: the kills hit no delivery")
		}
	})
	t.Run(findsAll, func(t *testing.T) {
		if v := run(t, findsAll, true, 5, unsent); len(v.lost) == 0 {
			t.Error("a finder that finds everything loses nothing")
		}
	})
	t.Run(findsNothing, func(t *testing.T) {
		if v := run(t, findsNothing, true, 5, sent); len(v.twice) == 0 {
			t.Error("a finder that finds nothing makes nothing twice")
		}
	})
}

// TestFinderWithoutIMAP: a side without IMAP cannot be looked into, now or later.
func TestFinderWithoutIMAP(t *testing.T) {
	f := &finder{boxes: &mailboxes{sides: atomicSides(&imapSides{old: imapSide{name: "old"}, new: imapSide{name: "new"}})}}
	for _, side := range []mail.Route{mail.Old, mail.New} {
		if _, err := f.Find(t.Context(), relay.Search{Side: side, User: "u@" + faultsDomain}); !errors.Is(err, relay.ErrUnsearchable) {
			t.Errorf("%s: %v", side, err)
		}
	}
}

// TestIMAPRest: a server that cannot be reached is left alone for longer and
// longer, and one that answers, whatever it says, is not.
func TestIMAPRest(t *testing.T) {
	r := &imapRest{}
	down := fmt.Errorf("%w: connection refused", find.ErrUnreachable)
	for _, want := range []time.Duration{1, 2, 4, 8, 16, 30, 30} {
		r.note(down)
		if !errors.Is(r.err(), down) || r.wait != want*time.Second {
			t.Errorf("it rests for %s with %v, want %ds", r.wait, r.err(), want)
		}
		r.until = time.Now()
	}
	if r.note(errors.New("no such folder")); r.err() != nil || r.wait != 0 {
		t.Errorf("it rests for %s with %v", r.wait, r.err())
	}
}
