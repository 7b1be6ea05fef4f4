package journal

import (
	"encoding/json"
	"fmt"
	"strings"
	"time"
	"unicode/utf8"

	"crossfade/mail"
	"crossfade/queue"
)

// Kind says what an entry tells of.
type Kind string

// The kinds of entry. Accepted and Withdrawn are about a message, all others
// about one of its recipients.
const (
	Accepted  Kind = "accepted"  // the sender got 250, or it is a notice of ours
	Withdrawn Kind = "withdrawn" // taken back: its sender got no 250 and comes again
	Delivered Kind = "delivered" // a backend answered 2xx
	Deferred  Kind = "deferred"  // tried, and tried again later; also one in doubt that is sent again
	Asked     Kind = "asked"     // a side does not know the user: the other side is asked (I8)
	Bounced   Kind = "bounced"   // given up, with the notice that Entry.Notice names
	Parked    Kind = "parked"    // waits for an operator
	Held      Kind = "held"      // by an operator
	Released  Kind = "released"  // by an operator
	Retried   Kind = "retried"   // by an operator, at once
	Rerouted  Kind = "rerouted"  // by an operator, to Entry.Route
	Deleted   Kind = "deleted"   // by an operator, for good
)

// Entry is one line of the journal.
type Entry struct {
	At   time.Time `json:"t"`
	Kind Kind      `json:"e"`
	ID   mail.ID   `json:"id"`

	// Of a message that was accepted.
	From      string  `json:"from,omitempty"` // reverse-path; empty: the null reverse-path
	Size      int64   `json:"size,omitempty"` // octets of the stored body
	MessageID string  `json:"msgid,omitempty"`
	Client    string  `json:"client,omitempty"`    // address that it came from
	NoticeOf  mail.ID `json:"notice_of,omitempty"` // the message that this notice of ours is about
	Rcpts     []Rcpt  `json:"rcpts,omitempty"`

	// Of one recipient.
	N       int        `json:"n,omitempty"` // index in Rcpts
	To      string     `json:"to,omitempty"`
	User    string     `json:"user,omitempty"`  // key in the state table; empty: not ours
	Route   mail.Route `json:"route,omitempty"` // where the attempt went, or is to go
	Epoch   uint64     `json:"epoch,omitempty"` // of the user when the route was decided; 0: in no table
	Attempt int        `json:"attempt,omitempty"`
	Copy    bool       `json:"copy,omitempty"`    // the second delivery of `deliver: both`
	CopyTo  mail.Route `json:"copy_to,omitempty"` // the side that gets a copy now
	Reply   string     `json:"reply,omitempty"`   // what the backend said, or what went wrong
	Notice  mail.ID    `json:"notice,omitempty"`  // the notice that tells the sender
	Next    time.Time  `json:"next,omitzero"`     // when it is tried again, at the earliest
	By      string     `json:"by,omitempty"`      // the operator
	Reason  string     `json:"reason,omitempty"`  // the operator's
}

// Rcpt is a recipient of a message that was accepted.
type Rcpt struct {
	To   string `json:"to"`
	Orig string `json:"orig,omitempty"` // the address of the RCPT command where it differs
	User string `json:"user,omitempty"` // as in Entry
}

// ParseEntry reads a line.
func ParseEntry(line []byte) (Entry, error) {
	var e Entry
	if err := json.Unmarshal(line, &e); err != nil {
		return e, fmt.Errorf("a line of the journal: %w", err)
	}
	if e.Kind == "" || e.ID == "" {
		return e, fmt.Errorf("a line of the journal says nothing: %q", clip(string(line), 80))
	}
	return e, nil
}

// AcceptedLine is the line of a message that is queued. noticeOf is the message
// that a notice of ours is about, empty for mail of others.
func AcceptedLine(env *mail.Envelope, noticeOf mail.ID, now time.Time) []byte {
	e := Entry{At: stamp(now), Kind: Accepted, ID: env.ID, From: env.From.String(), Size: env.Size, MessageID: text(env.MessageID), NoticeOf: noticeOf}
	if env.Client.Addr.IsValid() {
		e.Client = env.Client.Addr.Addr().String()
	}
	e.Rcpts = make([]Rcpt, len(env.Recipients))
	for i := range env.Recipients {
		r := &env.Recipients[i]
		e.Rcpts[i] = Rcpt{To: r.Addr.String(), Orig: r.Orig.String(), User: r.User}
	}
	return e.Line()
}

// OutcomeLine is the line of what became of one recipient of a lease; nil when
// that says nothing, because nothing was tried.
func OutcomeLine(l *queue.Lease, it *queue.Item, o *queue.Outcome, now time.Time) []byte {
	e := Entry{At: stamp(now), ID: l.Envelope.ID, N: it.N, User: it.User, Route: l.Route, Epoch: it.Epoch, Attempt: it.Attempts + 1,
		Copy: it.Copy, Reply: text(o.Reply), Notice: o.Notice}
	if it.N < len(l.Envelope.Recipients) {
		e.To = l.Envelope.Recipients[it.N].Addr.String()
	}
	switch o.Kind {
	case queue.Done:
		e.Kind, e.CopyTo = Delivered, it.CopyTo
	case queue.Retry:
		e.Kind, e.Next = Deferred, stamp(o.At)
	case queue.Reroute:
		e.Kind = Asked
	case queue.Fail:
		e.Kind = Bounced
	case queue.Park:
		e.Kind = Parked
	case queue.Defer:
		if o.Doubt {
			return nil // a look that settled nothing; the next one follows
		}
		e.Kind, e.Next, e.Attempt = Deferred, stamp(o.At), it.Attempts // it may be there twice: the reply says so
	default:
		return nil
	}
	return e.Line()
}

// ActionLine is the line of what an operator did to a recipient. to is his
// address where it is known.
func ActionLine(a queue.Action, id mail.ID, r Entry, now time.Time) []byte {
	kinds := map[queue.Verb]Kind{queue.DoRetry: Retried, queue.DoHold: Held, queue.DoRelease: Released, queue.DoPark: Parked,
		queue.DoReroute: Rerouted, queue.DoDelete: Deleted}
	r.At, r.Kind, r.ID, r.Route, r.By, r.Reason = stamp(now), kinds[a.Verb], id, a.Route, text(a.By), text(a.Reason)
	return r.Line()
}

// stamp is a time as the journal keeps it: UTC, to the millisecond.
func stamp(t time.Time) time.Time { return t.UTC().Truncate(time.Millisecond) }

// longestText bounds what others wrote into a line, in octets.
const longestText = 1000

func text(s string) string { return clip(s, longestText) }

func clip(s string, n int) string {
	if len(s) > n {
		s = s[:n]
	}
	if !utf8.ValidString(s) {
		s = strings.ToValidUTF8(s, "\ufffd")
	}
	return s
}

// RemoteID gives the queue id under which a backend says that it took a message,
// empty when its reply does not tell: "queued as ID" (Postfix, Exim says "id=ID",
// Sendmail "ID Message accepted", Exchange "InternalId=ID", Dovecot's LMTP "ID
// Saved").
func RemoteID(reply string) string {
	f := strings.Fields(reply)
	for i, w := range f {
		lower := strings.ToLower(w)
		switch {
		case lower == "queued" && i+2 < len(f) && strings.EqualFold(f[i+1], "as"):
			return cleanID(f[i+2])
		case strings.HasPrefix(lower, "id="):
			return cleanID(w[len("id="):])
		case strings.HasPrefix(lower, "[internalid="), strings.HasPrefix(lower, "internalid="):
			return cleanID(w[strings.IndexByte(w, '=')+1:])
		case lower == "saved" && i > 0:
			return cleanID(f[i-1])
		case lower == "message" && i > 0 && i+1 < len(f) && strings.EqualFold(f[i+1], "accepted"):
			return cleanID(f[i-1])
		}
	}
	return ""
}

// cleanID takes what is no id away from a word; empty when nothing like one is
// left.
func cleanID(w string) string {
	w = strings.Trim(w, "<>()[],;.")
	if len(w) < 4 || strings.Count(w, ".") == 2 && len(w) <= 6 { // an enhanced status code
		return ""
	}
	return w
}
