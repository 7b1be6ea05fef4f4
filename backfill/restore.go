package backfill

import (
	"errors"
	"fmt"
	"slices"

	"crossfade/backfill/imapconn"
)

// restore finds out which copies are gone from the destination. Those of messages
// that the source still has are lost: see bringBack.
func (f *folderRun) restore() error {
	if !f.p.o.Restore || len(f.rec.Pairs) == 0 {
		return nil
	}
	there, err := f.uidsThere()
	if err != nil {
		return err
	}
	present := map[uint32]bool{}
	if f.reading != nil {
		for _, m := range f.reading.metas {
			present[m.UID] = true
		}
	}
	// A pass that was killed while it noted where lost copies are may have left them
	// in both places.
	apart := f.p.apart.sources(f.src.Wire, f.rec.SrcValidity)
	var left pairs
	gone := 0
	for _, r := range f.rec.Pairs {
		for i := range r.N {
			src, dst := r.Src+i, r.Dst+i
			switch {
			case there[dst]:
			case present[src] && !apart[src]:
				f.lost.add(src)
			default:
				delete(f.agreed, src)
				gone++
				continue
			}
			left.add(src, dst)
		}
	}
	if gone+len(f.lost) == 0 {
		return nil
	}
	if f.p.o.MayDelete != nil {
		if err := f.p.o.MayDelete(f.p.ctx); err != nil {
			return fmt.Errorf("copy again what is gone from there: %w", err)
		}
	}
	f.rec.Pairs = left
	f.failed = f.failed || len(f.lost) > 0 // until they are back
	if a := f.rec.Anchor; a != nil && !there[a.UID] {
		f.rec.Anchor = nil
	}
	if err := f.p.book.saveAgreed(f.p.ctx, f.rec, f.agreed); err != nil {
		return err
	}
	return f.save()
}

// uidsThere gives the UIDs of the folder on the destination.
func (f *folderRun) uidsThere() (map[uint32]bool, error) {
	sel, err := f.lane.dstReader.Select(f.destFolder())
	if err != nil {
		return nil, err
	}
	if sel.UIDValidity != f.rec.DstValidity {
		return nil, fmt.Errorf("folder %q: %w", f.name, imapconn.ErrChanged)
	}
	return uidsOfOpen(f.lane.dstReader, sel)
}

// uidsOfOpen gives the UIDs of the folder that is open; a short list is none.
func uidsOfOpen(r uidLister, sel imapconn.Selected) (map[uint32]bool, error) {
	uids, err := r.UIDsFrom(1)
	if err != nil {
		return nil, err
	}
	if len(uids) < int(sel.Exists) {
		return nil, fmt.Errorf("%w: %d of %d", imapconn.ErrShort, len(uids), sel.Exists)
	}
	there := make(map[uint32]bool, len(uids))
	for _, u := range uids {
		there[u] = true
	}
	return there, nil
}

// bringBack looks for the copies that are not where they were. One that a client
// moved to another folder of the side that is not read stays there, and is the
// message's part still. The others are copied again.
func (p *pass) bringBack() error {
	if !p.o.Restore {
		return nil
	}
	if err := p.lostApart(); err != nil {
		return inside("destination", err)
	}
	var lost []*folderRun
	for _, f := range p.every {
		if len(f.lost) > 0 {
			f.lane = p.lane
			lost = append(lost, f)
		}
	}
	if len(lost) == 0 {
		return nil
	}
	s, err := p.searchLost(lost)
	if err != nil {
		return err
	}
	for _, f := range lost {
		left, err := f.apartOr(s)
		if err == nil && left > 0 {
			p.log.Warn("copied messages are gone from the destination: what the source still has of them is copied again", "user", p.job.User, "folder", f.src.Name, "gone", left)
			f.reading, f.failed, f.repeated = nil, false, true
			err = f.sync()
		}
		if err != nil {
			return folderError(f, err)
		}
	}
	return nil
}

// searchLost looks for lost copies in all folders of the destination.
func (p *pass) searchLost(lost []*folderRun) (*search, error) {
	s := newSearch(p)
	for _, f := range lost {
		if _, err := p.src.Select(f.src); err != nil {
			return nil, folderError(f, inside("source", err))
		}
		metas := slices.DeleteFunc(slices.Clone(f.listed), func(m imapconn.Meta) bool { return !f.lost.has(m.UID) })
		if err := s.want(f, p.src, metas); err != nil {
			return nil, folderError(f, inside("source", err))
		}
	}
	if err := s.takePaired(); err != nil {
		return nil, err
	}
	return s, inside("destination", s.look())
}

// apartOr notes the lost copies of a folder that were found, and gives how many
// were not: their pairs are void.
func (f *folderRun) apartOr(s *search) (left int, err error) {
	found := map[uint32]bool{}
	for _, x := range s.sought {
		if x.f != f || x.found == nil || x.found.own(f) {
			continue
		}
		from, to := apart{Source: f.src.Wire, SrcValidity: f.rec.SrcValidity}, apart{Dest: x.found.wire, DstValidity: x.found.validity}
		if err := f.p.apart.add(from, to, x.m.meta.UID, x.found.uid); err != nil {
			return 0, err
		}
		f.p.crash("after-apart")
		found[x.m.meta.UID] = true
		f.p.tally(func(r *Report, _ *Progress) { r.Adopted++ })
	}
	for _, u := range f.lost {
		f.rec.Pairs.remove(u)
		if !found[u] {
			left++
			if err := f.p.apart.forget(f.src.Wire, f.rec.SrcValidity, u); err != nil {
				return 0, err
			}
		}
	}
	f.lost = nil
	return left, f.save()
}

// lostApart finds the messages whose part in another folder is gone from there too.
func (p *pass) lostApart() error {
	for _, x := range p.apart.all() {
		i := slices.IndexFunc(p.every, func(f *folderRun) bool { return f.src.Wire == x.Source && f.rec.SrcValidity == x.SrcValidity })
		if i < 0 || len(p.o.Only) > 0 {
			continue
		}
		f := p.every[i]
		there := map[uint32]bool{}
		sel, err := p.dstReader.Select(imapconn.Folder{Name: nameOf(x.Dest), Wire: x.Dest})
		if err == nil && sel.UIDValidity == x.DstValidity {
			there, err = uidsOfOpen(p.dstReader, sel)
		}
		if err != nil && !skippable(err) {
			return err
		}
		listed := slices.ContainsFunc(p.dstSide.folders, func(d imapconn.Folder) bool { return d.Wire == x.Dest })
		if errors.Is(err, imapconn.ErrShort) || err != nil && listed {
			continue // it is there, and what is in it cannot be told just now
		}
		var gone uidSet
		for _, r := range x.Pairs {
			for i := range r.N {
				if !there[r.Dst+i] {
					gone = append(gone, r.Src+i)
				}
			}
		}
		if err := f.lose(gone); err != nil {
			return err
		}
	}
	return nil
}

// lose counts messages as lost that the source still has.
func (f *folderRun) lose(gone uidSet) error {
	if len(gone) == 0 {
		return nil
	}
	if _, err := f.p.src.Select(f.src); err != nil {
		return inside("source", err)
	}
	metas, _, err := f.p.src.ListAll(f.p.listed())
	if err != nil {
		return inside("source", err)
	}
	f.listed = metas
	for _, m := range metas {
		if gone.has(m.UID) {
			f.lost.add(m.UID)
		}
	}
	return nil
}

// deleteApart deletes the parts in other folders of messages that the user deleted
// or moved: there they have no pair that says so.
func (p *pass) deleteApart() error {
	src, ok := p.src.(uidLister)
	if !ok {
		return nil
	}
	for _, x := range p.apart.all() {
		sel, err := p.src.Select(imapconn.Folder{Name: nameOf(x.Source), Wire: x.Source})
		if skippable(err) || err == nil && sel.UIDValidity != x.SrcValidity {
			continue
		}
		if err != nil {
			return inside("source", err)
		}
		there, err := uidsOfOpen(src, sel)
		if err != nil {
			return inside("source", err)
		}
		var gone uidSet
		for _, r := range x.Pairs {
			for i := range r.N {
				if !there[r.Src+i] {
					gone = append(gone, r.Src+i)
				}
			}
		}
		if err := p.expungeApart(x, gone); err != nil {
			return inside("destination", err)
		}
	}
	return nil
}

func (p *pass) expungeApart(x *apart, gone uidSet) error {
	if len(gone) == 0 {
		return nil
	}
	most := p.most(x.Pairs.count())
	if !p.o.AllowDeletions && (p.doubt.text != "" || len(gone) > most) || !p.dst.Has("UIDPLUS") {
		p.problem(Problem{Folder: nameOf(x.Source), Class: ClassDeletions,
			Text: fmt.Sprintf("%d messages were deleted on the source and stay in %q, where a client had moved them", len(gone), nameOf(x.Dest))})
		return nil
	}
	if p.o.MayDelete != nil {
		if err := p.o.MayDelete(p.ctx); err != nil {
			return fmt.Errorf("carry deletions over: %w", err)
		}
	}
	sel, err := p.dst.Select(x.Dest)
	if skippable(err) || err == nil && sel.UIDValidity != x.DstValidity {
		return p.apart.remove(x, gone)
	}
	if err != nil {
		return err
	}
	var uids uidSet
	for _, u := range gone {
		if d, ok := x.Pairs.dest(u); ok {
			uids.add(d)
		}
	}
	err = p.dst.Expunge(uids)
	var e *imapconn.Error
	if errors.As(err, &e) {
		p.problem(Problem{Folder: nameOf(x.Source), Class: ClassDeletions,
			Text: fmt.Sprintf("%d messages were deleted on the source and stay in %q: %s", len(gone), nameOf(x.Dest), e.Error())})
		return nil
	}
	if err != nil {
		return err
	}
	p.crash("after-expunge")
	p.tally(func(r *Report, _ *Progress) { r.Deleted += len(uids) })
	return p.apart.remove(x, gone)
}
