package audit

import (
	"context"
	"strings"
	"testing"
	"time"

	"crossfade/journal"
	"crossfade/mail"
)

// TestWhyBounds: of many messages with one Message-ID the first are told of, and the
// others said to be there.
func TestWhyBounds(t *testing.T) {
	w := newWorld(t)
	var first mail.ID
	for i := range mostLives + 5 {
		id := mail.NewID()
		if i == 0 {
			first = id
		}
		w.write(journal.Entry{Kind: journal.Accepted, ID: id, From: "s@example.com", MessageID: "<same@example.com>", Rcpts: []journal.Rcpt{{To: "ann@example.org", User: "ann@example.org"}}})
	}
	lives, err := w.a.Why(t.Context(), "same@example.com", false)
	if err != nil || len(lives) != mostLives || lives[0].ID != first {
		t.Fatalf("%d lives, %v", len(lives), err)
	}
	if d := strings.Join(lives[0].Damaged, "; "); !strings.Contains(d, "5 more messages have this Message-ID") {
		t.Errorf("%q", d)
	}
}

// hanging is an outbox that always has more, and never an end.
type hanging struct {
	*world
	line []byte
}

// Pending implements journal.Outbox.
func (h hanging) Pending(_ context.Context, after uint64, max int) (out []journal.Batch, _ error) {
	for size := 0; size < max; size += len(h.line) {
		after++
		out = append(out, journal.Batch{Number: after, Lines: h.line})
	}
	return out, nil
}

// TestWhyTime: a journal that cannot be read in time is said to be so, and why.
func TestWhyTime(t *testing.T) {
	w := newWorld(t)
	w.accept("ann")
	w.a.Journal.Outbox = hanging{w, []byte(strings.Repeat(string(w.box[0].Lines), 100))}
	w.a.FindTime = 50 * time.Millisecond
	_, err := w.a.Why(t.Context(), "nothing@example.com", false)
	if err == nil || !strings.Contains(err.Error(), "it takes longer than 50ms") || !strings.Contains(err.Error(), "the journal cannot be written") {
		t.Errorf("%v", err)
	}
}
