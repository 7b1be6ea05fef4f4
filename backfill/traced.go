package backfill

import (
	"context"
	"fmt"
	"log/slog"
	"time"

	"crossfade/backfill/imapconn"
)

// Place is where a message lies in a mailbox.
type Place struct {
	Folder   string `json:"folder"`
	UID      uint32 `json:"uid"`
	Validity uint32 `json:"uidvalidity"`
	// Paired tells that the ledger knows its counterpart on the other side: it was
	// copied there, or is a copy.
	Paired bool `json:"paired,omitempty"`
	// Twin is where that counterpart was when it was paired.
	Twin Twin `json:"-"`
}

// Twin is a place on the other side of a mailbox.
type Twin struct {
	// Wire is the folder's name as its server writes it; empty: one that is gone since.
	Wire     string
	Validity uint32 // UIDVALIDITY
}

// Traced is what of one side of a mailbox came through our relay: the messages
// with a Received field of ours.
type Traced struct {
	User     string
	Side     Side
	Server   string
	At       time.Time // when it began
	Messages int       // looked at
	// Places are the messages by the queue id in the topmost Received field of ours.
	Places map[string][]Place
	// Folders are the UIDVALIDITY of each folder that was looked into, by its name as
	// the server writes it.
	Folders map[string]uint32
	// Anew are the folders that are not what they were when mail was copied.
	Anew []Anew
	// Unread are messages that cannot be read: which they are is not known.
	Unread int
}

// receivedAtOnce is how many messages' Received fields are asked for at once.
const receivedAtOnce = 2000

// Traced reads the Received fields of every message on one side of a mailbox,
// over IMAP, and changes nothing. Job.Host says which fields are ours. keep says
// which queue ids are wanted; nil: all.
func (c *Copier) Traced(ctx context.Context, job Job, side Side, keep func(id string) bool) (Traced, error) {
	acct := job.Dest
	if side == SideSource {
		acct = job.Source
	}
	out := Traced{User: job.User, Side: side, Server: acct.Server.Address, At: time.Now().UTC(), Places: map[string][]Place{}, Folders: map[string]uint32{}}
	p := &pass{c: c, ctx: ctx, job: job, log: slog.New(slog.DiscardHandler), lane: &lane{}, dry: true}
	p.throttle.patience = c.Patience
	defer p.close()
	t := &tracing{p: p, out: &out, keep: keep, acct: acct}
	run := t.run
	if side == SideSource && job.From != nil {
		out.Server = job.sourceName()
		run = t.runFrom
	}
	if err := run(); err != nil {
		return out, fmt.Errorf("look for delivered mail of %s on %s: %w", job.User, out.Server, err)
	}
	return out, nil
}

// tracing is a Traced under way.
type tracing struct {
	p    *pass
	acct imapconn.Account
	out  *Traced
	keep func(id string) bool
	book *book
}

func (t *tracing) run() (err error) {
	if t.book, err = openBook(t.p.ctx, t.p.c.Ledger, t.p.job.User); err != nil {
		return err
	}
	s, err := t.p.c.Dialer.Open(t.p.ctx, t.acct)
	if err != nil {
		return err
	}
	t.p.dst = s // closed with the pass
	there, err := listFolders(s, nil, false)
	if err != nil {
		return err
	}
	r := t.p.reader(t.acct, nil)
	defer r.Close()
	for _, f := range there.folders {
		if !f.Selectable() || inOthers(f, there.ns) {
			continue
		}
		if err := t.folder(r, f); err != nil {
			return fmt.Errorf("folder %q: %w", f.Name, err)
		}
	}
	return t.anewBefore()
}

func (t *tracing) folder(r *imapconn.Reader, f imapconn.Folder) error {
	sel, err := r.Select(f)
	if err != nil {
		return err
	}
	paired, err := t.opened(f, sel)
	if err != nil || sel.Exists == 0 {
		return err
	}
	uids, err := r.UIDsFrom(1)
	if err != nil {
		return err
	}
	t.out.Messages += len(uids)
	for len(uids) > 0 {
		some := uids[:min(len(uids), receivedAtOnce)]
		uids = uids[len(some):]
		headers, failures, err := r.Received(some)
		if err != nil {
			return err
		}
		t.unread(failures)
		for uid, h := range headers {
			t.found(h, Place{Folder: f.Name, UID: uid, Validity: sel.UIDValidity}, paired)
		}
	}
	return nil
}

// unread counts what is there and cannot be read.
func (t *tracing) unread(failures []imapconn.Failure) {
	for _, x := range failures {
		if !x.Gone {
			t.out.Unread++
		}
	}
}

// found takes one message by its Received fields.
func (t *tracing) found(header []byte, at Place, paired func(uint32) (Twin, bool)) {
	id := queueID(header, "")
	if id == "" || t.keep != nil && !t.keep(id) {
		return
	}
	at.Twin, at.Paired = paired(at.UID)
	t.out.Places[id] = append(t.out.Places[id], at)
}
