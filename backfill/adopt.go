package backfill

import (
	"fmt"
	"slices"

	"crossfade/backfill/imapconn"
)

// candidates are messages of the destination that are in no pair: delivered
// there by SMTP, or there before the first pass. Their bodies are fetched only
// when their size is that of a message to copy.
type candidates struct {
	f      *folderRun
	loaded bool
	sizes  map[uint32]int64    // of those without identity yet
	ids    map[uint32]identity // of those that were fetched
	byKey  map[key][]uint32    // exact, loose and delivery keys are never the same
	queue  map[string][]uint32 // by queue id in our Received, nil until it is needed
}

func newCandidates(f *folderRun) *candidates { return &candidates{f: f} }

// load lists the candidates. The ledger knows those of earlier passes; only what
// is new in the folder is looked for.
func (c *candidates) load() error {
	c.loaded = true
	c.sizes, c.ids, c.byKey = map[uint32]int64{}, map[uint32]identity{}, map[key][]uint32{}
	f, r := c.f, c.f.rec
	if f.dsel.Exists == 0 {
		r.Foreign, r.Seen = nil, f.dsel.UIDNext
		return nil
	}
	reader := f.lane.dstReader
	sel, err := reader.Select(f.destFolder())
	if err != nil {
		return err
	}
	if sel.UIDValidity != r.DstValidity {
		return fmt.Errorf("folder %q: %w", f.name, imapconn.ErrChanged)
	}
	uids, err := reader.UIDsFrom(r.Seen)
	if err != nil {
		return err
	}
	uids = append(slices.DeleteFunc(slices.Clone([]uint32(r.Foreign)), func(u uint32) bool { return u >= r.Seen }), uids...)
	paired := r.Pairs.dests()
	apart := f.p.apart.dests(f.wire, r.DstValidity)
	uids = slices.DeleteFunc(uids, func(u uint32) bool { return paired[u] || apart[u] })
	metas, err := reader.ListThese(uids, imapconn.Items{Size: true})
	if err != nil {
		return err
	}
	r.Foreign, r.Seen = nil, 1
	for _, m := range metas {
		c.sizes[m.UID] = m.Size
		r.Foreign = append(r.Foreign, m.UID)
	}
	if n := len(uids); n > 0 {
		r.Seen = uids[n-1] + 1
	}
	r.Seen = max(r.Seen, sel.UIDNext)
	return nil
}

// adopt pairs messages of the source with candidates: those with the same
// content, those that our relay delivered to both sides, and those that differ
// only in what servers are known to alter.
func (c *candidates) adopt(msgs []*incoming) error {
	if !c.loaded {
		if err := c.load(); err != nil {
			return err
		}
	}
	if len(c.sizes)+len(c.ids) == 0 {
		return nil
	}
	want, err := c.wanted(msgs)
	if err != nil {
		return err
	}
	if err := c.identify(want); err != nil {
		return err
	}
	for _, k := range []func(identity) key{
		func(id identity) key { return id.Exact },
		func(id identity) key { return id.Delivery },
		func(id identity) key {
			if id.Fragile {
				return id.Loose
			}
			return key{}
		},
		func(id identity) key { return id.Munged }, // the others are here by their Loose
	} {
		for _, m := range msgs {
			if !m.done {
				c.pair(m, k(m.id))
			}
		}
	}
	return nil
}

func (c *candidates) pair(m *incoming, k key) {
	if k == (key{}) {
		return
	}
	for _, uid := range c.byKey[k] {
		there, free := c.ids[uid]
		if !free {
			continue
		}
		delete(c.ids, uid)
		m.done = true
		c.f.rec.paired(m.meta.UID, uid, m.id.Loose, there.Loose)
		if !c.f.rec.Readopt && !c.f.repeated { // else it was paired before: it has not just come, and may be ours
			c.f.arrived(m.meta.UID, there)
			c.f.rec.Theirs.add(uid)
		}
		c.f.rec.Foreign.remove(uid)
		delete(c.f.rec.Refused, m.meta.UID)
		delete(c.f.rec.Unread, m.meta.UID)
		c.f.p.tally(func(r *Report, _ *Progress) { r.Adopted++ })
		return
	}
}

// wanted gives the candidates that have to be fetched to know whether they are
// one of msgs.
func (c *candidates) wanted(msgs []*incoming) ([]uint32, error) {
	want := map[uint32]bool{}
	if c.f.rec.Readopt {
		// All of them were copied before, and not every server tells true sizes.
		for uid := range c.sizes {
			want[uid] = true
		}
		return sortedKeys(want), nil
	}
	bySize := map[int64][]uint32{}
	for uid, size := range c.sizes {
		bySize[size] = append(bySize[size], uid)
	}
	for _, m := range msgs {
		lo, hi := m.id.Size, m.id.Size
		if m.id.Fragile {
			lo, hi = lo-m.id.CRs-4, hi+4
		}
		for size, uids := range bySize {
			if size == m.meta.Size || size >= lo && size <= hi {
				addAll(want, uids)
			}
		}
		uids, err := c.byQueueID(m.id.QueueID)
		if err != nil {
			return nil, err
		}
		for _, uid := range uids {
			if _, open := c.sizes[uid]; open {
				want[uid] = true
			}
		}
	}
	return sortedKeys(want), nil
}

func addAll(set map[uint32]bool, uids []uint32) {
	for _, uid := range uids {
		set[uid] = true
	}
}

// byQueueID gives the candidates that carry a queue id of ours. Their Received
// fields are fetched once, when the first message asks for them.
func (c *candidates) byQueueID(id string) ([]uint32, error) {
	if id == "" {
		return nil, nil
	}
	if c.queue == nil {
		headers, _, err := c.f.lane.dstReader.Received(sortedKeys(c.sizes))
		if err != nil {
			return nil, err
		}
		c.queue = map[string][]uint32{}
		for uid, h := range headers {
			if q := queueID(h, c.f.p.job.Host); q != "" {
				c.queue[q] = append(c.queue[q], uid)
			}
		}
	}
	return c.queue[id], nil
}

// identify fetches candidates.
func (c *candidates) identify(uids []uint32) error {
	if len(uids) == 0 {
		return nil
	}
	t := &fetcher{host: c.f.p.job.Host}
	failures, err := c.f.lane.dstReader.Fetch(uids, imapconn.Items{Body: true}, t)
	if err != nil {
		return err
	}
	for _, x := range failures {
		delete(c.sizes, x.UID)
		if !x.Gone {
			return fmt.Errorf("folder %q: UID %d of the destination cannot be read, and it may be a copy: %w", c.f.name, x.UID, x.Err)
		}
	}
	slices.SortFunc(t.msgs, byUID)
	for _, m := range t.msgs {
		uid := m.meta.UID
		delete(c.sizes, uid)
		c.ids[uid] = m.id
		c.byKey[m.id.Exact] = append(c.byKey[m.id.Exact], uid)
		c.byKey[m.id.Loose] = append(c.byKey[m.id.Loose], uid)
		if m.id.Delivery != (key{}) {
			c.byKey[m.id.Delivery] = append(c.byKey[m.id.Delivery], uid)
		}
	}
	return nil
}
