package backfill

import (
	"fmt"
	"slices"

	"crossfade/backfill/imapconn"
)

// arrivals are the contents that were paired since deletions were last carried
// over, as a multiset: what is gone from one folder and among them was moved and
// not deleted. Of what came in earlier passes, over single folders or ended by an
// error, the ledger has the pairs: their content is read when something of the same
// size is gone.
type arrivals struct {
	keys    map[key]int
	sizes   map[int64]bool
	both    map[key]int        // by delivery key: copies that our relay delivered to both sides
	earlier map[int64][]copyAt // by size
}

// copyAt is where a message lies on the destination.
type copyAt struct {
	f   *folderRun
	uid uint32
}

func (a *arrivals) none() bool { return len(a.keys)+len(a.earlier) == 0 }

// arrived notes that a message of the source was paired in this pass.
func (f *folderRun) arrived(src uint32, id identity) {
	if !f.isAttic && f.p.again && f.p.deletes() && len(f.p.o.Only) == 0 {
		f.now = append(f.now, src)
		f.p.tally(func(*Report, *Progress) { f.p.arrivals.add(id) })
	}
}

func (a *arrivals) make() {
	if a.keys == nil {
		a.keys, a.sizes, a.both = map[key]int{}, map[int64]bool{}, map[key]int{}
	}
}

func (a *arrivals) add(id identity) {
	a.make()
	a.keys[id.Loose]++
	a.sizes[id.Size] = true
	if id.Delivery != (key{}) {
		a.both[id.Delivery]++
	}
}

// arriveEarlier finds what came in earlier passes, when anything is gone.
func (p *pass) arriveEarlier() error {
	gone := len(p.missing) > 0 || slices.ContainsFunc(p.every, func(f *folderRun) bool { return len(f.rec.Gone)+len(f.rec.Orphans) > 0 })
	if !gone {
		return nil
	}
	for _, f := range p.every {
		uids := f.cameEarlier()
		if len(uids) == 0 {
			continue
		}
		metas, err := p.listDest(f, uids)
		if err != nil {
			return folderError(f, inside("destination", err))
		}
		for _, m := range metas {
			if p.arrivals.earlier == nil {
				p.arrivals.earlier = map[int64][]copyAt{}
			}
			p.arrivals.earlier[m.Size] = append(p.arrivals.earlier[m.Size], copyAt{f, m.UID})
		}
	}
	return nil
}

// cameEarlier gives the copies of what came since deletions were last carried over,
// without those of this pass, and without what is gone again: it is no arrival of
// itself.
func (f *folderRun) cameEarlier() []uint32 {
	slices.Sort(f.now)
	var uids []uint32
	for _, r := range f.rec.Pairs {
		for i := range r.N {
			src := r.Src + i
			if _, now := slices.BinarySearch(f.now, src); src > f.rec.Carried && !now && !f.rec.Gone.has(src) {
				uids = append(uids, r.Dst+i)
			}
		}
	}
	slices.Sort(uids)
	return uids
}

// listDest gives the sizes of messages of a folder of the destination.
func (p *pass) listDest(f *folderRun, uids []uint32) ([]imapconn.Meta, error) {
	sel, err := p.dstReader.Select(f.destFolder())
	if err != nil {
		return nil, err
	}
	if sel.UIDValidity != f.rec.DstValidity {
		return nil, fmt.Errorf("folder %q: %w", f.name, imapconn.ErrChanged)
	}
	return p.dstReader.ListThese(uids, imapconn.Items{Size: true})
}

// learn reads what came earlier and has the size of something that is gone.
func (a *arrivals) learn(p *pass, gone []imapconn.Meta, theirs func(uint32) bool) error {
	byFolder := map[*folderRun][]uint32{}
	for _, m := range gone {
		if p.job.Host != "" && theirs(m.UID) { // its other copy has other fields on top
			a.learnAll(byFolder)
			continue
		}
		for _, at := range a.earlier[m.Size] {
			byFolder[at.f] = append(byFolder[at.f], at.uid)
		}
		if len(a.earlier[m.Size]) > 0 {
			a.make()
			a.sizes[m.Size] = true // as the server counts it
		}
		delete(a.earlier, m.Size)
	}
	for f, uids := range byFolder {
		if _, err := p.dstReader.Select(f.destFolder()); err != nil {
			return err
		}
		t := &fetcher{host: p.job.Host}
		slices.Sort(uids)
		if _, err := p.dstReader.Fetch(uids, imapconn.Items{Body: true}, t); err != nil {
			return err
		}
		for _, m := range t.msgs {
			a.add(m.id)
		}
	}
	return nil
}

// learnAll has all that came earlier read.
func (a *arrivals) learnAll(byFolder map[*folderRun][]uint32) {
	for size, list := range a.earlier {
		for _, at := range list {
			byFolder[at.f] = append(byFolder[at.f], at.uid)
		}
		a.make()
		a.sizes[size] = true
	}
	clear(a.earlier)
}

// take tells whether a message is one that came, and counts it.
func (a *arrivals) take(id identity) bool {
	switch {
	case a.keys[id.Loose] > 0:
		a.keys[id.Loose]--
		a.both[id.Delivery]--
	case id.Delivery != (key{}) && a.both[id.Delivery] > 0:
		a.both[id.Delivery]--
	default:
		return false
	}
	return true
}

// carried notes that what came until now has been looked at.
func (p *pass) carried() error {
	for _, f := range p.every {
		if last, _ := f.rec.Pairs.last(); last > f.rec.Carried {
			f.rec.Carried = last
			if err := f.save(); err != nil {
				return folderError(f, err)
			}
		}
	}
	return nil
}

// headerTold is how much of a header Options.Arrived gets.
const headerTold = 8 << 10

// tellArrived shows who wants to know what was appended.
func (f *folderRun) tellArrived(msgs []*incoming) {
	if f.p.o.Arrived == nil || f.isAttic {
		return
	}
	head := make([]byte, headerTold)
	for _, m := range msgs {
		n, _ := m.body.ReadAt(head, 0) // the end of a short message is an error, too
		f.p.mu.Lock()
		f.p.o.Arrived(head[:n])
		f.p.mu.Unlock()
	}
}
