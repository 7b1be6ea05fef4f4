package demo

import (
	"bytes"
	"fmt"
	"io"
	"maps"
	"slices"
	"sync"
	"text/tabwriter"

	"crossfade/internal/mailtest"
	"crossfade/mail"
)

// book is what must be somewhere in the end: every message by its token.
type book struct {
	mu   sync.Mutex
	want map[string]map[string][]byte // user -> token -> message as it was sent
	sent map[string]int               // accepted by the relay, by user
	past map[string]int               // put into the old mailbox before, by user
	// stray is what was put into the mailbox that the user did not read, by user.
	stray map[string]int
}

func newBook() *book {
	return &book{want: map[string]map[string][]byte{}, sent: map[string]int{}, past: map[string]int{}, stray: map[string]int{}}
}

func (b *book) expect(user, token string, body []byte, count map[string]int) {
	b.mu.Lock()
	defer b.mu.Unlock()
	if b.want[user] == nil {
		b.want[user] = map[string][]byte{}
	}
	b.want[user][token] = body
	count[user]++
}

func (b *book) total(count map[string]int) (n int) {
	b.mu.Lock()
	defer b.mu.Unlock()
	for _, c := range count {
		n += c
	}
	return n
}

// row is one user's line of the table.
type row struct {
	user                            string
	reads                           mail.Route
	past, sent, stray, found        int
	missing, twice, altered, strays int
}

func (r row) ok() bool { return r.missing+r.twice+r.altered+r.strays == 0 }

// audit counts the messages in the mailbox that the user reads.
func (b *book) audit(user string, reads mail.Route, sys *mailtest.Mailsystem) (row, error) {
	b.mu.Lock()
	defer b.mu.Unlock()
	r := row{user: user, reads: reads, past: b.past[user], sent: b.sent[user], stray: b.stray[user]}
	folders, err := sys.List(user)
	if err != nil {
		return r, fmt.Errorf("listing the folders of %s: %w", user, err)
	}
	seen := map[string]int{}
	for _, f := range folders {
		msgs, err := sys.Messages(user, f)
		if err != nil {
			return r, fmt.Errorf("reading %s of %s: %w", f, user, err)
		}
		for _, m := range msgs {
			r.found++
			token, at, err := tokenOf(m.Body)
			want, known := b.want[user][token]
			if err != nil || !known {
				r.strays++
				continue
			}
			seen[token]++
			if !bytes.Equal(m.Body[at:], want) {
				r.altered++
			}
		}
	}
	for token := range b.want[user] {
		switch n := seen[token]; {
		case n == 0:
			r.missing++
		case n > 1:
			r.twice += n - 1
		}
	}
	return r, nil
}

// table prints the rows and their sum, and tells whether all is well.
func table(w io.Writer, rows map[string]row) bool {
	tw := tabwriter.NewWriter(w, 0, 0, 2, ' ', tabwriter.AlignRight)
	fmt.Fprintln(tw, "user\treads\tpast mail\tthrough relay\tinto the other mailbox\tin the mailbox\tmissing\ttwice\taltered\tstray\t")
	var sum row
	for _, u := range slices.Sorted(maps.Keys(rows)) {
		r := rows[u]
		fmt.Fprintf(tw, "%s\t%s\t%d\t%d\t%d\t%d\t%d\t%d\t%d\t%d\t\n", r.user, r.reads, r.past, r.sent, r.stray, r.found, r.missing, r.twice, r.altered, r.strays)
		sum.past += r.past
		sum.sent += r.sent
		sum.stray += r.stray
		sum.found += r.found
		sum.missing += r.missing
		sum.twice += r.twice
		sum.altered += r.altered
		sum.strays += r.strays
	}
	fmt.Fprintf(tw, "all\t\t%d\t%d\t%d\t%d\t%d\t%d\t%d\t%d\t\n", sum.past, sum.sent, sum.stray, sum.found, sum.missing, sum.twice, sum.altered, sum.strays)
	tw.Flush()
	return sum.ok()
}
