package backfill

import (
	"fmt"
	"slices"

	"crossfade/backfill/imapconn"
)

// search looks for messages of the source in all folders of the destination.
type search struct {
	p      *pass
	sought []*sought
	// taken are messages of the destination that others account for, by folder, and
	// widows those that did until their part on the source went.
	taken    map[string]map[uint32]bool
	widows   map[string]map[uint32]*widow
	validity map[string]uint32 // for which both hold
	// bound has only as many found that are no widows as there are widows that are
	// gone from their place: no more can have been moved there.
	bound bool
	lost  int
	found []*stray

	reader *imapconn.Reader
	list   func() (side, error) // the folders
	skip   string               // the folder of wrapped messages
}

// sought is a message that is looked for.
type sought struct {
	f     *folderRun
	m     *incoming
	found *stray
}

// widow is a message of the destination whose part on the source is gone.
type widow struct {
	rec   *record
	apart *apart // where the two lay apart
	src   uint32
}

// stray is a message of the destination that nothing on the source accounts for.
type stray struct {
	wire     string
	validity uint32
	uid      uint32
	id       identity
	widow    *widow
	done     bool
}

func (s *stray) own(f *folderRun) bool { return s.wire == f.wire }

func newSearch(p *pass) *search {
	s := &search{p: p, taken: map[string]map[uint32]bool{}, widows: map[string]map[uint32]*widow{}, validity: map[string]uint32{}}
	s.reader, s.skip = p.dstReader, p.attic.rec.Dest
	s.list = func() (side, error) {
		err := p.lookAround(p.dst)
		return p.dstSide.side, err
	}
	return s
}

func (s *search) take(wire string, uid uint32) {
	if s.taken[wire] == nil {
		s.taken[wire] = map[uint32]bool{}
	}
	s.taken[wire][uid] = true
}

func (s *search) widow(wire string, dst uint32, w *widow) {
	if s.widows[wire] == nil {
		s.widows[wire] = map[uint32]*widow{}
	}
	s.widows[wire][dst] = w
	s.lost++
}

// want reads messages of the folder that is open, for their content only.
func (s *search) want(f *folderRun, r MailReader, metas []imapconn.Meta) error {
	var octets int64
	for _, m := range metas {
		octets += m.Size
	}
	if err := s.p.day.count(SideSource, octets); err != nil {
		return err
	}
	t := &fetcher{host: s.p.job.Host}
	// What cannot be read is not found, and the copy says why.
	if _, err := r.Fetch(uidsOf(metas), imapconn.Items{Body: true}, t); err != nil {
		return err
	}
	slices.SortFunc(t.msgs, byUID)
	sizes := map[uint32]int64{}
	for _, m := range metas {
		sizes[m.UID] = m.Size
	}
	for _, m := range t.msgs {
		m.meta.Size = sizes[m.meta.UID] // as its server counts it
		s.sought = append(s.sought, &sought{f: f, m: m})
	}
	return nil
}

// look goes through the folders of the destination and finds what it can.
func (s *search) look() error {
	there, err := s.list()
	if err != nil {
		return err
	}
	for _, own := range []bool{true, false} {
		for _, d := range there.folders {
			if !d.Selectable() || inOthers(d, there.ns) || d.Wire == s.skip || s.theirs(d.Wire) != own {
				continue
			}
			if err := s.lookInto(s.reader, d); err != nil && !skippable(err) {
				return fmt.Errorf("folder %q: %w", d.Name, err)
			}
		}
		s.matchAll(own)
		if !slices.ContainsFunc(s.sought, func(x *sought) bool { return x.found == nil }) {
			return nil
		}
	}
	return nil
}

// theirs tells whether a folder is that of one of the messages.
func (s *search) theirs(wire string) bool {
	return slices.ContainsFunc(s.sought, func(x *sought) bool { return x.f.wire == wire })
}

// matchAll finds the messages in their own folders, or in others.
func (s *search) matchAll(own bool) {
	for _, k := range []struct {
		want, have func(identity) key
		sure       bool // it cannot be another message
	}{
		{exactKey, exactKey, false}, {deliveryKey, deliveryKey, true}, {fragileKey, looseKey, false}, {mungedKey, looseKey, false},
	} {
		s.match(own, true, k.want, k.have)
		bound := s.bound
		s.bound = bound && !k.sure
		s.match(own, false, k.want, k.have)
		s.bound = bound
	}
}

// fragileKey is the loose key of a message that servers alter.
func fragileKey(id identity) key {
	if id.Fragile {
		return id.Loose
	}
	return key{}
}

// lookInto reads of a folder what may be one of the messages.
func (s *search) lookInto(reader *imapconn.Reader, d imapconn.Folder) error {
	sel, err := reader.Select(d)
	if err != nil || sel.Exists == 0 {
		return err
	}
	uids, err := reader.UIDsFrom(1)
	if err != nil {
		return err
	}
	taken, widows := s.taken[d.Wire], s.widows[d.Wire]
	if v := s.validity[d.Wire]; v != 0 && v != sel.UIDValidity {
		taken, widows = nil, nil // what is noted means other messages
	}
	uids = slices.DeleteFunc(uids, func(u uint32) bool { return taken[u] })
	metas, err := reader.ListThese(uids, imapconn.Items{Size: true})
	if err != nil {
		return err
	}
	want, err := s.likely(reader, metas, widows)
	if err != nil {
		return err
	}
	for _, m := range metas {
		if widows[m.UID] != nil {
			s.lost-- // it is where it was
		}
	}
	t := &fetcher{host: s.p.job.Host}
	if _, err := reader.Fetch(want, imapconn.Items{Body: true}, t); err != nil {
		return err
	}
	slices.SortFunc(t.msgs, byUID)
	for _, m := range t.msgs {
		s.found = append(s.found, &stray{wire: d.Wire, validity: sel.UIDValidity, uid: m.meta.UID, id: m.id, widow: widows[m.meta.UID]})
	}
	return nil
}

// fewWidows are read whatever their size is said to be: not every server tells true
// sizes.
const fewWidows = 50

// likely gives the messages that have to be read to know what they are.
func (s *search) likely(reader *imapconn.Reader, metas []imapconn.Meta, widows map[uint32]*widow) ([]uint32, error) {
	var want uidSet
	queued := map[string]bool{}
	for _, x := range s.sought {
		if x.m.id.QueueID != "" {
			queued[x.m.id.QueueID] = true
		}
	}
	var rest []uint32
	for _, m := range metas {
		if s.fits(m.Size) || widows[m.UID] != nil && len(widows) <= fewWidows {
			want.add(m.UID)
		} else {
			rest = append(rest, m.UID)
		}
	}
	if len(queued) == 0 || len(rest) == 0 {
		return want, nil
	}
	headers, _, err := reader.Received(rest)
	for uid, h := range headers {
		if queued[queueID(h, s.p.job.Host)] {
			want.add(uid)
		}
	}
	return want, err
}

func (s *search) fits(size int64) bool {
	return slices.ContainsFunc(s.sought, func(x *sought) bool {
		lo, hi := x.m.id.Size, x.m.id.Size
		if x.m.id.Fragile {
			lo, hi = lo-x.m.id.CRs-4, hi+4
		}
		return size == x.m.meta.Size || size >= lo && size <= hi
	})
}

// match finds messages with the same key, each once: in the folder of the message
// or in others, among the widows or among the rest.
func (s *search) match(own, widows bool, want, have func(identity) key) {
	free := map[key][]*stray{}
	for _, x := range s.found {
		if k := have(x.id); !x.done && k != (key{}) && (x.widow != nil) == widows {
			free[k] = append(free[k], x)
		}
	}
	for _, x := range s.sought {
		k := want(x.m.id)
		if x.found != nil || k == (key{}) {
			continue
		}
		i := slices.IndexFunc(free[k], func(y *stray) bool { return !y.done && y.own(x.f) == own })
		if i < 0 || !own && !widows && s.bound && s.lost <= 0 {
			continue
		}
		x.found = free[k][i]
		x.found.done = true
		if !own && !widows {
			s.lost--
		}
	}
}

// takePaired has all messages of the destination taken that are in pairs.
func (s *search) takePaired() error {
	recs, err := s.p.book.all()
	if err != nil {
		return err
	}
	for _, rec := range recs {
		if i := slices.IndexFunc(s.p.every, func(f *folderRun) bool { return f.src.Wire == rec.Source }); i >= 0 {
			rec = s.p.every[i].rec
		}
		s.validity[rec.Dest] = rec.DstValidity
		for d := range rec.Pairs.dests() {
			s.take(rec.Dest, d)
		}
	}
	for _, x := range s.p.apart.all() {
		for d := range x.Pairs.dests() {
			s.take(x.Dest, d)
		}
	}
	return nil
}
