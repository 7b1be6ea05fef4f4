package daemon_test

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"crossfade/admin"
	proof "crossfade/audit"
	"crossfade/backfill/certificate"
	"crossfade/journal"
)

// TestAuditEqualsACount: users flip while mail flows, some with both sides
// delivered to; then the audit says of each user what the test counted itself, of
// what was sent and of what lies in the Maildirs.
func TestAuditEqualsACount(t *testing.T) {
	beside(t)
	w := newWorld(t, 6, 8)
	w.configure("127.0.0.1:0", "127.0.0.1:0")
	d := w.serve()
	var lines []string
	for i, u := range w.users {
		deliver := ""
		if i < 2 {
			deliver = "both"
		}
		lines = append(lines, fmt.Sprintf("%s,old,%s,mailbox,", u, deliver))
	}
	importUsers(t, d.client, lines)
	s := &stream{addr: d.smtp, users: w.users, book: w.book, senders: 3, pause: 30 * time.Millisecond}
	ctx, stop := context.WithCancel(t.Context())
	defer stop()
	wait := s.start(ctx)
	moving := w.users[:4]
	for _, u := range moving {
		if _, err := d.client.StartCutover(t.Context(), u, admin.MoveRequest{Reason: "e2e"}); err != nil {
			t.Fatal(err)
		}
		awaitFlip(t, d.client, u)
	}
	during := w.auditNow(d, true) // while mail flows
	if !during.Clean || during.Total.Missing != 0 {
		t.Errorf("in the middle: %s", asJSON(during))
	}
	stop()
	if err := wait(); err != nil {
		t.Fatalf("a sender was refused: %v", err)
	}
	drain(t, d.client, time.Minute)
	doc := w.auditNow(d, true)
	if !doc.Clean {
		t.Errorf("not clean: %s", asJSON(doc))
	}
	sent := w.book.sentTo()
	for i, u := range w.users {
		a := account(t, doc, u)
		if a.Accepted != sent[u] || a.Delivered != sent[u] || a.Look == nil || a.Look.There != sent[u] {
			t.Errorf("%s: %d were sent; the audit says %s", u, sent[u], asJSON(a))
		}
		if i < 2 && a.Copies == 0 {
			t.Errorf("%s got no copies on the other side", u)
		}
	}
	if _, total := w.book.totals(); doc.Total.Accepted != total {
		t.Errorf("%d accepted in all, %d were sent", doc.Total.Accepted, total)
	}
	w.checkSwept(d)
	w.checkSigned(d, doc)
	w.checkCertificate(d)
	w.checkLife(d)
	w.checkFinish(d)
	d.stop()                        // or the servers move files while they are counted
	for i, u := range w.users[1:] { // the first one has the straggler too
		if found := w.countRead(u, i+1 < len(moving)); found.missing+found.twice > 0 {
			t.Errorf("%s: the Maildir lacks %d and has %d twice, and the audit was clean", u, found.missing, found.twice)
		}
	}
}

// sentTo counts what was sent to each user.
func (b *book) sentTo() map[string]int {
	b.mu.Lock()
	defer b.mu.Unlock()
	n := map[string]int{}
	for user, all := range b.want {
		for _, w := range all {
			if !w.past {
				n[user] += w.count
			}
		}
	}
	return n
}

func asJSON(v any) string {
	b, err := json.Marshal(v)
	if err != nil {
		return err.Error()
	}
	return string(b[:min(len(b), 4000)])
}

func account(t *testing.T, d *proof.Document, user string) proof.Account {
	t.Helper()
	for _, a := range d.Users {
		if a.User == user {
			return a
		}
	}
	t.Fatalf("%s is not in the audit", user)
	return proof.Account{}
}

// auditNow makes an audit and gives it.
func (w *world) auditNow(d *running, look bool) *proof.Document {
	w.t.Helper()
	if _, err := d.client.StartAudit(w.t.Context(), proof.Request{Mailboxes: look}); err != nil {
		w.t.Fatal(err)
	}
	poll(w.t, time.Minute, "the audit", func() (bool, error) {
		st, err := d.client.AuditStatus(w.t.Context())
		if err == nil && st.Error != "" {
			w.t.Fatal(st.Error)
		}
		return err == nil && !st.Running, err
	})
	doc, err := d.client.LastAudit(w.t.Context(), "")
	if err != nil {
		w.t.Fatal(err)
	}
	return doc
}

// checkSwept puts a message into the mailbox that a user has left: it is found, and
// the audit has it on both sides of the equation.
func (w *world) checkSwept(d *running) {
	w.t.Helper()
	dir := filepath.Join(w.old.MailRoot, w.users[0], "Maildir", "new")
	name := filepath.Join(dir, "1700000000.M1P1.straggler")
	if err := os.WriteFile(name, compose("straggler", "<straggler@outside.test>", w.users[0], 0), 0o644); err != nil {
		w.t.Fatal(err)
	}
	if err := os.Chown(name, mailOwner, mailOwner); err != nil && os.Getuid() == 0 {
		w.t.Fatal(err)
	}
	poll(w.t, 90*time.Second, "the straggler is found", func() (bool, error) {
		a := account(w.t, w.auditNow(d, false), w.users[0])
		return a.Found == 1 && a.Swept == 1 && a.Clean(), errors.New(asJSON(a))
	})
	f, err := d.client.Finish(w.t.Context())
	if err != nil {
		w.t.Fatal(err)
	}
	for _, c := range f.Conditions {
		if c.Name == "stragglers" && (c.Status != proof.StatusNotYet || !strings.Contains(asJSON(c), w.users[0])) {
			w.t.Errorf("a straggler came just now: %s", asJSON(c))
		}
	}
	w.auditNow(d, true)
}

// checkSigned reads what the commands would write, and changes a digit of it.
func (w *world) checkSigned(d *running, doc *proof.Document) {
	w.t.Helper()
	key, err := d.client.AuditKey(w.t.Context())
	if err != nil {
		w.t.Fatal(err)
	}
	one, err := d.client.LastAudit(w.t.Context(), w.users[0])
	if err != nil || one.Total.Accepted != account(w.t, doc, w.users[0]).Accepted {
		w.t.Fatalf("%s, %v", asJSON(one), err)
	}
	for _, doc := range []*proof.Document{doc, one} {
		data, err := doc.Encode()
		if err != nil {
			w.t.Fatal(err)
		}
		if r, err := proof.CheckFile(data, key); err != nil || !r.OK() {
			w.t.Errorf("%+v, %v", r, err)
		}
		bad := strings.Replace(string(data), `"delivered": `, `"delivered": 1`, 1)
		if r, err := proof.CheckFile([]byte(bad), key); err != nil || len(r.Wrong) != 1 || !strings.Contains(r.Wrong[0], "total/delivered was changed") {
			w.t.Errorf("%+v, %v", r, err)
		}
		if page, err := doc.Page("x.json"); err != nil || !strings.Contains(string(page), w.users[0]) {
			w.t.Errorf("the page: %v", err)
		}
	}
}

// checkCertificate makes a certificate of a mailbox, as the commands do, and
// changes a digit of it.
func (w *world) checkCertificate(d *running) {
	w.t.Helper()
	key, err := d.client.AuditKey(w.t.Context())
	if err != nil {
		w.t.Fatal(err)
	}
	v, err := d.client.Verify(w.t.Context(), w.users[0])
	if err != nil {
		w.t.Fatal(err)
	}
	c, err := certificate.New(v.Verification, certificate.Maker{Tool: "e2e", Relay: "e2e", State: "new", Now: time.Now(), Signature: v.Signature})
	if err != nil {
		w.t.Fatal(err)
	}
	data, err := c.Encode()
	if err != nil {
		w.t.Fatal(err)
	}
	if r, err := proof.CheckFile(data, key); err != nil || !r.OK() || r.Parts < 5 {
		w.t.Errorf("%+v, %v", r, err)
	}
	bad := strings.Replace(string(data), `"missing": 0`, `"missing": 1`, 1)
	if r, err := proof.CheckFile([]byte(bad), key); err != nil || len(r.Wrong) != 1 || !strings.Contains(r.Wrong[0], "verification/missing was changed") {
		w.t.Errorf("%+v, %v", r, err)
	}
}

// checkLife asks for one of the messages that were sent.
func (w *world) checkLife(d *running) {
	w.t.Helper()
	id := ""
	for _, m := range readMaildir(w.t, w.new.MailRoot, w.users[0], false) {
		if m.queueID != "" {
			id = m.queueID
		}
	}
	if id == "" {
		w.t.Fatal("no message of ours is in the mailbox")
	}
	lives, err := d.client.Why(w.t.Context(), id, true)
	if err != nil || len(lives) != 1 {
		w.t.Fatalf("%s: %v, %v", id, lives, err)
	}
	again, err := d.client.Why(w.t.Context(), lives[0].MessageID, false)
	if err != nil || len(again) == 0 || again[0].ID != lives[0].ID && len(again) == 1 {
		w.t.Errorf("by Message-ID %s: %s, %v", lives[0].MessageID, asJSON(again), err)
	}
	for _, r := range lives[0].Recipients {
		if r.User != w.users[0] {
			continue
		}
		last := r.Steps[len(r.Steps)-1]
		if last.Kind != journal.Delivered || last.Reply == "" || !r.Looked || len(r.New) != 1 || r.New[0].Folder != "INBOX" || r.State != "new" || last.State == "" {
			w.t.Errorf("its life: %s", asJSON(r))
		}
		return
	}
	w.t.Errorf("its life: %s", asJSON(lives))
}

// checkFinish sees that nobody is told to switch off old, and why.
func (w *world) checkFinish(d *running) {
	w.t.Helper()
	f, err := d.client.Finish(w.t.Context())
	if err != nil || f.Ready {
		w.t.Fatalf("%s, %v", asJSON(f), err)
	}
	want := map[string]proof.Status{"users": proof.StatusNotYet, "windows": proof.StatusNotYet, "audit": proof.StatusOK, "queue": proof.StatusOK, "strangers": proof.StatusOK}
	for _, c := range f.Conditions {
		if s, ok := want[c.Name]; ok && c.Status != s {
			w.t.Errorf("%s is %s, want %s: %s", c.Name, c.Status, s, asJSON(c))
		}
		delete(want, c.Name)
	}
	if len(want) > 0 {
		w.t.Errorf("nothing is said of %v", want)
	}
}
