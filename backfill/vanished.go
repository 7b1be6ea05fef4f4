package backfill

import (
	"errors"
	"fmt"
	"slices"

	"crossfade/backfill/imapconn"
)

// vanished looks after folders that are gone from the source. Nothing of them is
// deleted but what came to another folder in this pass, as when a folder was
// renamed.
func (p *pass) vanished() error {
	for _, wire := range p.missing {
		rec, err := p.book.record(wire)
		if err != nil {
			return err
		}
		if rec.Pairs.count() == 0 {
			continue
		}
		f := &folderRun{p: p, lane: p.lane, rec: rec, told: map[string]bool{}}
		f.src, f.wire, f.name = imapconn.Folder{Name: nameOf(wire), Wire: wire}, rec.Dest, nameOf(rec.Dest)
		if err := f.moveFolder(); err != nil {
			return folderError(f, err)
		}
		if n := rec.Pairs.count(); n > 0 && p.deletes() {
			p.problem(Problem{Folder: f.src.Name, Class: ClassDeletions, Text: fmt.Sprintf("the folder is gone from the source: its %d messages stay in %q on the destination", n, f.name)})
		}
		rec.Missed, rec.Absent = true, false
		if err := f.save(); err != nil {
			return err
		}
	}
	return nil
}

// moveFolder deletes the copies of a vanished folder whose messages came to
// another one.
func (f *folderRun) moveFolder() error {
	// Looked into once it is looked into again only when a folder is new.
	if !f.p.deletes() || f.p.arrivals.none() || !f.lane.dst.Has("UIDPLUS") || f.rec.Missed && !f.p.fresh {
		return nil
	}
	sel, err := f.lane.dst.Select(f.wire)
	var e *imapconn.Error
	if errors.As(err, &e) && !temporary(e) {
		f.rec.Pairs = nil // it is gone there too
		return f.save()
	}
	if err != nil {
		return inside("destination", err)
	}
	if sel.UIDValidity != f.rec.DstValidity {
		return nil
	}
	for _, r := range f.rec.Pairs {
		for i := range r.N {
			f.rec.Gone = append(f.rec.Gone, r.Src+i)
		}
	}
	moved, err := f.movedAway()
	if err != nil {
		return inside("destination", err)
	}
	del := slices.DeleteFunc(slices.Clone(f.rec.Gone), func(u uint32) bool {
		d, ok := f.rec.Pairs.dest(u)
		return !ok || !moved[d]
	})
	f.rec.Gone = nil
	return inside("destination", f.expunge(del, len(del)))
}

// lookMissing finds the folders that the ledger knows and the source does not
// list any more. It is asked once more before that is believed. While the user is
// held it is an error: mail that came to such a folder since the pass before would
// not be copied, and in the next pass that nobody is held for it may be back, or
// under another name.
func (p *pass) lookMissing() error {
	if !p.o.Deletions || len(p.o.Only) > 0 {
		return nil
	}
	listed := map[string]bool{}
	for _, pr := range slices.Concat(p.pairings, p.outside) {
		listed[pr.src.Wire] = true
	}
	missing, err := p.book.others(listed)
	if err != nil || len(missing) == 0 {
		return err
	}
	again, err := p.srcBox.List()
	if err != nil {
		return inside("source", err)
	}
	for _, d := range again {
		listed[d.Wire] = d.Selectable() || listed[d.Wire]
	}
	p.again = true
	p.missing = slices.DeleteFunc(missing, func(wire string) bool { return listed[wire] })
	if !p.o.Final {
		return nil
	}
	for _, wire := range p.missing {
		err = errors.Join(err, p.absent(wire))
	}
	return err
}

// absent ends a final pass for a folder that the source does not list any more: once,
// as there may be no other pass before the next hold.
func (p *pass) absent(wire string) error {
	rec, err := p.book.record(wire)
	if err != nil {
		return err
	}
	n := rec.Pairs.count()
	if n == 0 || rec.Missed || rec.Absent {
		return nil
	}
	rec.Absent = true
	if err := p.book.save(p.ctx, rec); err != nil {
		return err
	}
	return fmt.Errorf("source: folder %q, of which %d messages were copied, is not listed any more, and was in the pass before: the next pass looks where its mail went", nameOf(wire), n)
}
