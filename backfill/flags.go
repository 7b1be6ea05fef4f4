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
	var unknown []imapconn.Meta
	for _, m := range metas {
		dst, ok := f.rec.Pairs.dest(m.UID)
		if !ok || m.Flags == nil {
			continue
		}
		was, known := f.agreed[m.UID]
		if !known {
			unknown = append(unknown, m)
			continue
		}
		now := flagSet(m.Flags)
		if now != was {
			f.addChange(changes, dst, minus(now, was), minus(was, now))
			f.agreed[m.UID] = now
		}
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
	return f.p.book.saveAgreed(f.p.ctx, f.src.Wire, f.agreed)
}

func (f *folderRun) addChange(changes map[change]uidSet, dst uint32, add, remove []string) {
	add = slices.DeleteFunc(add, func(flag string) bool { return !f.canKeep(flag) })
	remove = slices.DeleteFunc(remove, func(flag string) bool { return !f.dsel.CanKeep(flag) })
	if len(add)+len(remove) > 0 {
		ch := change{strings.Join(add, " "), strings.Join(remove, " ")}
		changes[ch] = append(changes[ch], dst)
	}
}

// compareFlags is for pairs whose flags were never agreed on: adopted ones, and
// those of a pass that ended before it noted them. The destination gets what it
// lacks, and keeps what it has.
func (f *folderRun) compareFlags(metas []imapconn.Meta, changes map[change]uidSet) error {
	if len(metas) == 0 {
		return nil
	}
	byDest := map[uint32]imapconn.Meta{}
	for _, m := range metas {
		dst, _ := f.rec.Pairs.dest(m.UID)
		byDest[dst] = m
	}
	if _, err := f.lane.dstReader.Select(f.destFolder()); err != nil {
		return err
	}
	there, err := f.lane.dstReader.ListThese(sortedKeys(byDest), imapconn.Items{Flags: true})
	if err != nil {
		return err
	}
	for _, d := range there {
		m := byDest[d.UID]
		if d.Flags != nil {
			f.addChange(changes, d.UID, minus(flagSet(m.Flags), flagSet(d.Flags)), nil)
		}
	}
	for _, m := range metas {
		f.agreed[m.UID] = flagSet(m.Flags)
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
