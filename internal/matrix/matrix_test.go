package matrix

import (
	"fmt"
	"os"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"crossfade/backfill"
	"crossfade/backfill/imapconn"
	"crossfade/internal/mailtest"
)

// row is what became of one pair.
type row struct {
	src, dst                                     string
	messages, altered, wrapped, lost, duplicated int
	copied, second, third, again                 int
	took                                         time.Duration
}

const heading = "source          destination     messages  altered  wrapped  lost  twice  2nd pass  3rd pass  no ledger   took"

func (r row) String() string {
	return fmt.Sprintf("%-15s %-15s %8d %8d %8d %5d %6d %9d %9d %10d %6.1fs", r.src, r.dst, r.messages, r.altered, r.wrapped, r.lost, r.duplicated,
		r.second, r.third, r.again, r.took.Seconds())
}

// TestPairs copies between every ordered pair of servers.
func TestPairs(t *testing.T) {
	servers := startServers(t)
	var mu sync.Mutex
	var rows []row
	t.Run("pairs", func(t *testing.T) {
		free := make(chan struct{}, 2)
		for i, src := range servers {
			for j, dst := range servers {
				if i == j {
					continue
				}
				t.Run(src.name+" to "+dst.name, func(t *testing.T) {
					t.Parallel()
					free <- struct{}{}
					defer func() { <-free }()
					p := &pair{src: src, dst: dst, user: fmt.Sprintf("pair-%d-%d@example.org", i, j)}
					p.run(t)
					mu.Lock()
					defer mu.Unlock()
					rows = append(rows, p.row)
				})
			}
		}
	})
	slices.SortFunc(rows, func(a, b row) int { return strings.Compare(a.src+"\x00"+a.dst, b.src+"\x00"+b.dst) })
	table := heading + "\n"
	for _, r := range rows {
		table += r.String() + "\n"
	}
	publish(t, table)
}

// publish prints a table where people see it: go test hides what tests print that pass, so it goes to the file that
// CROSSFADE_FIGURES names, too.
func publish(t *testing.T, table string) {
	t.Log("\n" + table)
	fmt.Print(table)
	name := os.Getenv("CROSSFADE_FIGURES")
	if name == "" {
		return
	}
	f, err := os.OpenFile(name, os.O_CREATE|os.O_APPEND|os.O_WRONLY, 0o644)
	if err != nil {
		t.Fatalf("the file that CROSSFADE_FIGURES names: %v", err)
	}
	defer func() { _ = f.Close() }()
	if _, err := f.WriteString(table); err != nil {
		t.Fatalf("the file that CROSSFADE_FIGURES names: %v", err)
	}
}

type pair struct {
	src, dst server
	user     string
	row      row
	copier   *backfill.Copier
	job      backfill.Job
}

func (p *pair) run(t *testing.T) {
	began := time.Now()
	p.row = row{src: p.src.name, dst: p.dst.name}
	account := func(s server) imapconn.Account {
		return imapconn.Account{Server: imapconn.Server{Address: s.IMAPAddr, Mode: imapconn.TLSNone}, Login: imapconn.Login{User: p.user, Password: s.Password}}
	}
	p.copier = &backfill.Copier{Ledger: &mailtest.Ledger{}, Settle: 100 * time.Millisecond}
	p.job = backfill.Job{User: p.user, Source: account(p.src), Dest: account(p.dst), Host: "mx.example.org"}
	fill(t, p.src, p.user)
	first := p.pass(t, backfill.Options{})
	p.row.copied = first.Copied
	p.check(t, "after the first pass", nil)
	secondOpinion(t, p.src, p.dst, p.user)

	before := read(t, p.src, p.user)
	added := change(t, p.src, p.user)
	second := p.pass(t, backfill.Options{Final: true, Deletions: true})
	if p.row.second = second.Copied; second.Copied != added {
		t.Errorf("the second pass copied %d, want %d", second.Copied, added)
	}
	if !p.dst.keepsDeleted {
		before = nil
	}
	p.check(t, "after the second pass", before)

	third := p.pass(t, backfill.Options{Final: true, Deletions: true})
	if p.row.third = third.Copied; !third.Clean() {
		t.Errorf("the third pass copied %d, adopted %d, flagged %d: %+v", third.Copied, third.Adopted, third.Flagged, third.Problems)
	}
	v, err := p.copier.Verify(t.Context(), p.job)
	if err != nil || v.Missing != 0 {
		t.Errorf("verify: %d missing, %v", v.Missing, err)
	}
	p.withoutLedger(t, before)
	p.row.took = time.Since(began)
}

// withoutLedger makes a pass that knows nothing of the ones before: it has to find
// all that is there, by content.
func (p *pair) withoutLedger(t *testing.T, before map[string][]seen) {
	t.Helper()
	known := p.copier.Ledger
	defer func() { p.copier.Ledger = known }()
	p.copier.Ledger = &mailtest.Ledger{}
	r := p.pass(t, backfill.Options{Final: true})
	if p.row.again = r.Copied; r.Copied != 0 {
		t.Errorf("a pass without a ledger copied %d, adopted %d", r.Copied, r.Adopted)
	}
	p.check(t, "after a pass without a ledger", before)
}

func (p *pair) pass(t *testing.T, o backfill.Options) backfill.Report {
	t.Helper()
	r, err := p.copier.Pass(t.Context(), p.job, o)
	if err != nil {
		t.Fatal(err)
	}
	for _, x := range r.Problems {
		t.Logf("%s: %q %d: %.300s", x.Class, x.Folder, x.UID, x.Text)
	}
	return r
}

// check compares both sides, folder by folder as the plan pairs them. What was on the source before and is gone from it may
// still be on a destination that has no way to delete single messages.
func (p *pair) check(t *testing.T, when string, before map[string][]seen) {
	t.Helper()
	plan, err := p.copier.Plan(t.Context(), p.job)
	if err != nil {
		t.Fatal(err)
	}
	src, dst := read(t, p.src, p.user), read(t, p.dst, p.user)
	var d difference
	placed := map[string]bool{}
	for _, f := range plan.Folders {
		if placed[f.Dest] {
			t.Errorf("%s: two folders go to %q", when, f.Dest)
		}
		placed[f.Dest] = true
		if _, ok := src[f.Source]; !ok {
			t.Errorf("%s: a folder %q that is not on the source", when, f.Source)
		}
		if _, ok := dst[f.Dest]; !ok {
			t.Errorf("%s: %q is not on the destination as %q", when, f.Source, f.Dest)
		}
		found := compare(f.Source, src[f.Source], dst[f.Dest])
		gone := compare(f.Source, before[f.Source], src[f.Source]).lost
		found.duplicated = slices.DeleteFunc(found.duplicated, func(m string) bool {
			i := slices.Index(gone, m)
			if i >= 0 {
				gone = slices.Delete(gone, i, i+1)
			}
			return i >= 0
		})
		d.add(found)
		delete(src, f.Source)
		delete(dst, f.Dest)
	}
	for f := range src {
		t.Errorf("%s: the folder %q has no place", when, f)
	}
	if attic := p.dst.Folder(attention); len(dst[attic]) > 0 {
		wrapped := unwrapped(t, p.dst, p.user, attic)
		delete(dst, attic)
		p.row.wrapped = len(wrapped)
		d.unwrap(wrapped)
	}
	for f, l := range dst {
		if len(l) > 0 {
			t.Errorf("%s: the destination has %d messages in %q, which nobody put there", when, len(l), f)
		}
	}
	p.judge(t, when, d)
}

// attention is the folder for what the destination refused.
const attention = "Needs attention"

func (p *pair) judge(t *testing.T, when string, d difference) {
	t.Helper()
	p.row.messages, p.row.altered, p.row.lost, p.row.duplicated = d.messages, d.altered, len(d.lost), len(d.duplicated)
	for what, l := range map[string][]string{"lost": d.lost, "there more than once": d.duplicated, "with another date": d.dates, "with other flags": d.flags} {
		if len(l) > 0 {
			t.Errorf("%s: %d %s:\n%s", when, len(l), what, strings.Join(l[:min(len(l), 12)], "\n"))
		}
	}
}
