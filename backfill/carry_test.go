package backfill_test

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"crossfade/backfill"
	"crossfade/internal/mailtest"
	"crossfade/internal/mailtest/realtest"

	"github.com/emersion/go-imap/v2"
	"github.com/google/go-cmp/cmp"
)

func fast(o realtest.DovecotOptions) realtest.DovecotOptions {
	o.MailFsync = "never"
	return o
}

func folders(s stored) []string {
	var out []string
	for f := range s {
		out = append(out, f)
	}
	slices.Sort(out)
	return out
}

func problems(r backfill.Report, class string) []string {
	var out []string
	for _, p := range r.Problems {
		if p.Class == class {
			out = append(out, p.Folder+": "+p.Text)
		}
	}
	slices.Sort(out)
	return out
}

// setFlags changes flags with a client of the test's own.
func setFlags(t *testing.T, user string, d *realtest.Dovecot, folder string, uid uint32, op imap.StoreFlagsOp, flags ...imap.Flag) {
	t.Helper()
	c := d.Login(t, user)
	defer func() { _ = c.Close() }()
	if _, err := c.Select(folder, nil).Wait(); err != nil {
		t.Fatal(err)
	}
	if err := c.Store(imap.UIDSetNum(imap.UID(uid)), &imap.StoreFlags{Op: op, Flags: flags}, nil).Close(); err != nil {
		t.Fatal(err)
	}
}

// TestCarry runs what needs no Dovecot of its own, each with a user of its own.
func TestCarry(t *testing.T) {
	t.Parallel()
	src := realtest.StartDovecot(t, fast(realtest.DovecotOptions{Layout: realtest.DotINBOX}))
	dst := realtest.StartDovecot(t, fast(realtest.DovecotOptions{}))
	for name, test := range map[string]func(t *testing.T, src, dst *realtest.Dovecot, user string){
		"SubscriptionsAreCarriedOnce": testSubscriptionsAreCarriedOnce,
		"AdoptsWhatIsThere":           testAdoptsWhatIsThere,
		"CancelledPassGoesOn":         testCancelledPassGoesOn,
		"LedgerThatFails":             testLedgerThatFails,
		"Progress":                    testProgress,
		"EmptyAndBigMessages":         testEmptyAndBigMessages,
		"VerifyNamesWhatDiffers":      testVerifyNamesWhatDiffers,
	} {
		t.Run(name, func(t *testing.T) { test(t, src, dst, strings.ToLower(name)+"@example.org") })
	}
}

func TestFoldersBySpecialUseAndByName(t *testing.T) {
	t.Parallel()
	src := realtest.StartDovecot(t, fast(realtest.DovecotOptions{Layout: realtest.DotINBOX,
		SpecialUse: map[string]string{"Gesendet": `\Sent`, "Entwuerfe": `\Drafts`}}))
	dst := realtest.StartDovecot(t, fast(realtest.DovecotOptions{
		SpecialUse: map[string]string{"Sent Items": `\Sent`, "Drafts": `\Drafts`, "Deleted Items": `\Trash`}}))
	put(t, src, user, "INBOX.Gesendet", letters(0, 2, 10)...)
	put(t, src, user, "INBOX.Entwuerfe", letters(2, 4, 10)...)
	put(t, src, user, "INBOX.Papierkorb", letters(4, 6, 10)...)     // \Trash by its name
	put(t, src, user, "INBOX.Sent Items", letters(6, 8, 10)...)     // the place of Gesendet there
	put(t, src, user, "INBOX.Gesendet.2020", letters(8, 10, 10)...) // below a folder that moves
	put(t, src, user, "INBOX.Ordner", letters(10, 12, 10)...)
	put(t, src, user, "INBOX.ORDNER", letters(12, 14, 10)...) // differs in case only
	put(t, src, user, "INBOX.nur.kind", letters(18, 20, 10)...)
	c := copier(t, newLedger(t))
	r := mustPass(t, c, jobOf(src, dst), backfill.Options{})
	if r.Copied != 16 {
		t.Errorf("%+v", r)
	}
	got := holds(t, dst, user, false)
	want := []string{"Deleted Items", "Drafts", "INBOX", "ORDNER", "Ordner-2", "Sent Items", "Sent Items-2", "Sent Items/2020", "nur/kind"}
	if d := cmp.Diff(want, folders(got)); d != "" {
		t.Errorf("folders:\n%s", d)
	}
	if p := problems(r, backfill.ClassName); len(p) != 2 {
		t.Errorf("problems: %q", p)
	}
	if r := mustPass(t, c, jobOf(src, dst), backfill.Options{Final: true}); !r.Clean() {
		t.Errorf("second pass: %+v", r)
	}
	if v, err := c.Verify(t.Context(), jobOf(src, dst)); err != nil || !v.OK() {
		t.Errorf("verify: %+v, %v", v, err)
	}
}

// TestNamesWithTheOtherSeparator goes the other way round.
func TestNamesWithTheOtherSeparator(t *testing.T) {
	t.Parallel()
	src := realtest.StartDovecot(t, fast(realtest.DovecotOptions{}))
	dst := realtest.StartDovecot(t, fast(realtest.DovecotOptions{Layout: realtest.DotINBOX}))
	for i, f := range []string{"a.b", "a_b", "A.B/c.d", "x/INBOX/y"} {
		put(t, src, user, f, letters(2*i, 2*i+2, 10)...)
	}
	c := copier(t, newLedger(t))
	r := mustPass(t, c, jobOf(src, dst), backfill.Options{})
	if r.Copied != 8 {
		t.Errorf("%+v", r)
	}
	t.Log(r.Problems)
	got := holds(t, dst, user, true)
	if n := got.count(); n != 8 {
		t.Errorf("%d messages", n)
	}
	want := []string{"A_B-3/c_d", "INBOX", "a_b", "a_b-2", "x/INBOX/y"}
	if d := cmp.Diff(want, folders(got)); d != "" {
		t.Errorf("folders:\n%s", d)
	}
	if r := mustPass(t, c, jobOf(src, dst), backfill.Options{Final: true}); !r.Clean() {
		t.Errorf("second pass: %+v", r)
	}
}

// TestFolderNameThatIsRefused gets another one, and keeps it.
func TestFolderNameThatIsRefused(t *testing.T) {
	t.Parallel()
	src := realtest.StartDovecot(t, fast(realtest.DovecotOptions{Layout: realtest.DotINBOX}))
	dst := realtest.StartDovecot(t, fast(realtest.DovecotOptions{}))
	put(t, src, user, "INBOX.tmp", letters(0, 2, 10)...)
	put(t, src, user, "INBOX.z", letters(4, 6, 10)...)
	c := copier(t, newLedger(t))
	r := mustPass(t, c, jobOf(src, dst), backfill.Options{})
	got := holds(t, dst, user, false)
	if len(got["z"]) != 2 || len(got["tmp_"]) != 2 || len(problems(r, backfill.ClassName)) != 1 {
		t.Errorf("%v, %+v", folders(got), r)
	}
	if r := mustPass(t, c, jobOf(src, dst), backfill.Options{Final: true}); !r.Clean() {
		t.Errorf("%+v", r)
	}
	if v, err := c.Verify(t.Context(), jobOf(src, dst)); err != nil || !v.OK() {
		t.Errorf("%+v, %v", v, err)
	}
}

// TestNamesBeyondLimits: a destination that takes neither long nor deep names gets
// every folder all the same, each its own, and keeps them so.
func TestNamesBeyondLimits(t *testing.T) {
	t.Parallel()
	src := realtest.StartDovecot(t, fast(realtest.DovecotOptions{Layout: realtest.DotINBOX}))
	dst := realtest.StartDovecot(t, fast(realtest.DovecotOptions{}))
	long := strings.Repeat("Lange Betreffzeile ", 6)
	names := []string{long + "1", long + "2", "a.b.c.d.e.f", "a.b.c.d.e-f", "Grüße.Ordner"}
	for i, f := range names {
		put(t, src, user, "INBOX."+f, letters(2*i, 2*i+2, 10)...)
	}
	g := newGate(t, dst.IMAPAddr, func(cmd string) string {
		if name, ok := strings.CutPrefix(strings.TrimSpace(cmd), "CREATE "); ok && (len(name) > 100 || strings.Count(name, "/") > 3) {
			return instead + `CREATE ""`
		}
		return ""
	})
	c, job := copier(t, newLedger(t)), jobOf(src, dst)
	job.Dest.Server.Address = g.addr
	r := mustPass(t, c, job, backfill.Options{})
	got := holds(t, dst, user, false)
	if r.Copied != 10 || len(got) != 6 || len(problems(r, backfill.ClassName)) != 4 {
		t.Errorf("%v, %+v", folders(got), r)
	}
	for f, msgs := range got {
		if f != "INBOX" && len(msgs) != 2 {
			t.Errorf("%q has %d messages", f, len(msgs))
		}
	}
	if r := mustPass(t, c, job, backfill.Options{Final: true}); !r.Clean() || len(problems(r, backfill.ClassName)) > 0 {
		t.Errorf("%+v", r)
	}
	if v, err := c.Verify(t.Context(), job); err != nil || !v.OK() {
		t.Errorf("%+v, %v", v, err)
	}
}

// TestPlanSaysThatItWillNotFit before a pass finds out.
func TestPlanSaysThatItWillNotFit(t *testing.T) {
	t.Parallel()
	src := realtest.StartDovecot(t, fast(realtest.DovecotOptions{Layout: realtest.DotINBOX}))
	quota := "mail_plugins = $mail_plugins quota\nprotocol imap {\n mail_plugins = $mail_plugins imap_quota\n}\n" +
		"plugin {\n quota = count:User quota\n quota_vsizes = yes\n quota_rule = *:storage=20K\n}\n"
	dst := realtest.StartDovecot(t, fast(realtest.DovecotOptions{Extra: quota}))
	put(t, src, user, "INBOX", letters(0, 10, 1000)...)
	put(t, dst, user, "INBOX", letters(50, 51, 1000)...)
	c, job := copier(t, newLedger(t)), jobOf(src, dst)
	plan, err := c.Plan(t.Context(), job)
	if err != nil || plan.QuotaLeft == nil || *plan.QuotaLeft < 18<<10 || *plan.QuotaLeft >= 20<<10 || len(plan.Problems) != 0 {
		t.Errorf("%+v, %v", plan, err)
	}
	put(t, src, user, "INBOX.more", letters(20, 30, 1000)...)
	plan, err = c.Plan(t.Context(), job)
	if p := problems(backfill.Report{Problems: plan.Problems}, backfill.ClassQuota); err != nil || len(p) != 1 || !strings.Contains(p[0], "raise it") {
		t.Errorf("%+v, %v", plan, err)
	}
	c.Filter.Exclude = []string{"INBOX.more"}
	if plan, err = c.Plan(t.Context(), job); err != nil || len(problems(backfill.Report{Problems: plan.Problems}, backfill.ClassQuota)) > 0 {
		t.Errorf("with what does not fit left out: %+v, %v", plan, err)
	}
}

func testSubscriptionsAreCarriedOnce(t *testing.T, src, dst *realtest.Dovecot, user string) {
	put(t, src, user, "INBOX.abonniert")
	put(t, src, user, "INBOX.nicht")
	if err := src.Login(t, user).Subscribe("INBOX.abonniert").Wait(); err != nil {
		t.Fatal(err)
	}
	subs := func() (out []string) {
		l, err := dst.Login(t, user).List("", "*", &imap.ListOptions{SelectSubscribed: true}).Collect()
		if err != nil {
			t.Fatal(err)
		}
		for _, d := range l {
			out = append(out, d.Mailbox)
		}
		return out
	}
	c := copier(t, newLedger(t))
	mustPass(t, c, jobFor(src, dst, user), backfill.Options{})
	if got := subs(); !cmp.Equal(got, []string{"abonniert"}) {
		t.Errorf("subscribed: %q", got)
	}
	// Who unsubscribes on the destination is not overruled.
	if err := dst.Login(t, user).Unsubscribe("abonniert").Wait(); err != nil {
		t.Fatal(err)
	}
	mustPass(t, c, jobFor(src, dst, user), backfill.Options{Final: true})
	if got := subs(); len(got) != 0 {
		t.Errorf("subscribed again: %q", got)
	}
}

func TestFlagsChangedLater(t *testing.T) {
	t.Parallel()
	for _, caps := range []string{"", "IMAP4rev1 UIDPLUS"} {
		t.Run(caps, func(t *testing.T) {
			t.Parallel()
			src := realtest.StartDovecot(t, fast(realtest.DovecotOptions{Layout: realtest.DotINBOX, Capability: caps}))
			dst := realtest.StartDovecot(t, fast(realtest.DovecotOptions{}))
			put(t, src, user, "INBOX", letters(0, 10, 10)...)
			c := copier(t, newLedger(t))
			job := jobOf(src, dst)
			mustPass(t, c, job, backfill.Options{})
			setFlags(t, user, src, "INBOX", 1, imap.StoreFlagsAdd, imap.FlagFlagged, "$Label1")
			setFlags(t, user, src, "INBOX", 2, imap.StoreFlagsDel, imap.FlagSeen)
			setFlags(t, user, dst, "INBOX", 1, imap.StoreFlagsAdd, "neu") // of the reader of the other side: stays
			// Without CONDSTORE only a final pass finds changes of flags.
			if r := mustPass(t, c, job, backfill.Options{Final: caps != ""}); r.Flagged != 2 || r.Copied != 0 || r.Clean() {
				t.Errorf("%+v", r)
			}
			want := holds(t, src, user, true)
			got := holds(t, dst, user, true)
			kept := 0
			for i, line := range got["INBOX"] {
				if strings.HasSuffix(line, " neu") {
					got["INBOX"][i] = strings.TrimSuffix(line, " neu")
					kept++
				}
			}
			if kept != 1 {
				t.Error("a flag that was set on the destination is gone")
			}
			same(t, want, got)
			if r := mustPass(t, c, job, backfill.Options{Final: true}); !r.Clean() {
				t.Errorf("%+v", r)
			}
		})
	}
}

func testAdoptsWhatIsThere(t *testing.T, src, dst *realtest.Dovecot, user string) {
	both := func(side string, body string) mailtest.StoredMessage {
		return mailtest.StoredMessage{Body: []byte("Return-Path: <x@" + side + ">\r\nReceived: from mx.example.org by " + side + "\r\n\tid local1; today\r\n" +
			"Received: from far.example (far [192.0.2.1])\r\n\tby mx.example.org with ESMTP\r\n\tid 01ABC; today\r\nSubject: both\r\nFrom: a@b\r\n\r\n" + body)}
	}
	twice := letter(5, 100)
	put(t, src, user, "INBOX", letters(0, 5, 100)...)
	put(t, src, user, "INBOX", twice, twice, both("old", "hello\r\n"), both("old", "HELLO\r\n"), letter(9, 100))
	put(t, dst, user, "INBOX", letters(2, 4, 100)...) // the same, with other dates even
	put(t, dst, user, "INBOX", twice, both("new", "hello\r\n"), letter(19, 100))
	unlike := letter(1, 100)
	unlike.Body = slices.Replace(slices.Clone(unlike.Body), len(unlike.Body)-4, len(unlike.Body)-3, 'X') // the same size, another text
	put(t, dst, user, "INBOX", unlike)
	c := copier(t, newLedger(t))
	r := mustPass(t, c, jobFor(src, dst, user), backfill.Options{})
	if r.Adopted != 4 || r.Copied != 6 {
		t.Errorf("adopted %d, copied %d, want 4 and 6", r.Adopted, r.Copied)
	}
	if got := holds(t, dst, user, false).count(); got != 6+6 {
		t.Errorf("the destination has %d messages", got)
	}
	if r := mustPass(t, c, jobFor(src, dst, user), backfill.Options{Final: true}); !r.Clean() {
		t.Errorf("second pass: %+v", r)
	}
	if v, err := c.Verify(t.Context(), jobFor(src, dst, user)); err != nil || !v.OK() {
		t.Errorf("verify: %+v, %v", v, err)
	}
	// A copy that both sides got between two passes.
	m, n := both("old", "later\r\n"), both("new", "later\r\n")
	put(t, dst, user, "INBOX", n)
	put(t, src, user, "INBOX", m)
	if r := mustPass(t, c, jobFor(src, dst, user), backfill.Options{}); r.Adopted != 1 || r.Copied != 0 {
		t.Errorf("delivered to both: %+v", r)
	}
}

// TestUIDValidityChanged: the pairs are void, and nothing is copied again.
func TestUIDValidityChanged(t *testing.T) {
	t.Parallel()
	for _, side := range []string{"source", "destination"} {
		t.Run(side, func(t *testing.T) {
			t.Parallel()
			src := realtest.StartDovecot(t, fast(realtest.DovecotOptions{Layout: realtest.DotINBOX}))
			dst := realtest.StartDovecot(t, fast(realtest.DovecotOptions{}))
			put(t, src, user, "INBOX", append(letters(0, 10, 100), fragile()...)...)
			put(t, src, user, "INBOX", letter(3, 100))
			c := copier(t, newLedger(t))
			job := jobOf(src, dst)
			mustPass(t, c, job, backfill.Options{})
			d := map[string]*realtest.Dovecot{"source": src, "destination": dst}[side]
			d.Stop(t)
			changeValidity(t, d)
			d.Start(t)
			r := mustPass(t, c, job, backfill.Options{})
			if r.Adopted != 14 || r.Copied != 0 {
				t.Errorf("%+v", r)
			}
			if r := mustPass(t, c, job, backfill.Options{Final: true}); !r.Clean() {
				t.Errorf("%+v", r)
			}
		})
	}
}

// changeValidity rewrites the UIDVALIDITY in dovecot-uidlist and drops the
// index.
func changeValidity(t *testing.T, d *realtest.Dovecot) {
	t.Helper()
	changeValidityOf(t, filepath.Join(d.MailRoot, user, "Maildir"))
}

func changeValidityOf(t *testing.T, dir string) {
	t.Helper()
	path := filepath.Join(dir, "dovecot-uidlist")
	b, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	head, rest, _ := strings.Cut(string(b), "\n")
	words := strings.Fields(head)
	for i, w := range words {
		if strings.HasPrefix(w, "V") {
			words[i] = "V1234567"
		}
	}
	if err := os.WriteFile(path, []byte(strings.Join(words, " ")+"\n"+rest), 0o666); err != nil {
		t.Fatal(err)
	}
	old, _ := filepath.Glob(filepath.Join(dir, "dovecot.*index*"))
	for _, f := range old {
		if err := os.Remove(f); err != nil {
			t.Fatal(err)
		}
	}
}

func TestLogins(t *testing.T) {
	t.Parallel()
	o := realtest.DovecotOptions{MasterUser: "master", Users: []string{user}, Layout: realtest.DotINBOX}
	src := realtest.StartDovecot(t, fast(o))
	dst := realtest.StartDovecot(t, fast(realtest.DovecotOptions{MasterUser: "master", Users: []string{user}}))
	put(t, src, user, "INBOX", letters(0, 3, 10)...)
	suffix := account(src.IMAPAddr, user+"*master", "mastersecret")
	authz := account(dst.IMAPAddr, "master", "mastersecret")
	authz.Login.Authz = user
	c := copier(t, newLedger(t))
	if r := mustPass(t, c, backfill.Job{User: user, Source: suffix, Dest: authz}, backfill.Options{}); r.Copied != 3 {
		t.Errorf("%+v", r)
	}
	same(t, holds(t, src, user, true), holds(t, dst, user, true))
	wrong := authz
	wrong.Login.Password = "not\"the\r\nsecret"
	_, err := c.Pass(t.Context(), backfill.Job{User: user, Source: suffix, Dest: wrong}, backfill.Options{})
	if err == nil || strings.Contains(err.Error(), "secret") || !strings.Contains(err.Error(), "destination: imap "+dst.IMAPAddr) {
		t.Errorf("wrong password: %v", err)
	}
}

// TestOverQuota: the pass ends with the server's words, and goes on later.
func TestOverQuota(t *testing.T) {
	t.Parallel()
	src := realtest.StartDovecot(t, fast(realtest.DovecotOptions{Layout: realtest.DotINBOX}))
	quota := "mail_plugins = $mail_plugins quota\nplugin {\n quota = count:User quota\n quota_vsizes = yes\n quota_rule = *:storage=20K\n quota_grace = 0\n}\n"
	dst := realtest.StartDovecot(t, fast(realtest.DovecotOptions{Extra: quota}))
	put(t, src, user, "INBOX", letters(0, 30, 1000)...)
	c := copier(t, newLedger(t))
	c.BatchMessages = 8
	r, err := c.Pass(t.Context(), jobOf(src, dst), backfill.Options{})
	if err == nil || !strings.Contains(strings.ToLower(err.Error()), "quota") {
		t.Fatalf("%+v, %v", r, err)
	}
	if r.Copied < 8 || r.Copied > 20 || len(problems(r, backfill.ClassRefused)) > 0 {
		t.Errorf("%+v", r)
	}
	t.Log(err)
}

func testCancelledPassGoesOn(t *testing.T, src, dst *realtest.Dovecot, user string) {
	put(t, src, user, "INBOX", letters(0, 60, 100)...)
	l := newLedger(t)
	c := copier(t, l)
	c.BatchMessages = 10
	ctx, cancel := context.WithCancelCause(t.Context())
	stop := errors.New("told to stop")
	n := 0
	c.CrashPoint = func(name string) {
		if name == "after-append" {
			if n++; n == 3 {
				cancel(stop)
			}
		}
	}
	r, err := c.Pass(ctx, jobFor(src, dst, user), backfill.Options{})
	if !errors.Is(err, stop) || r.Copied != 30 {
		t.Fatalf("%+v, %v", r, err)
	}
	r = mustPass(t, c, jobFor(src, dst, user), backfill.Options{})
	if r.Copied != 30 || r.Adopted != 0 {
		t.Errorf("the second pass: %+v", r)
	}
	same(t, holds(t, src, user, true), holds(t, dst, user, true))
}

func testLedgerThatFails(t *testing.T, src, dst *realtest.Dovecot, user string) {
	put(t, src, user, "INBOX", letters(0, 5, 100)...)
	l := newLedger(t)
	l.fail = errors.New("disk on fire")
	if _, err := copier(t, l).Pass(t.Context(), jobFor(src, dst, user), backfill.Options{}); !errors.Is(err, l.fail) {
		t.Error(err)
	}
	if n := holds(t, dst, user, false).count(); n != 0 {
		t.Errorf("%d messages were appended without a journal", n)
	}
}

func testProgress(t *testing.T, src, dst *realtest.Dovecot, user string) {
	put(t, src, user, "INBOX", letters(0, 20, 100)...)
	var last backfill.Progress
	mustPass(t, copier(t, newLedger(t)), jobFor(src, dst, user), backfill.Options{Progress: func(p backfill.Progress) { last = p }})
	if last.Messages != 20 || last.MessagesDone != 20 || last.FoldersDone != 1 || last.Folders != 1 || last.BytesDone == 0 || last.Bytes < last.BytesDone {
		t.Errorf("%+v", last)
	}
}

func testEmptyAndBigMessages(t *testing.T, src, dst *realtest.Dovecot, user string) {
	put(t, src, user, "INBOX", letter(1, 10))
	empty := filepath.Join(src.MailRoot, user, "Maildir", "new", fmt.Sprintf("%d.M1P1.host", time.Now().Unix()))
	if err := os.WriteFile(empty, nil, 0o666); err != nil {
		t.Fatal(err)
	}
	put(t, src, user, "INBOX", letter(2, 20<<20))
	c := copier(t, newLedger(t))
	r := mustPass(t, c, jobFor(src, dst, user), backfill.Options{})
	if r.Copied != 2 || len(problems(r, backfill.ClassWrapped)) != 1 {
		t.Errorf("%+v", r)
	}
	r = mustPass(t, c, jobFor(src, dst, user), backfill.Options{})
	if !r.Clean() || len(problems(r, backfill.ClassWrapped)) != 1 {
		t.Errorf("the second pass: %+v", r)
	}
}
