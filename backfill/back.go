package backfill

import (
	"errors"
	"fmt"
	"slices"

	"crossfade/backfill/imapconn"
)

// ErrNoWayBack says that nothing can be brought from the destination of a job to
// its source: that is not a mailbox over IMAP that mail can be put into one by one.
var ErrNoWayBack = errors.New("nothing can be copied back to the old mailbox")

// ErrNotRead says that a pass was asked to carry the will of the user from the side
// that he does not read.
var ErrNotRead = errors.New("deletions are carried, and copies restored, from the side that the user reads only")

func noWayBack(why string) error {
	return fmt.Errorf("%w: %s (what lies on new only has to be brought there by hand)", ErrNoWayBack, why)
}

// WayBack tells whether a pass with Options.Back may work, as far as the job says:
// nil, or an [ErrNoWayBack] with the reason. That a server is Gmail's shows when a
// pass logs in.
func (j Job) WayBack() error {
	if j.From != nil {
		return noWayBack(fmt.Sprintf("it is read from %s, where nothing is ever written", j.sourceName()))
	}
	if j.Source.Server.Address == "" {
		return noWayBack("it has no IMAP server")
	}
	return nil
}

// contradicts says why options make no sense for a job.
func (o Options) contradicts(job Job) error {
	if o.Back {
		if err := job.WayBack(); err != nil {
			return err
		}
	}
	if o.Back != job.Settled && (o.Deletions || o.AllowDeletions || o.Restore) {
		return ErrNotRead
	}
	return nil
}

// turned is the job of a pass back. Who guards what is sent to the one server has
// it guarded at the other.
func (j Job) turned() Job {
	j.Source, j.Dest, j.Settled = j.Dest, j.Source, !j.Settled
	if j.Dest.Guard == nil {
		j.Dest.Guard = j.Source.Guard
	}
	return j
}

// sweeps tells whether the pass reads from the side that the user does not read.
func (p *pass) sweeps() bool { return p.job.Settled }

// returnable leaves out what is in other folders of the source too: the folder in
// which the other direction put what was refused, unless there is more in it, and
// on the way back virtual folders (RFC 6154, 2) that nobody copied.
func (p *pass) returnable(folders []imapconn.Folder, known map[string]string) ([]imapconn.Folder, error) {
	wrapped := p.attic.far.Dest
	if wrapped != "" {
		stats, _, err := p.srcBox.Statuses([]string{wrapped})
		if err != nil {
			return nil, inside("source", err)
		}
		if int(stats[wrapped].Messages) > p.attic.far.Pairs.count() {
			wrapped = ""
		}
	}
	return slices.DeleteFunc(slices.Clone(folders), func(f imapconn.Folder) bool {
		return wrapped != "" && f.Wire == wrapped || p.o.Back && known[f.Wire] == "" && virtual(f)
	}), nil
}

func virtual(f imapconn.Folder) bool {
	return slices.ContainsFunc([]string{`\all`, `\flagged`, `\important`}, func(a string) bool { return slices.Contains(f.Attrs, a) })
}

// wraps tells whether a message is one of ours that carries what the other
// direction's destination refused, wherever the user put it: what it carries is on
// the destination of this pass.
func (a *attic) wraps(id identity) bool {
	return slices.ContainsFunc(a.far.Attic, func(k kept) bool { return k.Exact == id.Exact || k.Loose == id.Loose })
}

// settleOther pairs what a pass in the other direction was appending when it
// ended. Until then such a message looks like new mail on this pass's source, and
// would be copied to where it came from.
func (p *pass) settleOther() error {
	if p.job.From != nil {
		return nil
	}
	recs, err := p.book.all()
	if err != nil {
		return err
	}
	var reader *imapconn.Reader
	for _, rec := range recs {
		if rec.Back == nil || rec.Back.Pending == nil {
			continue
		}
		if reader == nil {
			reader = p.reader(p.job.Source, nil)
			defer reader.Close()
		}
		if err := p.settleFolder(rec.inverted(), reader); err != nil {
			return fmt.Errorf("folder %q: look for what the last pass in the other direction appended: %w", nameOf(rec.Source), inside("source", err))
		}
	}
	return nil
}

// settleFolder is that for one folder, whose record is as the other direction sees
// it.
func (p *pass) settleFolder(rec *record, reader *imapconn.Reader) error {
	f := &folderRun{p: p, rec: rec, lane: &lane{dstReader: reader}, told: map[string]bool{}}
	f.src, f.wire, f.name = imapconn.Folder{Name: nameOf(rec.Source), Wire: rec.Source}, rec.Dest, nameOf(rec.Dest)
	j := rec.Pending
	found, err := f.find(j)
	switch {
	case errors.Is(err, imapconn.ErrChanged):
		found = 0 // all of the folder is matched by content
	case skippable(err):
		// Without the folder nothing of it can be copied. It may be back later.
		p.log.Warn("what a pass in the other direction appended is not looked for: the folder cannot be opened", "user", p.job.User, "folder", f.name, "error", err)
		return nil
	case err != nil:
		return err
	case !p.sweeps():
		n, err := f.findElsewhere(j, p.srcBox)
		if err != nil {
			return err
		}
		found += n
	}
	rec.Pending = nil
	if err := f.save(); err != nil {
		return err
	}
	p.crash("after-recover")
	p.log.Info("batch of the other direction recovered", "user", p.job.User, "folder", f.name, "entries", len(j.Entries), "found", found)
	return nil
}
