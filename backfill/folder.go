package backfill

import (
	"cmp"
	"errors"
	"fmt"
	"slices"
	"sync"

	"crossfade/backfill/imapconn"
)

// folderRun is the work on one folder in one pass.
type folderRun struct {
	pairing
	p          *pass
	lane       *lane // the first one until the folder is shared out
	rec        *record
	status     imapconn.Status // of the source, when the pass began
	agreed     agreed
	dsel       imapconn.Selected
	uidNext    uint32 // a lower bound of what the destination gives out next
	cand       *candidates
	told       map[string]bool // keywords that have a problem already
	unmade     bool            // it cannot be made on the destination
	subscribed bool            // in this pass
	moved      map[uint32]bool // UIDs of the destination, see movedAway
	now        uidSet          // what was paired in this pass, see arrived
	failed     bool            // something could not be read: look again
	isAttic    bool            // it has no source: see attic
	reading    *reading        // of the source; nil until it is begun
	listed     []imapconn.Meta // of the source, by sync
	lost       uidSet          // see restore
	repeated   bool            // it is gone through for what is lost
	fresh      *fresh          // of a sweep
	drops      int             // connections that ended in a row without a message being taken
	// unsaved tells that the record is newer than the ledger. That may last until
	// the next batch's journal is written: until then the one before it says where
	// to look for what was appended.
	unsaved bool
}

func (p *pass) newRun(pr pairing) (*folderRun, error) {
	rec, err := p.book.at(pr.src.Wire, pr.wire)
	if err != nil {
		return nil, err
	}
	return &folderRun{pairing: pr, p: p, lane: p.lane, rec: rec, told: map[string]bool{}}, nil
}

// prepare makes the folders that are missing on the destination and subscribes
// to those that are subscribed to on the source, in one round trip where nothing
// is refused. failed has the folders that cannot be made.
func (p *pass) prepare(all []*folderRun) (failed, err error) {
	var work []*folderRun
	var wanted []imapconn.Making
	for _, f := range all {
		w := imapconn.Making{Wire: f.wire, Use: f.use, Create: !f.exists, Subscribe: f.src.Subscribed && !f.rec.Subscribed && !(p.sweeps() && f.exists)}
		if w.Create || w.Subscribe {
			work, wanted = append(work, f), append(wanted, w)
		}
	}
	if len(work) == 0 {
		return nil, p.saveNames(all)
	}
	made, err := work[0].lane.dst.Make(wanted)
	if err != nil {
		return nil, err
	}
	for i, f := range work {
		if err := f.made(wanted[i], made[i]); err != nil {
			err = fmt.Errorf("folder %q: destination: %w", f.src.Name, err)
			if !skippable(err) {
				return nil, err
			}
			failed, f.unmade = errors.Join(failed, err), true
		}
	}
	return failed, p.saveNames(all)
}

// prepare is that for one folder.
func (f *folderRun) prepare() error {
	failed, err := f.p.prepare([]*folderRun{f})
	return cmp.Or(err, failed)
}

// made takes what became of a folder on the destination, and tries by itself
// what was refused.
func (f *folderRun) made(wanted imapconn.Making, got imapconn.Made) error {
	dst := f.lane.dst
	if got.Create != nil {
		if err := f.create(); err != nil {
			return err
		}
		if f.wire != wanted.Wire {
			f.rec.Dest = f.wire
			if err := f.save(); err != nil { // nothing but the record leads to this name again
				return err
			}
		}
		if wanted.Subscribe {
			got.Subscribe = dst.Subscribe(f.wire)
		}
	}
	if wanted.Create {
		f.p.crash("after-create")
	}
	var e *imapconn.Error
	if got.Subscribe != nil && !errors.As(got.Subscribe, &e) {
		return got.Subscribe
	}
	if got.Subscribe != nil {
		f.p.problem(Problem{Folder: f.src.Name, Class: ClassName, Text: "the destination does not subscribe to it: " + e.Error()})
	}
	f.subscribed = wanted.Subscribe
	return nil
}

// saveNames notes the names on the destination and the subscriptions, at once:
// a store makes records durable together that come together.
func (p *pass) saveNames(all []*folderRun) error {
	errs := make([]error, len(all))
	var wg sync.WaitGroup
	places := make(chan struct{}, 32)
	for i, f := range all {
		if f.unmade || f.rec.Dest == f.wire && !f.subscribed {
			continue
		}
		f.rec.Dest, f.rec.Subscribed = f.wire, f.rec.Subscribed || f.subscribed
		places <- struct{}{}
		wg.Go(func() {
			defer func() { <-places }()
			errs[i] = f.save()
		})
	}
	wg.Wait()
	return errors.Join(errs...)
}

// create makes the folder; a name that is refused is tried once more without
// what servers refuse.
func (f *folderRun) create() error {
	dst := f.lane.dst
	err := dst.Create(f.wire, f.use)
	var e *imapconn.Error
	if err == nil || !errors.As(err, &e) {
		return err
	}
	if _, serr := dst.Select(f.wire); serr == nil {
		return nil // it was there, whatever LIST says
	}
	return f.createOther(e, fmt.Errorf("create folder %q: %w", f.name, err))
}

// unchanged tells whether nothing happened since the folder was finished. It
// costs nothing beyond the STATUS.
func (f *folderRun) unchanged(dst imapconn.Status) bool {
	r := f.rec
	if r.Pending != nil || r.SrcValidity == 0 || dst.UIDValidity != r.DstValidity || f.status.UIDValidity != r.SrcValidity {
		return false
	}
	if r.Sift != f.p.filter.mark() || !f.settled() || r.Missed || r.Absent || len(r.Unproven) > 0 {
		return false
	}
	if _, last := r.Pairs.last(); f.due() || dst.UIDNext <= last {
		return false
	}
	if len(r.Known) > 0 && !f.p.sweeps() {
		return false
	}
	if f.p.o.Restore && int(dst.Messages) < r.Pairs.count() {
		return false
	}
	now, then := f.status, r.Mark
	return now.UIDNext == then.UIDNext && now.Messages == then.Messages && now.ModSeq == then.ModSeq
}

// due tells whether a refused message is to be offered again.
func (f *folderRun) due() bool {
	for uid, r := range f.rec.Refused {
		if r.Skip <= 0 || f.p.o.RetryRefused || f.unwrapped(uid, r) {
			return true
		}
	}
	return false
}

// unwrapped tells whether a message was carried as an attachment, and the mail
// that carried it is gone.
func (f *folderRun) unwrapped(uid uint32, r *refusal) bool {
	return r.Wrapped && !f.p.attic.has(f.src.Wire, f.rec.SrcValidity, uid)
}

// skip counts a pass over a folder that needs nothing.
func (f *folderRun) skip() error {
	f.p.tally(func(r *Report, _ *Progress) { r.Messages += int(f.status.Messages) })
	f.tellFiltered()
	f.tellStays()
	if len(f.rec.Refused) == 0 {
		return nil
	}
	f.remember(nil)
	return f.save()
}

// remember reports the refused messages that are not offered in this pass, and
// counts the pass. present is nil when the folder was not looked at.
func (f *folderRun) remember(present map[uint32]bool) {
	for _, uid := range sortedKeys(f.rec.Refused) {
		r := f.rec.Refused[uid]
		if present != nil && !present[uid] {
			delete(f.rec.Refused, uid)
			continue
		}
		if f.unwrapped(uid, r) {
			r.Wrapped, r.Skip = false, 0
		}
		if r.Skip > 0 && !f.p.o.RetryRefused {
			if !r.Wrapped {
				r.Skip--
			}
			r.waiting = true
			f.p.problem(f.refusedProblem(uid, r))
		} else {
			r.Skip = 0
		}
	}
}

func sortedKeys[V any](m map[uint32]V) []uint32 {
	keys := make([]uint32, 0, len(m))
	for k := range m {
		keys = append(keys, k)
	}
	slices.Sort(keys)
	return keys
}

func (f *folderRun) expected() int {
	n := int(f.status.Messages)
	return max(n-f.rec.Pairs.count()-f.rec.Filtered, 0)
}

func (f *folderRun) save() error {
	err := f.p.book.save(f.p.ctx, f.rec)
	f.unsaved = f.unsaved && err != nil
	return err
}

// sync brings one folder of the destination up to date.
func (f *folderRun) sync() error {
	if f.reading == nil {
		f.read()
	}
	defer f.forget()
	if err := f.open(); err != nil {
		return err
	}
	if err := f.recover(); err != nil {
		return err
	}
	if err := f.restore(); err != nil {
		return fmt.Errorf("destination: %w", err)
	}
	metas := f.reading.metas
	f.listed = metas
	expected := f.expected()
	f.noteGone(metas)
	todo := f.todo(metas)
	f.cand = newCandidates(f)
	f.p.tally(func(r *Report, g *Progress) {
		if !f.repeated {
			r.Messages += len(metas)
		}
		g.Messages += len(todo) - expected
		for _, m := range todo {
			g.Bytes += m.Size
		}
	})
	err := f.copyAll(todo)
	if err == nil {
		err = f.syncFlags(metas)
	}
	if err == nil {
		err = f.wrapRefused()
	}
	f.tellRefused()
	if err != nil && f.unsaved {
		return errors.Join(err, f.save())
	}
	if err != nil {
		return err
	}
	return f.finish(f.reading.listed)
}

// listed is what a folder's list has of each message.
func (p *pass) listed() imapconn.Items {
	return p.filter.items(imapconn.Items{Flags: true, Size: true})
}

// open waits until the folder is open on both sides, and voids the pairs when the UIDs of one
// of them mean other messages now.
func (f *folderRun) open() error {
	err := both(func() error {
		<-f.reading.done
		return inside("source", f.reading.err)
	}, func() (err error) {
		// The destination's folder is selected before anything is appended to it:
		// servers are several times faster then.
		f.dsel, err = f.selectDest()
		return inside("destination", err)
	})
	if err != nil {
		return err
	}
	ssel := f.reading.opened
	f.uidNext = max(f.dsel.UIDNext, 1)
	if f.agreed, err = f.p.book.agreed(f.rec); err != nil {
		return err
	}
	r := f.rec
	// A UIDNEXT below what was given out already is a folder from a backup: its
	// UIDs will mean other messages, whatever UIDVALIDITY says.
	lastSrc, lastDst := r.Pairs.last()
	srcSame := r.SrcValidity == ssel.UIDValidity && (ssel.UIDNext == 0 || ssel.UIDNext > lastSrc)
	dstSame := r.DstValidity == f.dsel.UIDValidity && (f.dsel.UIDNext == 0 || f.dsel.UIDNext > lastDst)
	if srcSame && dstSame {
		return nil
	}
	if r.SrcValidity != 0 {
		f.p.log.Warn("UIDVALIDITY changed, or UIDNEXT went back: messages are matched by content again", "user", f.p.job.User, "folder", f.src.Name,
			"source", !srcSame, "destination", !dstSame)
	}
	if err := f.noteAnew(!srcSame, !dstSame, ssel.UIDValidity, f.dsel.UIDValidity); err != nil {
		return err
	}
	f.agreed = agreed{}
	r.void(!srcSame, !dstSame)
	r.SrcValidity, r.DstValidity = ssel.UIDValidity, f.dsel.UIDValidity
	if err := f.p.book.saveAgreed(f.p.ctx, f.rec, f.agreed); err != nil {
		return err
	}
	return f.save()
}

// tellFiltered counts what the filter leaves out.
func (f *folderRun) tellFiltered() {
	if n := f.rec.Filtered; n > 0 {
		f.p.tally(func(r *Report, _ *Progress) { r.Filtered += n })
		f.p.note(omitted(f.src.Name, n, false))
	}
}

// todo gives the messages of the source that are neither paired nor known to be
// refused.
func (f *folderRun) todo(metas []imapconn.Meta) []imapconn.Meta {
	metas, f.rec.Filtered = f.p.left(metas, f.rec.Pairs)
	f.tellFiltered()
	present := make(map[uint32]bool, len(metas))
	for _, m := range metas {
		present[m.UID] = true
	}
	f.remember(present)
	for uid := range f.rec.Unread {
		if !present[uid] {
			delete(f.rec.Unread, uid)
		}
	}
	if !f.p.sweeps() {
		f.rec.Known = nil
	}
	f.rec.Known = slices.DeleteFunc(f.rec.Known, func(u uint32) bool { return !present[u] })
	apart := f.p.apart.sources(f.src.Wire, f.rec.SrcValidity)
	var todo []imapconn.Meta
	for _, m := range metas {
		if _, ok := f.rec.Pairs.dest(m.UID); ok || apart[m.UID] || f.rec.Known.has(m.UID) {
			continue
		}
		if f.fresh != nil && m.UID > f.fresh.last {
			f.failed = true // it came since the sweep looked what is new: the next one copies it
			continue
		}
		if r := f.rec.Refused[m.UID]; r != nil && r.waiting {
			continue
		}
		todo = append(todo, m)
	}
	return todo
}

// batchSize gives how many of todo are copied at once.
func (f *folderRun) batchSize(todo []imapconn.Meta) int {
	maxN, maxBytes := f.p.batch(len(todo))
	n, bytes := 1, todo[0].Size
	for n < len(todo) && n < maxN && bytes+todo[n].Size <= maxBytes {
		bytes += todo[n].Size
		n++
	}
	return n
}

// finish notes that the folder is as the source was when it was listed. Only
// now, and only when everything could be read: what is left out would not be
// looked for again.
func (f *folderRun) finish(sel imapconn.Selected) error {
	r := f.rec
	if r.Readopt || !f.p.again && len(f.p.o.Only) == 0 {
		r.Carried, _ = r.Pairs.last() // it came from nowhere
	}
	r.Readopt, r.Sift = false, f.p.filter.mark()
	r.Mark = imapconn.Status{Messages: sel.Exists, UIDNext: sel.UIDNext, UIDValidity: sel.UIDValidity, ModSeq: f.status.ModSeq}
	if f.failed {
		r.Mark = imapconn.Status{}
	}
	return f.save()
}
