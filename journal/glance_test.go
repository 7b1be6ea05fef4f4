package journal

import (
	"encoding/json"
	"testing"
	"time"

	"crossfade/mail"
)

// FuzzGlance: what is taken out of a line without parsing it is what parsing gives.
func FuzzGlance(f *testing.F) {
	now := stamp(time.Now())
	for _, e := range []Entry{
		{At: now, Kind: Accepted, ID: mail.NewID(), From: "a@example.com", Size: 12, MessageID: "<x@example.com>", Client: "192.0.2.1", Rcpts: []Rcpt{{To: "b@example.org"}}},
		{At: now, Kind: Accepted, ID: mail.NewID(), Rcpts: []Rcpt{{To: `"msgid":"no"@example.org`}}},
		{At: now, Kind: Accepted, ID: mail.NewID(), From: `"a\",\"msgid\":"@example.com`, MessageID: "<\"q\\\u00e4\n@x>"},
		{At: now, Kind: Delivered, ID: mail.NewID(), Reply: `250 "msgid":"x"`},
		{At: now, Kind: Withdrawn, ID: mail.NewID(), Reason: "x"},
		{At: now, Kind: Deferred, ID: mail.NewID(), N: 3, To: "b@example.org", User: "b@example.org", Route: mail.Old, Epoch: 7, Attempt: 2, Copy: true, CopyTo: mail.New,
			Reply: "451 4.3.0 \u00e4 & <x>\x7f\u2028", Notice: mail.NewID(), Next: now.Add(time.Minute), By: "op", Reason: "so"},
		{At: now, Kind: Accepted, ID: mail.NewID(), NoticeOf: mail.NewID(), Rcpts: []Rcpt{{To: "a@x", Orig: "A@x", User: "a@x"}, {To: "b@x"}}},
	} {
		f.Add(e.Line())
	}
	f.Add([]byte(`{"e":"accepted","t":"2026-01-01T00:00:00Z","id":"X","msgid":"y"}`))
	f.Add([]byte(`{"t":"2026-01-01T00:00:00Z","e":"accepted","id":"X","size":1.5,"msgid":"y"}`))
	f.Fuzz(func(t *testing.T, line []byte) {
		e, err := ParseEntry(line)
		if err != nil {
			return // no line of ours
		}
		back := e.Line()
		if want, err := json.Marshal(e); err == nil && string(back) != string(want)+"\n" {
			t.Fatalf("%s, want %s", back, want)
		}
		e, err = ParseEntry(back)
		if err != nil {
			t.Fatal(err)
		}
		if g, err := glanceAt(back); err != nil || !g.at.Equal(e.At) || g.id != string(e.ID) || g.messageID != e.MessageID {
			t.Errorf("%s: %+v, %v, want %+v", back, g, err, e)
		}
	})
}

// TestQuick: what messages and outcomes leave is not parsed.
func TestQuick(t *testing.T) {
	now := stamp(time.Now())
	for _, e := range []Entry{
		{At: now, Kind: Accepted, ID: mail.NewID(), From: "a@example.com", Size: 12, MessageID: "<x@example.com>", Rcpts: []Rcpt{{To: "b@example.org"}}},
		{At: now, Kind: Accepted, ID: mail.NewID(), Size: 12, Rcpts: []Rcpt{{To: "b@example.org"}}},
		{At: now, Kind: Delivered, ID: mail.NewID(), To: "b@example.org", Reply: "250 ok"},
	} {
		if g, ok := quick(e.Line()); !ok || g.id != string(e.ID) || g.messageID != e.MessageID || !g.at.Equal(now) {
			t.Errorf("%s: %+v, %t", e.Line(), g, ok)
		}
	}
}
