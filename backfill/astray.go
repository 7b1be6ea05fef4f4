package backfill

import (
	"errors"
	"slices"
	"strings"

	"crossfade/backfill/imapconn"
)

// A sweep copies what looks new on the side that the user does not read. Some of
// it is not: a phone that is still set to that side files a message away, or a
// folder got a new UIDVALIDITY. The message itself is on the reader's side already,
// where it was copied to or wherever the reader moved it since. So before a sweep
// copies anything, and only when some message of a pair is gone from its source, or
// pairs were voided, the messages that look new are looked for in all folders of
// the reader's side, by content and as a multiset: one there counts only when no
// living message of the source accounts for it.

// sweeping is that look.
type sweeping struct {
	p    *pass
	runs []*folderRun
	recs map[string]*record // of all folders of the source, by name on the wire
	// dead are the messages of pairs that are gone from the source, or marked as
	// deleted there, by folder: true for those that are gone.
	dead  map[string]map[uint32]bool
	void  bool                       // pairs of a folder mean other messages by now
	apart map[*apart]map[uint32]bool // the same of messages that lie apart
}

// fresh are the messages of a folder of the source that a sweep would copy.
type fresh struct {
	metas []imapconn.Meta
	void  bool   // the pairs mean other messages
	last  uint32 // the highest UID that was listed: what is above waits for the next pass
	sel   imapconn.Selected
}

// sweep looks at what a sweep would copy, and gives the folders in which anything
// is left to do. Folders are made on the reader's side for messages only.
func (p *pass) sweep(runs []*folderRun) (left []*folderRun, failed, err error) {
	if p.src == nil {
		p.src = p.srcBox.NewReader()
	}
	t := &sweeping{p: p, runs: runs, recs: map[string]*record{}, dead: map[string]map[uint32]bool{}}
	for _, f := range runs {
		err := t.list(f)
		if err != nil && !skippable(err) {
			return nil, nil, folderError(f, err)
		}
		if err != nil {
			failed = errors.Join(failed, folderError(f, err))
			f.failed = true
		}
	}
	if err := t.trace(); err != nil {
		return nil, nil, err
	}
	for _, f := range runs {
		switch {
		case f.fresh == nil: // it cannot be read, and its error says why
		case f.exists:
			left = append(left, f)
		case len(f.fresh.metas) > 0:
			f.remade()
			left = append(left, f)
		}
	}
	unmade, err := p.prepare(left)
	if err != nil {
		return nil, nil, inside("destination", err)
	}
	return slices.DeleteFunc(left, func(f *folderRun) bool { return f.unmade }), errors.Join(failed, unmade), nil
}

// remade keeps in mind what was copied to a folder that the reader did away with:
// it is made again for new mail, and not filled again.
func (f *folderRun) remade() {
	if f.rec.DstValidity == 0 || len(f.rec.Pairs) == 0 {
		return
	}
	for _, r := range f.rec.Pairs {
		for i := range r.N {
			f.rec.Known.add(r.Src + i)
			// When the reader gave the folder another name, its mail comes to the source
			// under that one with the next pass back, and goes from here.
			f.rec.other().Orphans.add(r.Src + i)
		}
	}
	f.rec.Pairs = nil
}

// list finds out what a folder of the source has that looks new, and what is gone.
func (t *sweeping) list(f *folderRun) error {
	sel, err := t.p.src.Select(f.src)
	if err != nil {
		return inside("source", err)
	}
	metas, listed, err := t.p.src.ListAll(t.p.listed())
	if err != nil {
		return inside("source", err)
	}
	fr := &fresh{sel: listed}
	lastSrc, lastDst := f.rec.Pairs.last()
	dst, known := t.p.dstSide.status[f.wire]
	fr.void = f.rec.SrcValidity != 0 && (sel.UIDValidity != f.rec.SrcValidity || sel.UIDNext != 0 && sel.UIDNext <= lastSrc) ||
		known && f.rec.DstValidity != 0 && (dst.UIDValidity != f.rec.DstValidity || dst.UIDNext <= lastDst)
	t.void = t.void || fr.void
	for _, m := range metas {
		fr.last = max(fr.last, m.UID)
	}
	f.fresh = fr
	pairs := f.rec.Pairs
	if fr.void {
		pairs = nil
	}
	apart := t.p.apart.sources(f.src.Wire, sel.UIDValidity)
	in, _ := t.p.left(metas, pairs)
	for _, m := range in {
		_, paired := pairs.dest(m.UID)
		r := f.rec.Refused[m.UID]
		if !paired && !apart[m.UID] && (fr.void || !f.rec.Known.has(m.UID) && (r == nil || !r.Wrapped)) {
			fr.metas = append(fr.metas, m)
		}
	}
	if !fr.void {
		t.dead[f.src.Wire] = deadOf(pairs, metas)
	}
	return nil
}

// deadOf gives the messages of pairs that a list has not, true, or has marked as
// deleted, false.
func deadOf(p pairs, metas []imapconn.Meta) map[uint32]bool {
	dead := map[uint32]bool{}
	for _, r := range p {
		for i := range r.N {
			dead[r.Src+i] = true
		}
	}
	for _, m := range metas {
		if _, paired := dead[m.UID]; !paired {
			continue
		}
		if slices.ContainsFunc(m.Flags, func(f string) bool { return strings.EqualFold(f, deletedFlag) }) {
			dead[m.UID] = false
		} else {
			delete(dead, m.UID)
		}
	}
	return dead
}

// trace notes which of the messages that look new are on the reader's side.
func (t *sweeping) trace() error {
	if !slices.ContainsFunc(t.runs, func(f *folderRun) bool { return f.fresh != nil && len(f.fresh.metas) > 0 }) {
		return nil
	}
	if err := t.lookAtOthers(); err != nil {
		return inside("source", err)
	}
	gone := t.void
	for _, dead := range t.dead {
		gone = gone || len(dead) > 0
	}
	for _, dead := range t.apart {
		gone = gone || len(dead) > 0
	}
	if !gone {
		if twice, err := t.delivered(); err != nil || !twice {
			return inside("source", err)
		}
	}
	s := newSearch(t.p)
	if err := t.want(s); err != nil {
		return inside("source", err)
	}
	if len(s.sought) == 0 {
		return nil
	}
	t.account(s)
	if err := s.look(); err != nil {
		return inside("destination", err)
	}
	return t.note(s)
}

// delivered tells whether our relay delivered one of the messages, and may have
// brought it to both sides: then the reader may have moved his.
func (t *sweeping) delivered() (bool, error) {
	src, ok := t.p.src.(interface {
		Received(uids []uint32) (map[uint32][]byte, []imapconn.Failure, error)
	})
	if !ok || t.p.job.Host == "" {
		return false, nil
	}
	for _, f := range t.runs {
		if f.fresh == nil || len(f.fresh.metas) == 0 {
			continue
		}
		if _, err := t.p.src.Select(f.src); err != nil {
			return false, folderError(f, err)
		}
		headers, _, err := src.Received(uidsOf(f.fresh.metas))
		if err != nil {
			return false, folderError(f, err)
		}
		for _, h := range headers {
			if queueID(h, t.p.job.Host) != "" {
				return true, nil
			}
		}
	}
	return false, nil
}

// lookAtOthers finds out what is gone from the other folders of the source, after
// the lists of those that have something new: what was moved between the two would
// look copied else.
func (t *sweeping) lookAtOthers() error {
	recs, err := t.p.book.all()
	if err != nil {
		return err
	}
	var last *folderRun
	for _, f := range t.runs {
		t.recs[f.src.Wire] = f.rec
		if f.fresh != nil {
			last = f
		}
	}
	for _, f := range t.runs {
		if f == last || f.fresh == nil || f.fresh.void {
			continue
		}
		if err := t.again(f.rec, f.fresh.sel, nil); err != nil {
			return err
		}
	}
	for _, rec := range recs {
		if t.recs[rec.Source] != nil || rec.Source == "" {
			continue
		}
		t.recs[rec.Source] = rec
		if err := t.again(rec, selectedAs(rec.Mark), rec); err != nil {
			return err
		}
	}
	return t.lookApart()
}

// selectedAs is what opening a folder tells when its status is this.
func selectedAs(st imapconn.Status) imapconn.Selected {
	return imapconn.Selected{Exists: st.Messages, UIDNext: st.UIDNext, UIDValidity: st.UIDValidity, ModSeq: st.ModSeq}
}

// again looks at a folder of the source that was listed when it was in a certain
// state, and lists it when that is another by now. known is its record where the
// list was an earlier pass's.
func (t *sweeping) again(rec *record, then imapconn.Selected, known *record) error {
	if len(rec.Pairs) == 0 {
		return nil
	}
	now, err := t.p.src.Select(imapconn.Folder{Name: nameOf(rec.Source), Wire: rec.Source})
	if skippable(err) { // the folder is gone, and all that was in it
		t.dead[rec.Source] = deadOf(rec.Pairs, nil)
		return nil
	}
	if err != nil {
		return err
	}
	if now.UIDValidity != rec.SrcValidity {
		t.void = true // a later pass looks into it; what it had may have come here
		t.dead[rec.Source] = deadOf(rec.Pairs, nil)
		return nil
	}
	if now.ModSeq != 0 && now.ModSeq == then.ModSeq && now.UIDNext == then.UIDNext && now.Exists == then.Exists {
		if known != nil {
			t.dead[rec.Source] = known.dead()
		}
		return nil
	}
	metas, _, err := t.p.src.ListAll(imapconn.Items{Flags: true})
	if err == nil {
		t.dead[rec.Source] = deadOf(rec.Pairs, metas)
	}
	return err
}

// dead is what the last list of the folder said.
func (r *record) dead() map[uint32]bool {
	out := map[uint32]bool{}
	for _, u := range r.Gone {
		out[u] = true
	}
	for _, u := range r.Doomed {
		out[u] = false
	}
	return out
}

// lookApart finds out what is gone of the messages that lie apart.
func (t *sweeping) lookApart() error {
	t.apart = map[*apart]map[uint32]bool{}
	for _, x := range t.p.apart.all() {
		sel, err := t.p.src.Select(imapconn.Folder{Name: nameOf(x.Source), Wire: x.Source})
		if err != nil && !skippable(err) {
			return err
		}
		var metas []imapconn.Meta
		if err == nil && sel.UIDValidity == x.SrcValidity {
			if metas, _, err = t.p.src.ListAll(imapconn.Items{Flags: true}); err != nil {
				return err
			}
		}
		t.apart[x] = deadOf(x.Pairs, metas)
	}
	return nil
}

// want reads what looks new, for its content only.
func (t *sweeping) want(s *search) error {
	for _, f := range t.runs {
		if f.fresh == nil || len(f.fresh.metas) == 0 {
			continue
		}
		if _, err := t.p.src.Select(f.src); err != nil {
			return folderError(f, err)
		}
		if err := s.want(f, t.p.src, f.fresh.metas); err != nil {
			return folderError(f, err)
		}
	}
	return nil
}

// account tells the search which messages of the destination are accounted for,
// and which were until their part on the source went.
func (t *sweeping) account(s *search) {
	for x, dead := range t.apart {
		for _, r := range x.Pairs {
			for i := range r.N {
				if _, gone := dead[r.Src+i]; gone {
					s.widow(x.Dest, r.Dst+i, &widow{apart: x, src: r.Src + i})
				} else {
					s.take(x.Dest, r.Dst+i)
				}
			}
		}
	}
	for wire, rec := range t.recs {
		if f := t.run(wire); f != nil && f.fresh != nil && f.fresh.void {
			continue
		}
		s.validity[rec.Dest] = rec.DstValidity
		dead := t.dead[wire]
		for _, r := range rec.Pairs {
			for i := range r.N {
				if _, gone := dead[r.Src+i]; gone {
					s.widow(rec.Dest, r.Dst+i, &widow{rec: rec, src: r.Src + i})
				} else {
					s.take(rec.Dest, r.Dst+i)
				}
			}
		}
	}
	s.bound = !t.void
}

func (t *sweeping) run(wire string) *folderRun {
	if i := slices.IndexFunc(t.runs, func(f *folderRun) bool { return f.src.Wire == wire }); i >= 0 {
		return t.runs[i]
	}
	return nil
}

// note keeps what was found: in the same folder as a pair, else apart. What had
// the message before loses it.
func (t *sweeping) note(s *search) error {
	changed := map[*record]bool{}
	for _, x := range s.sought {
		if x.found == nil || x.found.own(x.f) && x.found.widow == nil {
			continue // in its own folder it is adopted like any other
		}
		if w := x.found.widow; w != nil && w.apart != nil {
			if err := t.p.apart.remove(w.apart, uidSet{w.src}); err != nil {
				return err
			}
		} else if w != nil {
			w.rec.Pairs.remove(w.src)
			w.rec.Gone.remove(w.src)
			if !t.dead[w.rec.Source][w.src] {
				w.rec.Known.add(w.src) // it is there still, marked as deleted
			}
			changed[w.rec] = true
		}
		if x.found.own(x.f) {
			x.f.rec.paired(x.m.meta.UID, x.found.uid, x.m.id.Loose, x.found.id.Loose)
			changed[x.f.rec] = true
		} else if err := t.p.apart.add(apart{Source: x.f.src.Wire, SrcValidity: x.f.fresh.sel.UIDValidity},
			apart{Dest: x.found.wire, DstValidity: x.found.validity}, x.m.meta.UID, x.found.uid); err != nil {
			return err
		}
		t.p.crash("after-apart")
		t.p.tally(func(r *Report, _ *Progress) { r.Adopted++ })
		x.f.fresh.metas = slices.DeleteFunc(x.f.fresh.metas, func(m imapconn.Meta) bool { return m.UID == x.m.meta.UID })
		t.p.log.Info("a message was moved on the side that is not read", "user", t.p.job.User, "folder", x.f.src.Name, "uid", x.m.meta.UID, "lies_in", nameOf(x.found.wire))
	}
	for rec := range changed {
		if err := t.p.book.save(t.p.ctx, rec); err != nil {
			return err
		}
	}
	return nil
}
