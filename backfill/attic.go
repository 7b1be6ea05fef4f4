package backfill

import (
	"errors"
	"fmt"
	"io"
	"slices"
	"strconv"
	"sync"

	"crossfade/backfill/imapconn"
)

const (
	// atticName is the folder on the destination for messages that it refuses as
	// they are.
	atticName = "Needs attention"
	// atticSource is the name of its record in the ledger: no folder of a source
	// has a NUL in its name. atticBack is that of what the old side refused.
	atticSource = "\x00needs attention"
	atticBack   = atticSource + " back"
)

func isAttic(wire string) bool { return wire == atticSource || wire == atticBack }

// attic is that folder. Its record is that of a folder whose source is this
// package: wrapped messages have numbers of ours in place of UIDs of a source,
// and so they are appended exactly once like all others.
type attic struct {
	p   *pass
	rec *record
	far *record // of the other direction's: a folder of the source; only read

	mu sync.Mutex // the lanes of a pass come here

	seen []kept // by a verification: wrapped messages whose mails are there
}

// kept is a wrapped message: which one it is on the source, and how the mail that
// carries it is known again.
type kept struct {
	N        uint32 `json:"n"`      // its number in the pairs
	Folder   string `json:"folder"` // on the wire of the source; "" until the message is met, see found
	Validity uint32 `json:"validity"`
	UID      uint32 `json:"uid"`
	Original key    `json:"original"`
	Exact    key    `json:"exact"`
	Loose    key    `json:"loose"`
	// Blind tells that the destination took the mail and shows none with its
	// content.
	Blind bool `json:"blind,omitempty"`
}

func openAttic(p *pass) (*attic, error) {
	own, others := atticSource, atticBack
	if p.o.Back {
		own, others = others, own
	}
	rec, err := p.book.read(own)
	if err != nil {
		return nil, err
	}
	far, err := p.book.read(others)
	if err != nil {
		return nil, err
	}
	return &attic{p: p, rec: rec, far: far}, nil
}

// name is what the folder is called on the destination.
func (a *attic) name() string {
	a.mu.Lock()
	defer a.mu.Unlock()
	return a.called()
}

func (a *attic) called() string {
	if name, err := imapconn.DecodeName(a.rec.Dest); err == nil && name != "" {
		return name
	}
	return atticName
}

// has tells whether a message of the source is carried.
func (a *attic) has(folder string, validity, uid uint32) bool {
	a.mu.Lock()
	defer a.mu.Unlock()
	i := a.find(folder, validity, uid)
	return i >= 0 && a.paired(a.rec.Attic[i])
}

func (a *attic) find(folder string, validity, uid uint32) int {
	return slices.IndexFunc(a.rec.Attic, func(k kept) bool { return k.Folder == folder && k.Validity == validity && k.UID == uid })
}

func (a *attic) paired(k kept) bool {
	_, ok := a.rec.Pairs.dest(k.N)
	return ok || k.Blind
}

// run is the work on the folder over the connections of a lane.
func (a *attic) run(l *lane) *folderRun {
	f := &folderRun{p: a.p, lane: l, rec: a.rec, agreed: agreed{}, told: map[string]bool{}, isAttic: true}
	f.src = imapconn.Folder{Name: atticName, Wire: a.rec.Source, Subscribed: true}
	f.name, f.wire = a.called(), a.rec.Dest
	f.exists = slices.ContainsFunc(a.p.dstSide.folders, func(d imapconn.Folder) bool { return d.Wire == a.rec.Dest && d.Selectable() })
	return f
}

// review looks after what an earlier pass left: a mail that was being appended
// when it ended and, with Restore, mails that are gone since.
func (a *attic) review() error {
	a.mu.Lock()
	defer a.mu.Unlock()
	if a.rec.Pending == nil && (!a.p.o.Restore || len(a.rec.Attic) == 0) {
		return nil
	}
	f := a.run(a.p.lane)
	err := a.enter(f)
	var e *imapconn.Error
	if errors.As(err, &e) && !temporary(e) { // the folder is gone
		f.exists = false
		a.rec.Pending, a.rec.Pairs, a.rec.Attic, a.rec.Subscribed = nil, nil, nil, false
		return f.save()
	}
	if err == nil {
		err = f.recover()
	}
	if err == nil {
		err = f.restore()
	}
	if err != nil {
		return fmt.Errorf("destination: folder %q: %w", f.name, err)
	}
	a.rec.Attic = slices.DeleteFunc(a.rec.Attic, func(k kept) bool { return !a.paired(k) })
	return f.save()
}

// enter opens the folder. When its UIDs mean other messages now, ours are looked
// for by their content.
func (a *attic) enter(f *folderRun) error {
	sel, err := f.lane.dst.Select(f.wire)
	if err != nil {
		return err
	}
	r := a.rec
	f.dsel, f.uidNext = sel, max(sel.UIDNext, 1)
	_, last := r.Pairs.last()
	if sel.UIDValidity == r.DstValidity && (sel.UIDNext == 0 || sel.UIDNext > last) {
		return nil
	}
	r.DstValidity, r.Pairs, r.Pending = sel.UIDValidity, nil, nil
	if len(r.Attic) > 0 {
		j, n := &journal{Validity: sel.UIDValidity, UIDNext: 1}, 0
		for _, k := range r.Attic {
			j.Entries = append(j.Entries, entry{UID: k.N, Exact: k.Exact, Loose: k.Loose})
		}
		if err := f.resolve(j, &n); err != nil {
			return err
		}
	}
	return f.save()
}

// put carries a message, if it is not carried yet. words are the server's when
// it refuses that too.
func (a *attic) put(from *folderRun, w *wrapper) (words string, err error) {
	a.mu.Lock()
	defer a.mu.Unlock()
	if a.claim(from, w.original) {
		return "", a.p.book.save(a.p.ctx, a.rec)
	}
	if err := a.p.lookAround(from.lane.dst); err != nil {
		return "", err
	}
	f := a.run(from.lane)
	if err := a.make(f); err != nil {
		return "", err
	}
	if err := a.enter(f); err != nil {
		return "", err
	}
	if err := f.recover(); err != nil {
		return "", err
	}
	if a.claim(from, w.original) {
		return "", f.save()
	}
	plain, err := sevenBit(io.NewSectionReader(w.original.body, 0, w.original.body.size))
	if err != nil {
		return "", fmt.Errorf("read the message: %w", err)
	}
	// What refuses the message may look into an attachment that it can read.
	for _, as := range []bool{true, false} {
		if as && !plain {
			continue
		}
		if words, err = a.append(f, from, w, as); words == "" || err != nil {
			return "", err
		}
	}
	return words, nil
}

// claim tells whether a message is carried, also when the source gave it another
// UID since: then it is the one with its content, whose UID means nothing now.
func (a *attic) claim(from *folderRun, m *incoming) bool {
	if i := a.find(from.src.Wire, from.rec.SrcValidity, m.meta.UID); i >= 0 && a.paired(a.rec.Attic[i]) {
		return true
	}
	for i, k := range a.rec.Attic {
		if (k.Folder == from.src.Wire || k.Folder == "") && k.Original == m.id.Exact && k.Validity != from.rec.SrcValidity && a.paired(k) {
			a.rec.Attic[i].Folder, a.rec.Attic[i].Validity, a.rec.Attic[i].UID = from.src.Wire, from.rec.SrcValidity, m.meta.UID
			return true
		}
	}
	return false
}

// make makes the folder when it is not there. Its name is nobody else's, and is
// in the ledger before the folder is made: found after a crash it is ours.
func (a *attic) make(f *folderRun) error {
	if a.rec.Dest == "" {
		ns := a.p.dstSide.ns
		f.name = ns.Prefix + atticName
		for n := 2; a.p.takenName(f.name); n++ {
			ours, err := a.there(f)
			if err != nil {
				return err
			}
			if f.exists = ours; ours {
				break
			}
			f.name = ns.Prefix + atticName + "-" + strconv.Itoa(n)
		}
		f.wire = imapconn.EncodeName(f.name)
		a.rec.Dest = f.wire
		if err := f.save(); err != nil {
			return err
		}
	}
	fresh := !f.exists
	if err := f.prepare(); err != nil {
		return err
	}
	if fresh {
		a.p.dstSide.folders = append(a.p.dstSide.folders, imapconn.Folder{Name: f.name, Wire: f.wire})
	}
	return nil
}

// append brings one mail. Which message it carries is in the ledger with the
// journal, before it is sent.
func (a *attic) append(f, from *folderRun, w *wrapper, plain bool) (words string, err error) {
	m, err := w.build(plain, a.p.c.TempDir)
	if err != nil {
		return "", err
	}
	defer m.body.close()
	n := uint32(1)
	for _, k := range a.rec.Attic {
		n = max(n, k.N+1)
	}
	m.meta.UID = n
	a.rec.Attic = append(a.rec.Attic, kept{N: n, Folder: from.src.Wire, Validity: from.rec.SrcValidity, UID: w.original.meta.UID,
		Original: w.original.id.Exact, Exact: m.id.Exact, Loose: m.id.Loose})
	inRow := f.lane.refusedInRow // this message was counted when it was refused as it is
	f.lane.refusedInRow = 0
	err = f.append([]*incoming{m})
	f.lane.refusedInRow = inRow
	if err != nil {
		return "", err // the journal stays, and what it is about
	}
	last := len(a.rec.Attic) - 1
	switch r := a.rec.Refused[n]; {
	case r != nil && r.Text == unrecognised:
		a.rec.Attic[last].Blind = true // taken, and offered again it would be there twice
	case r != nil:
		words = r.Text
		a.rec.Attic = a.rec.Attic[:last]
	}
	a.rec.Refused = nil
	a.p.crash("after-wrap")
	return words, f.save()
}

// inspect reads the folder for a verification: what counts is what is there.
func (a *attic) inspect() error {
	if len(a.rec.Attic) == 0 || !a.run(a.p.lane).exists {
		return nil
	}
	f := imapconn.Folder{Name: a.called(), Wire: a.rec.Dest}
	l, err := a.p.identities(a.p.dstReader, f, Filter{})
	if err != nil {
		return err
	}
	there := l.msgs
	for _, k := range a.rec.Attic {
		i := slices.IndexFunc(there, func(m *incoming) bool { return !m.done && (m.id.Exact == k.Exact || m.id.Loose == k.Loose) })
		if i >= 0 {
			there[i].done = true
			a.seen = append(a.seen, k)
		}
	}
	return nil
}

// shows tells whether inspect found a mail that carries a message with this
// content; each counts once.
func (a *attic) shows(folder string, id identity) bool {
	i := slices.IndexFunc(a.seen, func(k kept) bool { return k.Folder == folder && k.Original == id.Exact })
	if i < 0 {
		return false
	}
	a.seen = slices.Delete(a.seen, i, i+1)
	return true
}
