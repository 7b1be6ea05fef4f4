package backfill_test

import (
	"fmt"
	"slices"
	"strings"
	"testing"

	"crossfade/backfill"
	"crossfade/internal/mailtest/realtest"

	"github.com/google/go-cmp/cmp"
)

// subjects tells which mail is in which folder, with its flags.
func subjects(t *testing.T, d *realtest.Dovecot) map[string][]string {
	t.Helper()
	out := map[string][]string{}
	for _, f := range d.Folders(t, user) {
		out[f] = nil
		for _, m := range d.Messages(t, user, f) {
			var n int
			if _, err := fmt.Sscanf(string(m.Body), "Subject: mail %d", &n); err != nil {
				t.Errorf("%s: %q", f, m.Body)
			}
			slices.Sort(m.Flags)
			out[f] = append(out[f], strings.TrimSpace(fmt.Sprint(n, " ", strings.Join(m.Flags, " "))))
		}
		slices.Sort(out[f])
	}
	return out
}

// germanGmail is a mailbox with everything odd about labels.
func germanGmail(t *testing.T) *gmail {
	g := newGmail(t)
	g.root = "[Google Mail]"
	g.names = [3]string{"[Google Mail]/Alle Nachrichten", "[Google Mail]/Spam", "[Google Mail]/Papierkorb"}
	g.labels = []string{"Work", "Work/Kunden", "Gr&APw-n", "Muy Importante", "Leer"}
	g.chats = 3
	g.add(0, `\Seen`, `\Inbox`, "Work")                         // 1
	g.add(0, "", `\Inbox`, `\Important`, "Work", "Work/Kunden") // 2
	g.add(0, `\Seen`, `\Sent`, "Gr&APw-n")                      // 3
	g.add(0, `\Seen`)                                           // 4: archived
	g.add(0, `\Draft`, `\Draft`)                                // 5
	g.add(0, `\Flagged`, `\Starred`, "Muy Importante")          // 6
	g.add(1, "", "Work")                                        // 7: spam
	g.add(2, `\Seen`)                                           // 8: trash
	g.add(0, `\Seen`, "Verborgen", `sag "ja"`)                  // 9: labels that LIST does not show
	g.add(0, `\Seen`, `\Inbox`, `\Sent`)                        // 10: to himself
	return g
}

func gmailJob(g *gmail, dst *realtest.Dovecot, labels backfill.GmailLabels) backfill.Job {
	return backfill.Job{User: user, Host: "mx.example.org", Source: g.account(), Dest: account(dst.IMAPAddr, user, "secret"), Gmail: labels}
}

func gmailDest(t *testing.T) *realtest.Dovecot {
	d := realtest.StartDovecot(t, fast(realtest.DovecotOptions{SpecialUse: map[string]string{
		"Sent Items": `\Sent`, "Drafts": `\Drafts`, "Deleted Items": `\Trash`, "Junk E-Mail": `\Junk`, "Archiv": `\Archive`}}))
	// Dovecot 2.3.19 makes the INBOX and folders of a use when they are first
	// opened, and crashes now and then when several are opened at once.
	for _, f := range d.Folders(t, user) {
		d.Messages(t, user, f)
	}
	return d
}

func expect(t *testing.T, d *realtest.Dovecot, want map[string][]string) {
	t.Helper()
	if diff := cmp.Diff(want, subjects(t, d)); diff != "" {
		t.Errorf("on new (-want +got):\n%s", diff)
	}
}

// quietGmail tells whether passes find nothing to do, and fetch nothing.
func quietGmail(t *testing.T, g *gmail, c *backfill.Copier, job backfill.Job) {
	t.Helper()
	g.asked()
	for _, o := range []backfill.Options{reads, {Deletions: true, Restore: true, Final: true}, reads} {
		if r := mustPass(t, c, job, o); !r.Clean() {
			t.Errorf("nothing changed, %+v: %+v", o, r)
		}
		cmds, bodies := g.asked()
		listed := slices.ContainsFunc(cmds, func(c string) bool { return strings.Contains(c, "X-GM-MSGID") })
		if bodies > 0 || listed != o.Final {
			t.Errorf("nothing changed, %+v: %d bodies, %q", o, bodies, cmds)
		}
	}
}

func TestGmailFolders(t *testing.T) {
	t.Parallel()
	g, dst := germanGmail(t), gmailDest(t)
	c, job := copier(t, newLedger(t)), gmailJob(g, dst, "")
	r := mustPass(t, c, job, reads)
	want := map[string][]string{
		"INBOX":          {`1 \Seen`, `10 \Seen`, "2 $Important"},
		"Work":           {`1 \Seen`, "2 $Important"},
		"Work/Kunden":    {"2 $Important"},
		"Grün":           {`3 \Seen`},
		"Sent Items":     {`10 \Seen`, `3 \Seen`},
		"Drafts":         {`5 \Draft`},
		"Muy Importante": {`6 \Flagged`},
		"Leer":           nil,
		"Junk E-Mail":    {"7"},
		"Deleted Items":  {`8 \Seen`},
		"Archiv":         {`4 \Seen`},
		"Verborgen":      {`9 \Seen`},
		`sag "ja"`:       {`9 \Seen`},
	}
	expect(t, dst, want)
	if p := problems(r, backfill.ClassFiltered); len(p) != 1 || !strings.Contains(p[0], "Chats") || !strings.Contains(p[0], "3") {
		t.Errorf("chats: %q", p)
	}
	quietGmail(t, g, c, job)
	if v, err := c.Verify(t.Context(), job); err != nil || !v.OK() {
		t.Errorf("verify: %+v, %v", v, err)
	}

	// A label comes, one goes, the last one goes, a star comes and one goes, a mail is
	// thrown away, one is deleted, one is new.
	g.change(g.mail[2], func(m *gmailMail) { m.labels = append(m.labels, "Work") })
	g.change(g.mail[1], func(m *gmailMail) { m.labels = []string{`\Inbox`, "Work"} })
	g.change(g.mail[0], func(m *gmailMail) { m.labels, m.flags = nil, []string{`\Seen`, `\Flagged`} })
	g.change(g.mail[5], func(m *gmailMail) { m.labels, m.flags = []string{"Muy Importante"}, nil })
	g.change(g.mail[4], func(m *gmailMail) { m.place, m.labels = 2, nil })
	g.change(g.mail[7], func(m *gmailMail) { m.place = -1 })
	g.add(0, "", `\Inbox`)
	r = mustPass(t, c, job, reads)
	want["INBOX"] = []string{`10 \Seen`, "11", "2"}
	want["Work"] = []string{"2", `3 \Seen`}
	want["Work/Kunden"] = nil
	want["Archiv"] = []string{`1 \Flagged \Seen`, `4 \Seen`}
	want["Muy Importante"] = []string{"6"}
	want["Drafts"] = nil
	want["Deleted Items"] = []string{`5 \Draft`}
	expect(t, dst, want)
	if r.Copied != 4 {
		t.Errorf("%+v", r)
	}
	quietGmail(t, g, c, job)
}

func TestGmailKeywords(t *testing.T) {
	t.Parallel()
	g, dst := germanGmail(t), gmailDest(t)
	g.labels = append(g.labels, "work_kunden") // the keyword of Work/Kunden, but for case
	c, job := copier(t, newLedger(t)), gmailJob(g, dst, backfill.GmailKeywords)
	r := mustPass(t, c, job, reads)
	const kunden = "Work_Kunden_"
	all := subjects(t, dst)
	got := fmt.Sprint(all["INBOX"])
	if !strings.Contains(got, "2 $Important Work "+kunden) {
		t.Errorf("%s", got)
	}
	all["INBOX"] = slices.DeleteFunc(all["INBOX"], func(s string) bool { return strings.HasPrefix(s, "2 ") })
	want := map[string][]string{
		"INBOX":         {`1 Work \Seen`, `10 \Seen`},
		"Sent Items":    {`3 Gr&APw-n \Seen`},
		"Drafts":        {`5 \Draft`},
		"Junk E-Mail":   {"7 Work"},
		"Deleted Items": {`8 \Seen`},
		"Archiv":        {`4 \Seen`, `6 Muy_Importante \Flagged`, `9 Verborgen \Seen sag__ja_`},
	}
	if d := cmp.Diff(want, all); d != "" {
		t.Errorf("on new (-want +got):\n%s", d)
	}
	if _, bodies := g.asked(); bodies != 10 || r.Copied != 10 {
		t.Errorf("%d bodies, %+v", bodies, r)
	}
	if p := problems(r, backfill.ClassFlag); len(p) != 2 || !strings.Contains(p[0], "1 messages are in several") || !strings.Contains(p[1], "Work/Kunden") {
		t.Errorf("%q", p)
	}
	quietGmail(t, g, c, job)

	g.change(g.mail[2], func(m *gmailMail) { m.labels = []string{`\Sent`, "Work"} })
	g.change(g.mail[3], func(m *gmailMail) { m.labels = []string{`\Starred`}; m.flags = append(m.flags, `\Flagged`) })
	g.change(g.mail[0], func(m *gmailMail) { m.labels = []string{"Work"} }) // archived
	g.change(g.mail[5], func(m *gmailMail) { m.labels, m.flags = nil, nil })
	r = mustPass(t, c, job, reads)
	all = subjects(t, dst)
	want["INBOX"] = []string{all["INBOX"][1], `10 \Seen`}
	slices.Sort(want["INBOX"])
	want["Sent Items"] = []string{`3 Work \Seen`}
	want["Archiv"] = []string{`1 Work \Seen`, `4 \Flagged \Seen`, "6", `9 Verborgen \Seen sag__ja_`}
	if d := cmp.Diff(want, all); d != "" {
		t.Errorf("after changes (-want +got):\n%s", d)
	}
	if r.Copied != 1 || r.Moved != 1 || r.Deleted != 0 || r.Flagged != 3 {
		t.Errorf("%+v", r)
	}
	quietGmail(t, g, c, job)
}

// TestGmailTail: the pass for new mail in the INBOX lists the INBOX only.
func TestGmailTail(t *testing.T) {
	t.Parallel()
	for _, labels := range []backfill.GmailLabels{backfill.GmailFolders, backfill.GmailKeywords} {
		g, dst := germanGmail(t), gmailDest(t)
		c, job := copier(t, newLedger(t)), gmailJob(g, dst, labels)
		mustPass(t, c, job, reads)
		g.add(0, "", `\Inbox`, "Work")
		g.asked()
		r := mustPass(t, c, job, backfill.Options{Only: []string{"INBOX"}})
		cmds, bodies := g.asked()
		if r.Copied != 1 || bodies != 1 || slices.ContainsFunc(cmds, func(c string) bool { return strings.HasPrefix(c, "UID FETCH 1:*") }) {
			t.Errorf("%s: %+v, %q", labels, r, cmds)
		}
		r = mustPass(t, c, job, reads)
		if want := map[backfill.GmailLabels]int{backfill.GmailFolders: 1}[labels]; r.Copied != want || r.Flagged+r.Deleted+r.Moved > 0 {
			t.Errorf("%s: the pass after it: %+v", labels, r)
		}
		quietGmail(t, g, c, job)
	}
}

func TestGmailOff(t *testing.T) {
	t.Parallel()
	g, dst := newGmail(t), gmailDest(t)
	g.add(0, "", "Work")
	job := gmailJob(g, dst, backfill.GmailOff)
	job.User = "plain@example.org"
	if _, err := copier(t, newLedger(t)).Pass(t.Context(), job, reads); err == nil {
		t.Error("INBOX is none of the folders that can be opened here") // what is asked for is Gmail's own INBOX
	}
	cmds, _ := g.asked()
	if slices.ContainsFunc(cmds, func(c string) bool { return strings.Contains(c, "X-GM") }) {
		t.Errorf("%q", cmds)
	}
}

// TestGmailHidden: without All Mail nothing is copied, rather than less than all.
func TestGmailHidden(t *testing.T) {
	t.Parallel()
	g, dst := newGmail(t), gmailDest(t)
	g.add(0, "", `\Inbox`)
	g.names[0] = ""
	_, err := copier(t, newLedger(t)).Pass(t.Context(), gmailJob(g, dst, ""), reads)
	if err == nil || !strings.Contains(err.Error(), "All Mail") {
		t.Errorf("%v", err)
	}
	if _, bodies := g.asked(); bodies > 0 {
		t.Errorf("%d bodies", bodies)
	}
}

// TestGmailDrops: a connection that ends in the middle of the list is no list.
func TestGmailDrops(t *testing.T) {
	t.Parallel()
	g, dst := germanGmail(t), gmailDest(t)
	c, job := copier(t, newLedger(t)), gmailJob(g, dst, "")
	g.drop = 2
	mustPass(t, c, job, reads)
	g.mu.Lock()
	g.drop, g.modseq = 9, g.modseq+1
	g.mu.Unlock()
	if r, err := c.Pass(t.Context(), job, reads); err == nil || r.Deleted > 0 {
		t.Errorf("%+v, %v", r, err)
	}
	g.mu.Lock()
	g.drop = 0
	g.mu.Unlock()
	quietGmailAfter(t, c, job)
}

func quietGmailAfter(t *testing.T, c *backfill.Copier, job backfill.Job) {
	t.Helper()
	if r := mustPass(t, c, job, reads); !r.Clean() {
		t.Errorf("%+v", r)
	}
}
