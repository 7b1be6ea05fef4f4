package audit

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"slices"
	"time"

	"crossfade/backfill"
	"crossfade/journal"
	"crossfade/mail"
	"crossfade/queue"
	"crossfade/router"
)

// Life is all that is known of one message.
type Life struct {
	ID        mail.ID   `json:"id"`
	Accepted  time.Time `json:"accepted,omitzero"` // zero: before the journal begins
	From      string    `json:"from"`              // reverse-path; empty: the null reverse-path
	MessageID string    `json:"message_id,omitempty"`
	Size      int64     `json:"size,omitempty"`
	Client    string    `json:"client,omitempty"`
	NoticeOf  mail.ID   `json:"notice_of,omitempty"` // the message that this notice of ours is about
	Withdrawn string    `json:"withdrawn,omitempty"` // why it was taken back

	Recipients []LifeRcpt `json:"recipients"`
	Damaged    []string   `json:"damaged,omitempty"` // parts of the journal that cannot be read: more may have happened
}

// LifeRcpt is what became of one recipient.
type LifeRcpt struct {
	N     int    `json:"n"`
	To    string `json:"to"`
	Orig  string `json:"orig,omitempty"` // as the sender wrote it
	User  string `json:"user,omitempty"`
	State string `json:"state,omitempty"` // the user's, now
	Now   string `json:"now"`             // where the message is by the journal and the queue
	Steps []Step `json:"steps"`

	// Old and New are where it lies in the mailboxes. LookError is why that is not
	// known.
	Old       []backfill.Place `json:"old,omitempty"`
	New       []backfill.Place `json:"new,omitempty"`
	Looked    bool             `json:"looked"`
	LookError string           `json:"look_error,omitempty"`
}

// Step is one thing that happened to a recipient.
type Step struct {
	At      time.Time    `json:"at"`
	Kind    journal.Kind `json:"kind"`
	Route   mail.Route   `json:"route,omitempty"`
	State   router.State `json:"state,omitempty"` // of the user, when the route was decided
	Epoch   uint64       `json:"epoch,omitempty"`
	Attempt int          `json:"attempt,omitempty"`
	Copy    bool         `json:"copy,omitempty"`
	CopyTo  mail.Route   `json:"copy_to,omitempty"`
	Reply   string       `json:"reply,omitempty"`
	// RemoteID is the queue id under which the backend took it, where its reply tells.
	RemoteID string    `json:"remote_id,omitempty"`
	Notice   mail.ID   `json:"notice,omitempty"`
	Next     time.Time `json:"next,omitzero"`
	By       string    `json:"by,omitempty"`
	Reason   string    `json:"reason,omitempty"`
}

// ErrUnknown tells that nothing is known of a message.
var ErrUnknown = errors.New("nothing is known of such a message")

// mostLives bounds how many messages with one Message-ID are told of: anybody can send
// as many as he likes.
const mostLives = 20

// Bounds of the time that Why takes, by what it waits for.
const (
	findTime = time.Minute     // the journal: of what is in its files the index tells
	lookTime = 2 * time.Minute // each mailbox
)

// find looks for a message in the journal, within the time for that.
func (a *Auditor) find(ctx context.Context, id string) ([]journal.Entry, []string, error) {
	limit := cmp.Or(a.FindTime, findTime)
	fctx, cancel := context.WithTimeout(ctx, limit)
	defer cancel()
	lines, damaged, err := a.Journal.Find(fctx, id)
	if err != nil && fctx.Err() != nil && ctx.Err() == nil {
		err = fmt.Errorf("it takes longer than %s: when much of it has not come into the journal's files (the log says why: \"the journal cannot be written\"), there is no index of that part; "+
			"mend that, and ask again: %w", limit, err)
	}
	if err != nil {
		return nil, damaged, fmt.Errorf("look for %s in the journal: %w", id, err)
	}
	return lines, damaged, nil
}

// Why tells the life of a message, by its queue id; or of the messages that have a
// Message-ID, of which it tells of the first 20. look says whether the mailboxes are looked into.
func (a *Auditor) Why(ctx context.Context, id string, look bool) ([]Life, error) {
	lines, damaged, err := a.find(ctx, id)
	if err != nil {
		return nil, err
	}
	ids, more := idsOf(lines)
	if more > 0 {
		damaged = append(damaged, fmt.Sprintf("%d more messages have this Message-ID: ask for them by their queue ids", more))
	}
	if len(ids) == 0 && mail.ID(id).Valid() {
		ids = append(ids, mail.ID(id)) // perhaps it waits since before the journal began
	}
	var lives []Life
	for _, one := range ids {
		if string(one) != id { // by Message-ID only some of its lines are found
			var worse []string
			if lines, worse, err = a.find(ctx, string(one)); err != nil {
				return nil, err
			}
			damaged = append(damaged, worse...)
		}
		l, err := a.life(ctx, one, lines)
		if errors.Is(err, ErrUnknown) {
			continue
		}
		if err != nil {
			return nil, err
		}
		if look {
			a.lookFor(ctx, &l)
		}
		slices.Sort(damaged)
		l.Damaged = slices.Compact(damaged)
		lives = append(lives, l)
	}
	if len(lives) == 0 {
		return nil, fmt.Errorf("%w: %s is no queue id and no Message-ID in the journal or the queue", ErrUnknown, id)
	}
	return lives, nil
}

// idsOf gives the messages that lines are about, in their order, and how many more
// there are than are told of.
func idsOf(lines []journal.Entry) (ids []mail.ID, more int) {
	seen := map[mail.ID]bool{}
	for _, e := range lines {
		if seen[e.ID] {
			continue
		}
		seen[e.ID] = true
		if len(ids) < mostLives {
			ids = append(ids, e.ID)
		} else {
			more++
		}
	}
	return ids, more
}

// life joins the lines about one message with the queue and the state table.
func (a *Auditor) life(ctx context.Context, id mail.ID, lines []journal.Entry) (Life, error) {
	l := Life{ID: id, Recipients: []LifeRcpt{}}
	e, err := a.Queue.Get(ctx, id)
	waits := err == nil
	if err != nil && !errors.Is(err, queue.ErrNotFound) {
		return l, fmt.Errorf("ask the queue for %s: %w", id, err)
	}
	if len(lines) == 0 && !waits {
		return l, ErrUnknown
	}
	for _, line := range lines {
		l.take(line)
	}
	if waits {
		l.wait(&e)
	}
	for i := range l.Recipients {
		if err := a.states(ctx, &l.Recipients[i]); err != nil {
			return l, err
		}
	}
	return l, nil
}

func (l *Life) rcpt(n int) *LifeRcpt {
	for len(l.Recipients) <= n {
		l.Recipients = append(l.Recipients, LifeRcpt{N: len(l.Recipients), Steps: []Step{}, Now: "nothing is known of it since it was accepted"})
	}
	return &l.Recipients[n]
}

func (l *Life) take(e journal.Entry) {
	switch e.Kind {
	case journal.Accepted:
		l.Accepted, l.From, l.MessageID, l.Size, l.Client, l.NoticeOf = e.At, e.From, e.MessageID, e.Size, e.Client, e.NoticeOf
		for n, r := range e.Rcpts {
			rc := l.rcpt(n)
			rc.To, rc.Orig, rc.User = r.To, r.Orig, r.User
		}
		return
	case journal.Withdrawn:
		l.Withdrawn = e.Reason
		for i := range l.Recipients {
			l.Recipients[i].Now = "taken back: " + e.Reason
		}
		return
	}
	rc := l.rcpt(e.N)
	if rc.To == "" {
		rc.To, rc.User = e.To, e.User
	}
	rc.Steps = append(rc.Steps, Step{At: e.At, Kind: e.Kind, Route: e.Route, Epoch: e.Epoch, Attempt: e.Attempt, Copy: e.Copy, CopyTo: e.CopyTo,
		Reply: e.Reply, RemoteID: remoteID(e), Notice: e.Notice, Next: e.Next, By: e.By, Reason: e.Reason})
	if !e.Copy {
		rc.Now = nowOf(e)
	}
}

func remoteID(e journal.Entry) string {
	if e.Kind != journal.Delivered {
		return ""
	}
	return journal.RemoteID(e.Reply)
}

// nowOf says where a recipient is after a step, when nothing came behind it.
func nowOf(e journal.Entry) string {
	switch e.Kind {
	case journal.Delivered:
		return "delivered to " + string(e.Route)
	case journal.Bounced:
		return "bounced to the sender by " + string(e.Notice)
	case journal.Deleted:
		return "deleted by " + e.By
	}
	return "in the queue by the journal, and not there now"
}

// wait adds what the queue says.
func (l *Life) wait(e *queue.Entry) {
	if l.Accepted.IsZero() && e.Envelope != nil {
		l.From, l.MessageID, l.Size = e.Envelope.From.String(), e.Envelope.MessageID, e.Envelope.Size
	}
	for i := range e.Rcpts {
		q := &e.Rcpts[i]
		rc := l.rcpt(q.N)
		if rc.To == "" {
			rc.To, rc.User = q.Addr.String(), q.User
		}
		text := string(q.State)
		if q.HeldBy != "" {
			text += " by " + q.HeldBy
		}
		if q.Route != "" {
			text += " for " + string(q.Route)
		}
		if !q.Due.IsZero() {
			text += ", due " + q.Due.UTC().Format(time.RFC3339)
		}
		if q.LastReply != "" {
			text += ": " + q.LastReply
		}
		if q.Copy {
			rc.Now += "; a second copy is " + text
		} else {
			rc.Now = text
		}
	}
}

// states adds the user's state now, and at each step.
func (a *Auditor) states(ctx context.Context, rc *LifeRcpt) error {
	if rc.User == "" {
		return nil
	}
	u, err := a.Users.User(ctx, rc.User)
	switch {
	case errors.Is(err, router.ErrNoUser):
		rc.State = "in no table"
	case err != nil:
		return fmt.Errorf("ask for the state of %s: %w", rc.User, err)
	default:
		rc.State = string(u.State)
	}
	history, err := a.Users.History(ctx, rc.User, 10_000)
	if err != nil {
		return fmt.Errorf("ask for the history of %s: %w", rc.User, err)
	}
	for i := range rc.Steps {
		s := &rc.Steps[i]
		for _, c := range history { // newest first
			if s.Epoch > 0 && c.Epoch <= s.Epoch {
				s.State = c.To
				break
			}
		}
	}
	return nil
}

// lookFor looks for the message in the mailboxes of its recipients.
func (a *Auditor) lookFor(ctx context.Context, l *Life) {
	for i := range l.Recipients {
		rc := &l.Recipients[i]
		if rc.User == "" {
			continue
		}
		if a.Mailboxes == nil {
			rc.LookError = "the mailboxes are not reached over IMAP"
			continue
		}
		old, err := a.placesOf(ctx, rc.User, mail.Old, l.ID)
		neu, err2 := a.placesOf(ctx, rc.User, mail.New, l.ID)
		rc.Looked, rc.Old, rc.New = true, old, neu
		if err := errors.Join(err, err2); err != nil {
			rc.Looked, rc.LookError = false, err.Error()
		}
	}
}

// placesOf looks for a message on one side, within the time for that.
func (a *Auditor) placesOf(ctx context.Context, user string, side mail.Route, id mail.ID) ([]backfill.Place, error) {
	ctx, cancel := context.WithTimeoutCause(ctx, lookTime, fmt.Errorf("it takes longer than %s: --no-look leaves the mailboxes out", lookTime))
	defer cancel()
	t, err := a.Mailboxes.Traced(ctx, user, side, func(found string) bool { return found == string(id) })
	if cause := context.Cause(ctx); err != nil && cause != nil {
		err = fmt.Errorf("look into the mailbox on %s: %w", side, cause)
	}
	return t.Places[string(id)], err
}
