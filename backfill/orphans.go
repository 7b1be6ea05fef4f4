package backfill

import (
	"errors"
	"fmt"
	"slices"

	"crossfade/backfill/imapconn"
)

// When a folder is renamed on the source and another one is made with its old
// name, that one gets the place of the first on the destination, with its copies:
// these are orphans until they are matched by content, or are found to have come
// to another folder.

// orphan takes the copies of a folder of the source that is another one by now.
func (r *record) orphan() {
	for _, p := range r.Pairs {
		for i := range p.N {
			r.Orphans.add(p.Dst + i)
		}
	}
}

// carryOrphans deletes the orphans that came to another folder, and tells of the
// others, which stay.
func (p *pass) carryOrphans() error {
	for _, f := range p.every {
		if len(f.rec.Orphans) == 0 {
			continue
		}
		f.lane = p.lane
		if err := f.carryOrphans(); err != nil {
			return folderError(f, inside("destination", err))
		}
	}
	return nil
}

func (f *folderRun) carryOrphans() error {
	if !f.p.arrivals.none() && f.lane.dst.Has("UIDPLUS") {
		if f.moved == nil { // else it was looked into already
			var err error
			if f.moved, err = f.movedAway(); err != nil {
				return err
			}
		}
		if err := f.deleteOrphans(); err != nil {
			return err
		}
	}
	f.tellOrphans()
	return nil
}

func (f *folderRun) deleteOrphans() error {
	uids := slices.DeleteFunc(slices.Clone(f.rec.Orphans), func(u uint32) bool { return !f.moved[u] })
	if len(uids) == 0 {
		return nil
	}
	sel, err := f.lane.dst.Select(f.wire)
	if err != nil {
		return err
	}
	if sel.UIDValidity != f.rec.DstValidity {
		return fmt.Errorf("folder %q: %w", f.name, imapconn.ErrChanged)
	}
	err = f.lane.dst.Expunge(uids)
	var e *imapconn.Error
	if errors.As(err, &e) {
		return nil // they are told of
	}
	if err != nil {
		return err
	}
	f.p.crash("after-expunge")
	for _, u := range uids {
		f.rec.Orphans.remove(u)
		f.rec.Theirs.remove(u)
	}
	f.p.tally(func(r *Report, _ *Progress) { r.Moved += len(uids) })
	f.p.log.Info("deleted on the destination what was moved on the source", "user", f.p.job.User, "folder", f.src.Name, "moved", len(uids))
	return f.save()
}

// tellOrphans reports what stays.
func (f *folderRun) tellOrphans() {
	if n := len(f.rec.Orphans); n > 0 && f.p.deletes() {
		f.p.problem(Problem{Folder: f.src.Name, Class: ClassDeletions,
			Text: fmt.Sprintf("another folder on the source had this name: %d messages that were copied out of it stay in %q on the destination", n, f.name)})
	}
}
