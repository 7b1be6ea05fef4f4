package backfill

import (
	"crossfade/backfill/imapconn"
)

// reading is the source side of a folder, up to its first batch. It is begun
// while the destination is still busy with the folder before, or is being asked
// to open this one, so that neither side waits for the other.
//
// What is read depends on nothing that the destination says, and the record is
// only looked at: a batch that an earlier pass left in its journal is looked for
// first, and may be larger or smaller than anybody knew. So the batch is a guess,
// which is thrown away when it is not what has to be copied.
type reading struct {
	done   chan struct{}
	opened imapconn.Selected
	metas  []imapconn.Meta
	listed imapconn.Selected // the state that metas belong to
	first  *fetched          // the first batch; nil when nothing was guessed
	err    error
}

// read begins to read a folder with the lane's reader, which is the reading's
// until it is done.
func (f *folderRun) read() {
	r := &reading{done: make(chan struct{})}
	f.reading = r
	go func() {
		defer close(r.done)
		src := f.lane.src
		if e, ok := src.(interface{ Expect(imapconn.Items) }); ok {
			e.Expect(f.p.listed())
		}
		if r.opened, r.err = src.Select(f.src); r.err != nil {
			return
		}
		if r.metas, r.listed, r.err = src.ListAll(f.p.listed()); r.err != nil {
			return
		}
		if likely := f.guess(r.opened, r.metas); len(likely) > 0 && !f.p.halted.Load() {
			r.first = f.fetch(likely[:f.batchSize(likely)])
		}
	}()
}

// guess gives what todo will begin with, as far as the source and the record
// tell. It changes nothing.
func (f *folderRun) guess(sel imapconn.Selected, metas []imapconn.Meta) []imapconn.Meta {
	rec := f.rec
	if rec.Pending != nil || f.p.o.Restore {
		return nil
	}
	var known pairs
	var refused map[uint32]*refusal
	if rec.SrcValidity == sel.UIDValidity {
		known, refused = rec.Pairs, rec.Refused
	}
	metas, _ = f.p.left(metas, known)
	apart := f.p.apart.sources(f.src.Wire, sel.UIDValidity)
	var likely []imapconn.Meta
	for _, m := range metas {
		if _, paired := known.dest(m.UID); paired || refused[m.UID] != nil || apart[m.UID] || rec.Known.has(m.UID) {
			continue
		}
		if likely = append(likely, m); len(likely) == f.p.c.batchMessages() {
			break
		}
	}
	return likely
}

// firstBatch gives the batch that was read already when it is what todo begins
// with, and else nil.
func (f *folderRun) firstBatch(todo []imapconn.Meta) *fetched {
	b := f.reading.first
	f.reading.first = nil
	if b == nil {
		return nil
	}
	fits := len(b.metas) <= len(todo)
	for i := 0; fits && i < len(b.metas); i++ {
		fits = b.metas[i].UID == todo[i].UID
	}
	if !fits {
		f.release(b)
		return nil
	}
	return b
}

// forget ends a reading that is not used, or not any more.
func (f *folderRun) forget() {
	if f.reading == nil {
		return
	}
	<-f.reading.done
	if f.reading.first != nil {
		f.release(f.reading.first)
	}
	f.reading = nil
}

// readAhead begins to read the lane's next folder, if there is one. The reader
// is needed for the present one no more, but for what the destination refuses.
func (l *lane) readAhead() {
	if l.more == nil || l.ahead != nil {
		return
	}
	if f := l.more(); f != nil {
		f.read()
		l.ahead = f
	}
}

// readEarly begins to read the largest folder of a first copy over the first
// lane while the destination makes the folders.
func (p *pass) readEarly(all []*folderRun) {
	if !p.first || p.asksRights() || len(all) == 0 {
		return // the source's session is needed still
	}
	var most *folderRun
	for _, f := range all {
		f.status = p.srcSide.status[f.src.Wire]
		if f.rec.SrcValidity == 0 && (most == nil || f.expected() > most.expected()) {
			most = f
		}
	}
	if most == nil || most.status.Messages == 0 {
		return
	}
	p.src = p.srcBox.NewReader()
	most.read()
	p.ahead = most
}

// regain makes the lane's reader this folder's again. The next one is read anew
// when its turn comes.
func (f *folderRun) regain() error {
	next := f.lane.ahead
	if next == nil || next.reading == nil {
		return nil
	}
	next.forget()
	sel, err := f.lane.src.Select(f.src)
	if err == nil && sel.UIDValidity != f.rec.SrcValidity {
		err = imapconn.ErrChanged
	}
	return err
}

// uidsOf gives the UIDs of messages, in their order.
func uidsOf(metas []imapconn.Meta) []uint32 {
	uids := make([]uint32, 0, len(metas))
	for _, m := range metas {
		uids = append(uids, m.UID)
	}
	return uids
}
