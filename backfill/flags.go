package backfill

import (
	"errors"
	"fmt"
	"slices"
	"strings"

	"crossfade/backfill/imapconn"
)

// flagSet writes flags in one form. Flags that cannot be written in a command
// are left out: they exist on no other server.
func flagSet(flags []string) string {
	out := make([]string, 0, len(flags))
	for _, f := range flags {
		if imapconn.KeywordOK(f) {
			out = append(out, f)
		}
	}
	slices.Sort(out)
	return strings.Join(slices.Compact(out), " ")
}

// minus gives the flags of a that are not in b, whatever their case.
func minus(a, b string) []string {
	have := strings.Fields(b)
	var out []string
	for _, f := range strings.Fields(a) {
		if !slices.ContainsFunc(have, func(h string) bool { return strings.EqualFold(h, f) }) {
			out = append(out, f)
		}
	}
	return out
}

// keep gives the flags of a message that the destination keeps. Of each other
// keyword the report has one problem.
func (f *folderRun) keep(m imapconn.Meta) []string {
	if m.Flags == nil {
		f.p.problem(Problem{Folder: f.src.Name, UID: m.UID, Class: ClassFlag, Text: "its flags cannot be read on the source"})
	}
	if m.Date.IsZero() {
		f.p.problem(Problem{Folder: f.src.Name, UID: m.UID, Class: ClassDate, Text: "its internal date cannot be read on the source: it has the time of the copy"})
	}
	var out []string
	for _, flag := range m.Flags {
		if f.canKeep(flag) {
			out = append(out, flag)
		}
	}
	return out
}

func (f *folderRun) canKeep(flag string) bool {
	if imapconn.KeywordOK(flag) && f.dsel.CanKeep(flag) {
		return true
	}
	if imapconn.KeywordOK(flag) && !slices.Contains(f.rec.Unkept, flag) {
		f.rec.Unkept = append(f.rec.Unkept, flag)
	}
	if !f.told[flag] {
		f.told[flag] = true
		f.p.problem(Problem{Folder: f.src.Name, Class: ClassFlag, Text: fmt.Sprintf("the destination cannot keep %q", flag)})
	}
	return false
}

// change is one change of flags for a set of messages.
type change struct{ add, remove string }

// syncFlags brings over the changes of flags since both sides agreed last. Only
// what changed on the source is changed on the destination: a flag that was set
// there stays.
func (f *folderRun) syncFlags(metas []imapconn.Meta) error {
	changes := map[change]uidSet{}
	var unknown, changed []imapconn.Meta
	for _, m := range metas {
		if _, ok := f.rec.Pairs.dest(m.UID); !ok || m.Flags == nil {
			continue
		}
		if _, known := f.agreed[m.UID]; !known {
			unknown = append(unknown, m)
		} else if add, remove, _ := f.changed(m); len(add)+len(remove) > 0 {
			changed = append(changed, m)
		}
		f.seenFlags(m)
	}
	if err := f.addChanged(changed, changes); err != nil {
		return fmt.Errorf("destination: %w", err)
	}
	if err := f.compareFlags(unknown, changes); err != nil {
		return fmt.Errorf("destination: %w", err)
	}
	for ch, uids := range changes {
		slices.Sort(uids)
		err := f.lane.dst.Store(uids, strings.Fields(ch.add), strings.Fields(ch.remove))
		var e *imapconn.Error
		if errors.As(err, &e) && !temporary(e) {
			f.p.problem(Problem{Folder: f.src.Name, Class: ClassFlag, Text: fmt.Sprintf("%d messages: set %q, clear %q: %s", len(uids), ch.add, ch.remove, e.Error())})
			continue
		}
		if err != nil {
			return fmt.Errorf("destination: change flags: %w", err)
		}
		f.p.tally(func(r *Report, _ *Progress) { r.Flagged += len(uids) })
	}
	f.p.crash("after-flags")
	f.forgetAgreed(metas)
	if len(changes) > 0 {
		if err := f.save(); err != nil { // what is not proven, before it counts as agreed on
			return err
		}
	}
	return f.p.book.saveAgreed(f.p.ctx, f.rec, f.agreed)
}

// changed gives what changed on the source since both sides agreed, and what they
// agree on once the destination has it. A flag that the source never kept is not
// one that was removed there.
func (f *folderRun) changed(m imapconn.Meta) (add, remove []string, then string) {
	was, now := f.agreed[m.UID], flagSet(m.Flags)
	never := f.rec.other().Unkept
	dst, _ := f.rec.Pairs.dest(m.UID)
	add, remove = minus(now, was), slices.DeleteFunc(minus(was, now), func(flag string) bool {
		return slices.Contains(never, flag) || f.rec.other().untook(dst, flag)
	})
	if f.p.sweeps() {
		add, remove = without(add, deletedFlag), without(remove, deletedFlag)
	}
	return add, remove, flagSet(append(minus(was, strings.Join(remove, " ")), add...))
}

// deletedFlag says that a message is as good as deleted: clients do the rest.
const deletedFlag = `\Deleted`

func without(flags []string, flag string) []string {
	return slices.DeleteFunc(flags, func(f string) bool { return strings.EqualFold(f, flag) })
}

// addChanged adds the changes of messages. In a sweep only those count whose
// copies have the flags still that both sides agreed on: else the reader changed
// some himself, and what he did is left to a pass in the other direction.
func (f *folderRun) addChanged(metas []imapconn.Meta, changes map[change]uidSet) error {
	if f.p.sweeps() && len(metas) > 0 {
		there, err := f.flagsThere(metas)
		if err != nil {
			return err
		}
		metas = slices.DeleteFunc(metas, func(m imapconn.Meta) bool {
			dst, _ := f.rec.Pairs.dest(m.UID)
			d, ok := there[dst]
			return !ok || !f.asAgreed(m.UID, d, f.agreed[m.UID])
		})
	}
	for _, m := range metas {
		dst, _ := f.rec.Pairs.dest(m.UID)
		add, remove, then := f.changed(m)
		if f.addChange(changes, dst, add, remove) {
			f.rec.Unproven.add(m.UID)
		}
		for _, flag := range remove {
			f.rec.took(m.UID, flag)
		}
		f.agreed[m.UID] = then
	}
	return nil
}

// asAgreed tells whether a message of the destination has the flags of both sides,
// but for those that it cannot keep and for the mark of what is to be deleted.
func (f *folderRun) asAgreed(uid uint32, there, both string) bool {
	set := without(minus(there, both), deletedFlag)
	cleared := slices.DeleteFunc(without(minus(both, there), deletedFlag), func(flag string) bool {
		return slices.Contains(f.rec.Unkept, flag) || f.rec.untook(uid, flag)
	})
	return len(set)+len(cleared) == 0
}

// flagsThere gives the flags of the copies of messages, by their UIDs on the
// destination.
func (f *folderRun) flagsThere(metas []imapconn.Meta) (map[uint32]string, error) {
	var uids []uint32
	for _, m := range metas {
		dst, _ := f.rec.Pairs.dest(m.UID)
		uids = append(uids, dst)
	}
	slices.Sort(uids)
	if _, err := f.lane.dstReader.Select(f.destFolder()); err != nil {
		return nil, err
	}
	there, err := f.lane.dstReader.ListThese(uids, imapconn.Items{Flags: true})
	if err != nil {
		return nil, err
	}
	out := map[uint32]string{}
	for _, d := range there {
		if d.Flags != nil {
			out[d.UID] = flagSet(d.Flags)
		}
	}
	return out, nil
}

func (f *folderRun) addChange(changes map[change]uidSet, dst uint32, add, remove []string) bool {
	add = slices.DeleteFunc(add, func(flag string) bool { return !f.canKeep(flag) })
	remove = slices.DeleteFunc(remove, func(flag string) bool { return !f.dsel.CanKeep(flag) })
	if len(add)+len(remove) > 0 {
		ch := change{strings.Join(add, " "), strings.Join(remove, " ")}
		changes[ch] = append(changes[ch], dst)
	}
	return len(add)+len(remove) > 0
}

// compareFlags is for pairs whose flags were never agreed on: adopted ones, and
// those of a pass that ended before it noted them. The destination gets what it
// lacks, and keeps what it has. In a sweep it is the reader's, and gets nothing.
func (f *folderRun) compareFlags(metas []imapconn.Meta, changes map[change]uidSet) error {
	if len(metas) == 0 {
		return nil
	}
	there := map[uint32]string{}
	if !f.p.sweeps() {
		var err error
		if there, err = f.flagsThere(metas); err != nil {
			return err
		}
	}
	for _, m := range metas {
		now := flagSet(m.Flags)
		dst, _ := f.rec.Pairs.dest(m.UID)
		if d, ok := there[dst]; ok {
			if f.addChange(changes, dst, minus(now, d), nil) {
				f.rec.Unproven.add(m.UID)
			}
		}
		f.agreed[m.UID] = now
	}
	return nil
}

// forgetAgreed drops what is gone from the source.
func (f *folderRun) forgetAgreed(metas []imapconn.Meta) {
	if len(f.agreed) <= len(metas) {
		return
	}
	present := make(map[uint32]bool, len(metas))
	for _, m := range metas {
		present[m.UID] = true
	}
	for uid := range f.agreed {
		if !present[uid] {
			delete(f.agreed, uid)
		}
	}
}
