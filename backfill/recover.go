package backfill

import (
	"context"
	"fmt"
	"slices"
	"time"

	"crossfade/backfill/imapconn"
)

// recover looks for the messages of a batch that was being appended when the
// last pass ended.
func (f *folderRun) recover() error {
	j := f.rec.Pending
	if j == nil {
		return nil
	}
	found, err := f.find(j)
	if err != nil {
		return fmt.Errorf("destination: look for what the last pass appended: %w", err)
	}
	f.p.tally(func(r *Report, _ *Progress) { r.Adopted += found })
	if f.p.sweeps() && !f.isAttic {
		n, err := f.findElsewhere(j, nil)
		if err != nil {
			return fmt.Errorf("destination: look for what the last pass appended and the reader moved: %w", err)
		}
		found += n
	}
	f.rec.Pending = nil
	f.p.crash("after-recover")
	f.p.log.Info("batch recovered", "user", f.p.job.User, "folder", f.src.Name, "entries", len(j.Entries), "found", found)
	return f.save()
}

// find looks for the messages of a journal until all are found, or the server
// cannot be writing them any more.
func (f *folderRun) find(j *journal) (found int, err error) {
	for settled := false; ; {
		if err := f.resolve(j, &found); err != nil {
			return found, err
		}
		if settled || !slices.ContainsFunc(j.Entries, f.unpaired) {
			return found, nil
		}
		// The server may have the whole command and still be writing.
		if settled, err = f.settle(j); err != nil {
			return found, err
		}
	}
}

const (
	defaultSettle = 5 * time.Second
	settleLook    = 500 * time.Millisecond // between two looks
)

// settle waits for the next look at a destination that may still be writing a
// batch; the look after it is the last one when it is settled.
func (f *folderRun) settle(j *journal) (settled bool, err error) {
	whole := f.p.c.Settle
	if whole <= 0 {
		whole = defaultSettle
	}
	// A clock that was set back must not make the wait longer than it is.
	left := min(time.Until(time.UnixMilli(j.At).Add(whole)), whole)
	if left <= 0 {
		return true, nil
	}
	timer := time.NewTimer(min(left, settleLook))
	defer timer.Stop()
	select {
	case <-timer.C:
		return left <= settleLook, nil
	case <-f.p.ctx.Done():
		return false, context.Cause(f.p.ctx)
	}
}

// unpaired tells whether an entry of a journal has no place yet.
func (f *folderRun) unpaired(e entry) bool {
	_, paired := f.rec.Pairs.dest(e.UID)
	return !paired && f.rec.Refused[e.UID] == nil
}

// identify finds the UIDs of appended messages that the server did not tell.
func (f *folderRun) identify(j *journal) error {
	if !slices.ContainsFunc(j.Entries, f.unpaired) {
		return nil
	}
	var n int
	if err := f.resolve(j, &n); err != nil {
		return fmt.Errorf("look for the UIDs of what was appended: %w", err)
	}
	for _, e := range j.Entries {
		if f.unpaired(e) {
			// Offered again, it would be there twice.
			if f.rec.Refused == nil {
				f.rec.Refused = map[uint32]*refusal{}
			}
			f.rec.Refused[e.UID] = &refusal{Text: unrecognised, Skip: never, waiting: true}
			f.p.problem(Problem{Folder: f.src.Name, UID: e.UID, Class: ClassAltered, Text: unrecognised})
		}
	}
	return nil
}

const (
	unrecognised = "it was appended, but the destination shows no message with its content"
	never        = 1 << 30 // passes
)

// resolve pairs the entries of a journal with messages of the destination from
// the noted UIDNEXT on, by content and as a multiset. Mail that arrives
// meanwhile lies in the same range: the number of messages says nothing. First
// the same content, then what servers are known to alter.
func (f *folderRun) resolve(j *journal, found *int) error {
	sel, err := f.lane.dstReader.Select(f.destFolder())
	if err != nil {
		return err
	}
	if sel.UIDValidity != f.rec.DstValidity {
		return fmt.Errorf("folder %q: %w", f.name, imapconn.ErrChanged)
	}
	uids, err := f.lane.dstReader.UIDsFrom(j.UIDNext)
	if err != nil {
		return err
	}
	uids = append(uids, j.told...)
	slices.Sort(uids)
	uids = slices.Compact(uids)
	paired := f.rec.Pairs.dests()
	uids = slices.DeleteFunc(uids, func(u uint32) bool { return paired[u] })
	t := &fetcher{}
	failures, err := f.lane.dstReader.Fetch(uids, imapconn.Items{Body: true}, t)
	if err != nil {
		return err
	}
	for _, x := range failures {
		if !x.Gone {
			return fmt.Errorf("UID %d cannot be read, and it may be one of them: %w", x.UID, x.Err)
		}
	}
	slices.SortFunc(t.msgs, byUID)
	for _, same := range []func(identity, entry) bool{
		func(id identity, e entry) bool { return id.Exact == e.Exact },
		func(id identity, e entry) bool { return id.Loose == e.Loose },
		func(id identity, e entry) bool { return id.Loose == e.Munged },
	} {
		for _, e := range j.Entries {
			if _, ok := f.rec.Pairs.dest(e.UID); ok {
				continue
			}
			i := slices.IndexFunc(t.msgs, func(m *incoming) bool {
				return !m.done && same(m.id, e)
			})
			if i < 0 {
				continue
			}
			t.msgs[i].done = true
			f.rec.paired(e.UID, t.msgs[i].meta.UID, e.Loose, t.msgs[i].id.Loose)
			if !f.isAttic {
				f.rec.Unproven.add(e.UID)
			}
			delete(f.rec.Refused, e.UID)
			delete(f.rec.Unread, e.UID)
			f.uidNext = max(f.uidNext, t.msgs[i].meta.UID+1)
			*found++
		}
	}
	return nil
}

// destFolder is the folder on the destination as a reader opens it.
func (f *folderRun) destFolder() imapconn.Folder {
	return imapconn.Folder{Name: f.name, Wire: f.wire}
}
