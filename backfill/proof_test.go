package backfill_test

import (
	"bytes"
	"slices"
	"strings"
	"sync"
	"testing"

	"crossfade/backfill"
	"crossfade/internal/mailtest"
	"crossfade/internal/mailtest/realtest"

	"github.com/emersion/go-imap/v2"
	"github.com/google/go-cmp/cmp"
)

func flagsOf(t testing.TB, d *realtest.Dovecot) (out []string) {
	t.Helper()
	for _, m := range d.Messages(t, user, "INBOX") {
		out = append(out, strings.Join(m.Flags, " "))
	}
	return out
}

// TestRefusedFlagsStayOnOld: what new did not take, with words or without, is not what the user took away there: it
// stays on old after a rollback. What he does take away goes.
func TestRefusedFlagsStayOnOld(t *testing.T) {
	t.Parallel()
	long := strings.Repeat("k", 120)
	for name, up := range map[string]func([]byte) []byte{
		"new refuses them": nil,
		"new forgets them": func(b []byte) []byte { return bytes.ReplaceAll(b, []byte(long), []byte("mine")) },
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			src := realtest.StartDovecot(t, fast(realtest.DovecotOptions{Layout: realtest.DotINBOX, Extra: "mail_max_keyword_length = 200\n"}))
			dst := realtest.StartDovecot(t, fast(realtest.DovecotOptions{}))
			p := newProxyBothWays(t, dst.IMAPAddr, up, nil)
			msgs := letters(0, 4, 10)
			for i := range msgs {
				msgs[i].Flags = []string{`\Flagged`, `\Seen`, "mine"}
			}
			msgs[1].Flags = append(msgs[1].Flags, long)
			put(t, src, user, "INBOX", msgs...)
			c, job := copier(t, newLedger(t)), jobOf(src, dst)
			job.Dest.Server.Address = p.addr
			r := passOn(t, c, job, "forth")
			// One flag more is set on old later, by STORE.
			setFlags(t, user, src, "INBOX", 3, imap.StoreFlagsAdd, imap.Flag(long))
			passOn(t, c, job, "forth")
			quiet(t, c, job, "forth", "settled forth")
			for _, got := range flagsOf(t, dst) {
				if got != `\Flagged \Seen mine` {
					t.Errorf("new has %q", got)
				}
			}
			if got := problems(r, backfill.ClassFlag); !slices.ContainsFunc(got, func(s string) bool { return strings.Contains(s, "did not take") }) {
				t.Errorf("nobody is told: %q", got)
			}
			setFlags(t, user, dst, "INBOX", 4, imap.StoreFlagsDel, "mine")
			before := flagsOf(t, src)
			passOn(t, c, job, "settled back")
			quiet(t, c, job, "settled back", "forth", "back", "forth")
			got := flagsOf(t, src)
			before[3] = `\Flagged \Seen`
			if diff := cmp.Diff(before, got); diff != "" {
				t.Errorf("old after the rollback (-want +got):\n%s", diff)
			}
		})
	}
}

// TestRefusedFlagTakenAway: a flag that new did not take and has by now, because the user set it there, is his to take
// away.
func TestRefusedFlagTakenAway(t *testing.T) {
	t.Parallel()
	src := realtest.StartDovecot(t, fast(realtest.DovecotOptions{Layout: realtest.DotINBOX}))
	dst := realtest.StartDovecot(t, fast(realtest.DovecotOptions{}))
	p := newProxyBothWays(t, dst.IMAPAddr, func(b []byte) []byte { return bytes.ReplaceAll(b, []byte("wanted"), []byte("\\Seen")) }, nil)
	put(t, src, user, "INBOX", mailtest.StoredMessage{Body: letter(1, 10).Body, Flags: []string{"wanted"}})
	c, job := copier(t, newLedger(t)), jobOf(src, dst)
	job.Dest.Server.Address = p.addr
	passOn(t, c, job, "forth")
	quiet(t, c, job, "forth")
	job = jobOf(src, dst)
	setFlags(t, user, dst, "INBOX", 1, imap.StoreFlagsAdd, "wanted")
	passOn(t, c, job, "settled back")
	setFlags(t, user, dst, "INBOX", 1, imap.StoreFlagsDel, "wanted")
	passOn(t, c, job, "settled back")
	if got := flagsOf(t, src); !cmp.Equal(got, []string{`\Seen`}) {
		t.Errorf("old has %q", got)
	}
	quiet(t, c, job, "settled back", "forth", "back")
}

// TestRefusedFlagsNotRead: while nobody can tell what came of flags that were sent once
// more, they do not count as taken.
func TestRefusedFlagsNotRead(t *testing.T) {
	t.Parallel()
	long := strings.Repeat("k", 120)
	src := realtest.StartDovecot(t, fast(realtest.DovecotOptions{Layout: realtest.DotINBOX, Extra: "mail_max_keyword_length = 200\n"}))
	dst := realtest.StartDovecot(t, fast(realtest.DovecotOptions{}))
	msg := letter(1, 10)
	msg.Flags = []string{`\Seen`, long}
	put(t, src, user, "INBOX", msg)
	c, job := copier(t, newLedger(t)), jobOf(src, dst)
	var mu sync.Mutex
	stored, refused := false, 0
	at := job
	at.Dest.Server.Address = newGate(t, dst.IMAPAddr, func(cmd string) string {
		mu.Lock()
		defer mu.Unlock()
		switch {
		case strings.Contains(cmd, "STORE"):
			stored = true
		case stored && strings.HasPrefix(cmd, "EXAMINE"):
			refused++
			return "NO [UNAVAILABLE] not now"
		}
		return ""
	}).addr
	passOn(t, c, at, "forth")
	if !stored || refused == 0 {
		t.Fatalf("sent once more: %t, refused %d times", stored, refused)
	}
	passOn(t, c, job, "forth")
	passOn(t, c, job, "settled back")
	if got := flagsOf(t, src); len(got) != 1 || !strings.Contains(got[0], long) {
		t.Errorf("old has %q after the rollback", got)
	}
}

// TestFlagsTakenWithStoreOnly: a server that forgets a flag of APPEND gets it again.
func TestFlagsTakenWithStoreOnly(t *testing.T) {
	t.Parallel()
	src := realtest.StartDovecot(t, fast(realtest.DovecotOptions{Layout: realtest.DotINBOX}))
	dst := realtest.StartDovecot(t, fast(realtest.DovecotOptions{}))
	p := newProxyBothWays(t, dst.IMAPAddr, func(b []byte) []byte {
		if bytes.Contains(b, []byte("APPEND")) {
			b = bytes.ReplaceAll(b, []byte(`(\Flagged \Seen)`), []byte(`(\Seen)`))
		}
		return b
	}, nil)
	put(t, src, user, "INBOX", mailtest.StoredMessage{Body: letter(1, 10).Body, Flags: []string{`\Flagged`, `\Seen`}})
	c, job := copier(t, newLedger(t)), jobOf(src, dst)
	job.Dest.Server.Address = p.addr
	if r := passOn(t, c, job, "forth"); r.Copied != 1 || len(r.Problems) > 0 {
		t.Errorf("%+v", r)
	}
	if got := flagsOf(t, dst); !cmp.Equal(got, []string{`\Flagged \Seen`}) {
		t.Errorf("new has %q", got)
	}
	quiet(t, c, job, "forth", "settled back")
}
