package backfill

import (
	"slices"

	"crossfade/backfill/imapconn"
)

// findElsewhere looks for messages of a journal that were appended to the reader's
// side, and that he moved before anybody could see where they were: copied again,
// he would have them twice. box is that side when it is the source of this pass, and
// the record as the other direction sees it; nil when it is the destination.
func (f *folderRun) findElsewhere(j *journal, box folderLister) (int, error) {
	p := f.p
	left := slices.DeleteFunc(slices.Clone(j.Entries), func(e entry) bool { return !f.unpaired(e) })
	if len(left) == 0 {
		return 0, nil
	}
	p.around.Lock() // the lanes come here
	defer p.around.Unlock()
	s := newSearch(p)
	s.reader = f.lane.dstReader
	s.list = func() (side, error) {
		err := p.lookAround(f.lane.dst)
		return p.dstSide.side, err
	}
	if box != nil {
		s.skip = p.attic.far.Dest
		s.list = func() (side, error) {
			if len(p.srcSide.folders) > 0 {
				return p.srcSide.side, nil
			}
			there, err := survey(box, nil, false)
			return there.side, err
		}
	}
	for _, e := range left {
		m := &incoming{meta: imapconn.Meta{UID: e.UID, Size: e.Size}, id: identity{Exact: e.Exact, Loose: e.Loose, Munged: e.Munged, Size: e.Size, Fragile: true}}
		s.sought = append(s.sought, &sought{f: f, m: m})
	}
	if err := s.takeAll(box != nil); err != nil {
		return 0, err
	}
	if err := s.look(); err != nil {
		return 0, err
	}
	return f.noteElsewhere(s, box != nil)
}

// takeAll has the messages taken that the ledger knows where the search looks.
func (s *search) takeAll(onSource bool) error {
	if !onSource {
		return s.takePaired()
	}
	recs, err := s.p.book.all()
	if err != nil {
		return err
	}
	for _, rec := range recs {
		s.validity[rec.Source] = rec.SrcValidity
		for u := range rec.Pairs.inverted().dests() {
			s.take(rec.Source, u)
		}
	}
	for _, x := range s.p.apart.all() {
		for u := range x.Pairs.inverted().dests() {
			s.take(x.Source, u)
		}
	}
	return nil
}

// noteElsewhere keeps what was found. What lies in the folder itself was looked for
// there already, and is another one.
func (f *folderRun) noteElsewhere(s *search, onSource bool) (n int, err error) {
	for _, x := range s.sought {
		if x.found == nil || x.found.own(f) {
			continue
		}
		from, to := apart{Source: f.rec.Source, SrcValidity: f.rec.SrcValidity}, apart{Dest: x.found.wire, DstValidity: x.found.validity}
		src, dst := x.m.meta.UID, x.found.uid
		if onSource {
			from, to = apart{Source: to.Dest, SrcValidity: to.DstValidity}, apart{Dest: from.Source, DstValidity: from.SrcValidity}
			src, dst = dst, src
		}
		if err := f.p.apart.add(from, to, src, dst); err != nil {
			return n, err
		}
		n++
		f.p.tally(func(r *Report, _ *Progress) { r.Adopted++ })
	}
	return n, nil
}
