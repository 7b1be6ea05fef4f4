package backfill

import (
	"errors"
	"fmt"
	"slices"
	"strings"
	"sync"

	"crossfade/backfill/imapconn"
)

// What a server says it keeps and what it takes are two things: it may refuse one
// keyword too many, a long one, or forget a flag of an APPEND without a word. A flag
// that never came there must not look, to a pass in the other direction, like one
// that the user took away. So the flags that were sent are read again.

// untook tells whether the destination did not take a flag for a message of the
// source.
func (h *half) untook(uid uint32, flag string) bool {
	for name, uids := range h.Untaken {
		if strings.EqualFold(name, flag) && uids.has(uid) {
			return true
		}
	}
	return false
}

// took forgets that.
func (h *half) took(uid uint32, flag string) {
	if !h.untook(uid, flag) {
		return
	}
	for name, uids := range h.Untaken {
		if strings.EqualFold(name, flag) && uids.has(uid) {
			left := slices.Clone(uids) // the record may be seen in both directions
			left.remove(uid)
			h.Untaken[name] = left
		}
	}
	h.Untaken = pruned(h.Untaken, func(uidSet) bool { return true })
}

// pruned leaves out what is empty, or not to be kept.
func pruned(in map[string]uidSet, keep func(uidSet) bool) map[string]uidSet {
	var out map[string]uidSet
	for name, uids := range in {
		if len(uids) == 0 || !keep(uids) {
			continue
		}
		if out == nil {
			out = map[string]uidSet{}
		}
		out[name] = uids
	}
	return out
}

func (h *half) refused(uid uint32, flag string) {
	if h.Untaken == nil {
		h.Untaken = map[string]uidSet{}
	}
	with := slices.Clone(h.Untaken[flag])
	with.add(uid)
	h.Untaken[flag] = with
}

// seenFlags takes the flags that a message of the source has for what its user wants:
// what the other direction could not bring there, and is there by now, he may take
// away.
func (f *folderRun) seenFlags(m imapconn.Meta) {
	other := f.rec.other()
	if len(other.Untaken) == 0 {
		return
	}
	dst, _ := f.rec.Pairs.dest(m.UID)
	for _, flag := range m.Flags {
		other.took(dst, flag)
	}
}

// prove reads the flags that were sent to the folders of a pass, in one round trip.
// What is missing is sent once more, as some servers take with STORE what they forget
// with APPEND, and else noted. In a sweep the reader may have cleared it himself.
func (p *pass) prove(runs []*folderRun) error {
	runs = slices.DeleteFunc(slices.Clone(runs), func(f *folderRun) bool { return f.unmade || len(f.rec.Unproven) == 0 })
	if len(runs) == 0 {
		return nil
	}
	sent := make([]imapconn.InFolder, len(runs))
	for i, f := range runs {
		sent[i] = f.copies(f.rec.Unproven)
	}
	there, err := p.dst.FlagsIn(sent)
	if err != nil {
		return fmt.Errorf("read the flags again: %w", err)
	}
	errs := make([]error, len(runs))
	var wg sync.WaitGroup
	for i, f := range runs {
		if there[i] == nil {
			continue // the folder cannot be opened now; the next pass looks again
		}
		lack := f.lacking(f.rec.Unproven, there[i])
		if len(lack) > 0 && !p.sweeps() {
			if lack, err = f.sendAgain(lack); err != nil {
				errs[i] = folderError(f, err)
			}
			if lack == nil {
				continue
			}
		}
		f.noteUntaken(lack)
		f.rec.Unproven = nil
		wg.Go(func() { errs[i] = f.save() })
	}
	wg.Wait()
	return errors.Join(errs...)
}

// copies are those of messages of the source.
func (f *folderRun) copies(srcs uidSet) imapconn.InFolder {
	var dsts uidSet
	for _, uid := range srcs {
		if dst, ok := f.rec.Pairs.dest(uid); ok {
			dsts.add(dst)
		}
	}
	return imapconn.InFolder{Wire: f.wire, UIDs: dsts}
}

// lacking gives the flags that the copies of messages should have and have not, by
// the UIDs of the source. there is by those of the destination; what is not in it is
// gone again.
func (f *folderRun) lacking(srcs uidSet, there map[uint32][]string) map[uint32][]string {
	out := map[uint32][]string{}
	for _, uid := range srcs {
		dst, ok := f.rec.Pairs.dest(uid)
		d, told := there[dst]
		if !ok || !told {
			continue
		}
		lack := slices.DeleteFunc(minus(f.agreed[uid], flagSet(d)), func(flag string) bool { return !f.dsel.CanKeep(flag) })
		for _, flag := range minus(f.agreed[uid], strings.Join(lack, " ")) {
			f.rec.took(uid, flag)
		}
		if len(lack) > 0 {
			out[uid] = lack
		}
	}
	return out
}

// sendAgain sends flags that are missing, and gives those that are missing after it;
// nil: nobody can tell now.
func (f *folderRun) sendAgain(lack map[uint32][]string) (map[uint32][]string, error) {
	dst := f.p.dst
	if _, err := dst.Select(f.wire); err != nil {
		return nil, err
	}
	changes := map[string]uidSet{}
	for uid, flags := range lack {
		to, _ := f.rec.Pairs.dest(uid)
		for _, flag := range flags {
			uids := changes[flag]
			uids.add(to)
			changes[flag] = uids
		}
	}
	for flag, uids := range changes {
		var e *imapconn.Error
		if err := dst.Store(uids, []string{flag}, nil); err != nil && (!errors.As(err, &e) || temporary(e)) {
			return nil, fmt.Errorf("change flags: %w", err)
		}
	}
	srcs := uidSet(sortedKeys(lack))
	there, err := dst.FlagsIn([]imapconn.InFolder{f.copies(srcs)})
	if err != nil {
		return nil, fmt.Errorf("read the flags again: %w", err)
	}
	if there[0] == nil {
		return nil, nil
	}
	return f.lacking(srcs, there[0]), nil
}

// noteUntaken keeps what the destination did not take, and tells of it.
func (f *folderRun) noteUntaken(lack map[uint32][]string) {
	counts := map[string]int{}
	for uid, flags := range lack {
		for _, flag := range flags {
			f.rec.refused(uid, flag)
			counts[flag]++
		}
	}
	for _, flag := range sortedNames(counts) {
		f.p.problem(Problem{Folder: f.src.Name, Class: ClassFlag, Text: fmt.Sprintf("the destination did not take %q for %d messages", flag, counts[flag])})
	}
	f.rec.Untaken = pruned(f.rec.Untaken, func(uids uidSet) bool {
		return slices.ContainsFunc(uids, func(uid uint32) bool { _, ok := f.rec.Pairs.dest(uid); return ok })
	})
}

func sortedNames[V any](m map[string]V) []string {
	out := make([]string, 0, len(m))
	for k := range m {
		out = append(out, k)
	}
	slices.Sort(out)
	return out
}
