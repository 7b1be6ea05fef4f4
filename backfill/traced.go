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
	out := Traced{User: job.User, Side: side, Server: acct.Server.Address, At: time.Now().UTC(), Places: map[string][]Place{}}
	if side == SideSource && job.From != nil {
		return out, fmt.Errorf("look for delivered mail of %s: the old mailbox is not reached over IMAP", job.User)
	}
	p := &pass{c: c, ctx: ctx, job: job, log: slog.New(slog.DiscardHandler), lane: &lane{}}
	p.throttle.patience = c.Patience
	defer p.close()
	t := &tracing{p: p, out: &out, keep: keep, acct: acct}
	if err := t.run(); err != nil {
		return out, fmt.Errorf("look for delivered mail of %s on %s: %w", job.User, acct.Server.Address, err)
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
	return nil
}

func (t *tracing) folder(r *imapconn.Reader, f imapconn.Folder) error {
	sel, err := r.Select(f)
	if err != nil || sel.Exists == 0 {
		return err
	}
	uids, err := r.UIDsFrom(1)
	if err != nil {
		return err
	}
	paired, err := t.pairs(f.Wire, sel.UIDValidity)
	if err != nil {
		return err
	}
	t.out.Messages += len(uids)
	for len(uids) > 0 {
		some := uids[:min(len(uids), receivedAtOnce)]
		uids = uids[len(some):]
		headers, err := r.Received(some)
		if err != nil {
			return err
		}
		for uid, h := range headers {
			id := queueID(h, "")
			if id == "" || t.keep != nil && !t.keep(id) {
				continue
			}
			t.out.Places[id] = append(t.out.Places[id], Place{Folder: f.Name, UID: uid, Validity: sel.UIDValidity, Paired: paired(uid)})
		}
	}
	return nil
}

// pairs tells of a folder which UIDs the ledger has in a pair.
func (t *tracing) pairs(wire string, validity uint32) (func(uint32) bool, error) {
	if t.out.Side == SideSource {
		rec, err := t.book.record(wire)
		return func(uid uint32) bool {
			_, ok := rec.Pairs.dest(uid)
			return ok && rec.SrcValidity == validity
		}, err
	}
	known := map[uint32]bool{}
	folders, _, err := t.book.folders()
	if err != nil {
		return nil, err
	}
	for _, src := range folders {
		rec, err := t.book.record(src)
		if err != nil {
			return nil, err
		}
		if rec.Dest == wire && rec.DstValidity == validity {
			for uid := range rec.Pairs.dests() {
				known[uid] = true
			}
		}
	}
	return func(uid uint32) bool { return known[uid] }, nil
}
