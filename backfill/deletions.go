package backfill

import (
	"cmp"
	"errors"
	"fmt"
	"slices"

	"crossfade/backfill/imapconn"
)

const (
	defaultDeleteCeiling = 0.10
	alwaysDeletes        = 10 // messages, whatever the ceiling
)

// uidLister is a reader of a source that can be asked for its UIDs by themselves.
// Only from such a source deletions are carried over: each is asked about twice,
// in two ways. On a POP3 server, say, messages go away because they were read.
type uidLister interface {
	UIDsFrom(from uint32) ([]uint32, error)
}

func (p *pass) deletes() bool { return p.o.Deletions && p.c.DeleteCeiling >= 0 }

func (p *pass) ceiling() float64 {
	if p.c.DeleteCeiling == 0 {
		return defaultDeleteCeiling
	}
	return p.c.DeleteCeiling
}

// anchor is the copied message with the highest UID of a folder of the
// destination. While it is there with its content, no UID up to it was given to
// another message: a folder out of a backup may keep its UIDVALIDITY and do that.
type anchor struct {
	UID   uint32 `json:"uid"`
	Loose key    `json:"loose"`
}

// noteGone keeps in the record which copied messages the source does not list
// any more, or has marked as deleted.
func (f *folderRun) noteGone(metas []imapconn.Meta) {
	f.rec.Gone, f.rec.Doomed, f.rec.Stays, f.rec.Watched, f.rec.Missed, f.rec.Absent = nil, nil, nil, true, false, false
	dead := deadOf(f.rec.Pairs, metas)
	for _, u := range sortedKeys(dead) {
		if dead[u] {
			f.rec.Gone = append(f.rec.Gone, u)
		} else {
			f.rec.Doomed = append(f.rec.Doomed, u)
		}
	}
}

// settled tells whether nothing has to be looked at for what is gone: there is
// none, or it was told why it stays.
func (f *folderRun) settled() bool {
	k := f.rec.Stays
	return !f.p.deletes() || len(f.rec.Gone) == 0 && f.rec.Watched || k != nil && k.Ceiling == f.p.ceiling() && !f.p.o.AllowDeletions
}

// stays is why what is gone from the source is left on the destination.
type stays struct {
	Text    string  `json:"text"`
	Ceiling float64 `json:"ceiling"` // that was in force
}

// tellStays reports what is gone from the source and left on the destination.
func (f *folderRun) tellStays() {
	if s := f.rec.Stays; s != nil && f.p.deletes() && len(f.rec.Gone) > 0 {
		f.p.problem(Problem{Folder: f.src.Name, Class: ClassDeletions, Text: s.Text})
	}
}

// carryDeletions deletes on the destination what was deleted or moved away on the
// source. It comes last, and only when all folders could be copied: by then what
// was moved is in its new folder. No journal is needed: the pairs say what is to
// be deleted until it is, and to delete it twice does nothing.
func (p *pass) carryDeletions(runs []*folderRun) error {
	if len(p.o.Only) > 0 {
		return nil // what was moved may not be in its new folder
	}
	if !p.deletes() {
		return p.vanished()
	}
	if err := p.arriveEarlier(); err != nil {
		return err
	}
	gone, failed, err := p.lookAtGone(runs)
	if err != nil {
		return err
	}
	orphaned := slices.ContainsFunc(p.every, func(f *folderRun) bool { return len(f.rec.Orphans) > 0 })
	if (len(gone)+len(p.missing) > 0 || orphaned) && p.o.MayDelete != nil {
		if err := p.o.MayDelete(p.ctx); err != nil {
			return fmt.Errorf("carry deletions over: %w", err)
		}
	}
	p.doubt = p.doubts()
	for _, f := range gone {
		err := f.deleteGone()
		if err != nil && !skippable(err) {
			return folderError(f, err)
		}
		if err != nil {
			failed = errors.Join(failed, folderError(f, err))
		}
	}
	if err := p.deleteApart(); err != nil {
		return err
	}
	if err := p.carryOrphans(); err != nil {
		return err
	}
	if err := p.vanished(); err != nil || failed != nil {
		return cmp.Or(err, failed)
	}
	return p.carried()
}

// lookAtGone finds out of all folders what is gone and what of it was moved,
// before anything is deleted in the first of them.
func (p *pass) lookAtGone(runs []*folderRun) (gone []*folderRun, failed, err error) {
	for _, f := range runs {
		if len(f.rec.Gone) == 0 {
			continue
		}
		f.lane = p.lane
		err := f.lookAtGone()
		if err != nil && !skippable(err) {
			return nil, nil, folderError(f, err)
		}
		if err != nil {
			failed = errors.Join(failed, folderError(f, err))
			continue
		}
		gone = append(gone, f)
	}
	return gone, failed, nil
}

func (f *folderRun) lookAtGone() error {
	gone, err := f.confirm()
	if err != nil {
		return inside("source", err)
	}
	f.rec.Gone = gone
	f.moved, err = f.movedAway()
	return inside("destination", err)
}

func (f *folderRun) deleteGone() error {
	f.rec.Stays = nil
	if len(f.rec.Gone) > 0 {
		if err := f.deleteOn(); err != nil {
			return fmt.Errorf("destination: %w", err)
		}
	}
	f.tellStays()
	return f.save()
}

// confirm asks the source once more, in another way, which of the messages that
// were not in its list are gone.
func (f *folderRun) confirm() (uidSet, error) {
	src, ok := f.lane.src.(uidLister)
	if !ok {
		return nil, nil
	}
	for try := 0; ; try++ {
		sel, err := f.lane.src.Select(f.src)
		if err != nil {
			return nil, err
		}
		if sel.UIDValidity != f.rec.SrcValidity {
			return nil, fmt.Errorf("folder %q: %w", f.src.Name, imapconn.ErrChanged)
		}
		uids, err := src.UIDsFrom(1)
		if err != nil {
			return nil, err
		}
		if len(uids) < int(sel.Exists) {
			if try < 2 {
				continue // a message may have gone in between
			}
			return nil, fmt.Errorf("folder %q: %w: %d of %d", f.src.Name, imapconn.ErrShort, len(uids), sel.Exists)
		}
		return slices.DeleteFunc(slices.Clone(f.rec.Gone), func(u uint32) bool {
			_, there := slices.BinarySearch(uids, u)
			return there
		}), nil
	}
}

// deleteOn deletes the copies of what is gone, as far as that is safe.
func (f *folderRun) deleteOn() error {
	dst := f.lane.dst
	if !dst.Has("UIDPLUS") {
		f.leave("%d messages were deleted on the source and stay: the destination has no UIDPLUS, so single messages cannot be expunged", len(f.rec.Gone))
		return nil
	}
	sel, err := dst.Select(f.wire)
	if err != nil {
		return err
	}
	if _, last := f.rec.Pairs.last(); sel.UIDValidity != f.rec.DstValidity || sel.UIDNext != 0 && sel.UIDNext <= last {
		return fmt.Errorf("folder %q: %w", f.name, imapconn.ErrChanged) // the next pass matches by content again
	}
	proven, err := f.proven()
	if err != nil {
		return err
	}
	away, del, left := f.sort(f.moved, proven)
	if del, err = f.notLeftOut(del); err != nil {
		return err
	}
	all := f.rec.Pairs.count()
	most := f.p.most(all)
	switch over := len(del); {
	case over == 0 || f.p.o.AllowDeletions:
	case over > most:
		del = nil
		f.leave("%d of %d messages were deleted on the source, more than the %d that one pass may delete: none was deleted; %s deletes them", over, all, most, f.p.allowing())
	case f.p.doubt.text != "":
		del = nil
		f.leave("%d messages were deleted on the source and stay: %s", over, f.p.doubt.text)
		if f.p.doubt.passing {
			f.rec.Stays.Ceiling = lookAgain
		}
	}
	if left.unproven > 0 {
		f.leave("%d messages were deleted on the source and stay: it cannot be told that their UIDs on the destination still mean the same messages", left.unproven)
	}
	if left.adopted > 0 {
		f.leave("%d messages were deleted on the source and stay: they were on the destination without having been copied; %s deletes them", left.adopted, f.p.allowing())
	}
	return f.expunge(append(away, del...), len(away))
}

// leftThere counts what is gone and not deleted on the destination.
type leftThere struct {
	unproven int // it cannot be known there
	adopted  int // it was there before it was copied
}

// sort divides what is gone into what was moved, what was deleted, and how many
// of it stay.
func (f *folderRun) sort(moved map[uint32]bool, proven uint32) (away, del uidSet, left leftThere) {
	for _, u := range f.rec.Gone {
		switch d, ok := f.rec.Pairs.dest(u); {
		case !ok:
		case moved[d]:
			away = append(away, u)
		case d > proven:
			left.unproven++
		case f.rec.Theirs.has(d) && !f.p.o.AllowDeletions:
			left.adopted++
		default:
			del = append(del, u)
		}
	}
	return away, del, left
}

func (f *folderRun) leave(format string, a ...any) {
	text := fmt.Sprintf(format, a...)
	if f.rec.Stays != nil {
		text = f.rec.Stays.Text + "; " + text
	}
	f.rec.Stays = &stays{Text: text, Ceiling: f.p.ceiling()}
}

// expunge deletes copies by their UIDs on the source, in the folder that is open.
func (f *folderRun) expunge(del uidSet, moved int) error {
	var uids []uint32
	for _, u := range del {
		if d, ok := f.rec.Pairs.dest(u); ok {
			uids = append(uids, d)
		}
	}
	slices.Sort(uids)
	if len(uids) == 0 {
		return nil
	}
	err := f.lane.dst.Expunge(uids)
	var e *imapconn.Error
	if errors.As(err, &e) {
		f.leave("%d messages were deleted on the source and stay: %s", len(uids), e.Error())
		return nil
	}
	if err != nil {
		return err
	}
	f.p.crash("after-expunge")
	for _, u := range del {
		f.rec.Pairs.remove(u)
		f.rec.Gone.remove(u)
	}
	for _, d := range uids {
		f.rec.Theirs.remove(d)
	}
	if a := f.rec.Anchor; a != nil && slices.Contains(uids, a.UID) {
		f.rec.Anchor = nil
	}
	if a := f.rec.other().Anchor; a != nil && del.has(a.UID) {
		f.rec.other().Anchor = nil
	}
	f.p.tally(func(r *Report, _ *Progress) { r.Deleted += len(uids) - moved; r.Moved += moved })
	f.p.log.Info("deleted on the destination what is gone from the source", "user", f.p.job.User, "folder", f.src.Name, "deleted", len(uids)-moved, "moved", moved)
	return f.save()
}

// movedAway tells which copies of gone messages are of those that came to
// another folder in this pass: by content, each once.
func (f *folderRun) movedAway() (map[uint32]bool, error) {
	moved, arrivals := map[uint32]bool{}, &f.p.arrivals
	if arrivals.none() {
		return moved, nil
	}
	uids := slices.Clone(f.rec.Orphans)
	for _, u := range f.rec.Gone {
		if d, ok := f.rec.Pairs.dest(u); ok {
			uids.add(d)
		}
	}
	metas, err := f.p.listDest(f, uids)
	if err != nil {
		return nil, err
	}
	if len(arrivals.earlier) > 0 {
		if err := arrivals.learn(f.p, metas, f.rec.Theirs.has); err != nil {
			return nil, err
		}
		if _, err := f.p.dstReader.Select(f.destFolder()); err != nil {
			return nil, err
		}
	}
	uids = uids[:0]
	for _, m := range metas {
		if arrivals.sizes[m.Size] || len(arrivals.both) > 0 && f.rec.Theirs.has(m.UID) {
			uids = append(uids, m.UID)
		}
	}
	t := &fetcher{host: f.p.job.Host}
	if _, err := f.p.dstReader.Fetch(uids, imapconn.Items{Body: true}, t); err != nil {
		return nil, err
	}
	for _, m := range t.msgs {
		if arrivals.take(m.id) {
			moved[m.meta.UID] = true
		}
	}
	return moved, nil
}
