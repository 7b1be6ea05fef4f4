package backfill

import (
	"cmp"
	"errors"
	"fmt"
	"slices"

	"crossfade/backfill/imapconn"
)

// gmailReader reads folders of a gmailBox: lists are made from what was listed
// of All Mail, Spam and Trash, messages are fetched there.
type gmailReader struct {
	b      *gmailBox
	r      *imapconn.Reader // nil until it is needed
	folder imapconn.Folder
	at     string // the folder that r has open
}

// NewReader implements [Mailbox].
func (b *gmailBox) NewReader() MailReader { return &gmailReader{b: b} }

// reader gives the connection, which is that of the mailbox as long as nobody
// has it.
func (r *gmailReader) reader() *imapconn.Reader {
	if r.r == nil {
		r.b.mu.Lock()
		s := r.b.session
		r.b.session = nil
		r.b.mu.Unlock()
		r.r = r.b.p.reader(r.b.p.job.Source, s)
	}
	return r.r
}

// Connect connects now instead of when the connection is first needed.
func (r *gmailReader) Connect() error { return r.reader().Connect() }

// Close implements [MailReader].
func (r *gmailReader) Close() error {
	if r.r == nil {
		return nil
	}
	err := r.r.Close()
	r.r, r.at = nil, ""
	return err
}

// lend runs something over the connection of the reader, which cannot list
// labels. The lock of the mailbox is held.
func (r *gmailReader) lend(do func(*imapconn.Session) error) error {
	s := r.b.session
	r.b.session = nil
	if s == nil {
		_ = r.Close() // one connection for each reader, and no more
	}
	s, err := r.b.over(s, do)
	if err != nil {
		return err
	}
	if r.r == nil {
		r.r = r.b.p.reader(r.b.p.job.Source, s)
		return nil
	}
	return s.Close()
}

// look gives what is known of the messages, and lists them when they are not.
func (r *gmailReader) look() (*gmailSnap, error) {
	b := r.b
	b.mu.Lock()
	defer b.mu.Unlock()
	if b.snap != nil {
		return b.snap, nil
	}
	err := r.lend(func(s *imapconn.Session) (err error) {
		b.snap, err = b.list(s, "")
		return err
	})
	return b.snap, err
}

// confirm lists all once more, after a search for all, once in a pass.
func (r *gmailReader) confirm() (*gmailSnap, [3]map[uint32]bool, error) {
	b := r.b
	b.mu.Lock()
	defer b.mu.Unlock()
	if b.confirmed {
		return b.snap, b.searched, nil
	}
	err := r.lend(func(s *imapconn.Session) error {
		for i, wire := range b.view.real {
			if wire == "" {
				continue
			}
			uids, err := s.GmailUIDs(wire)
			if err != nil {
				return err
			}
			b.searched[i] = make(map[uint32]bool, len(uids))
			for _, u := range uids {
				b.searched[i][u] = true
			}
		}
		snap, err := b.list(s, "")
		if err == nil {
			b.snap, b.confirmed = snap, true
		}
		return err
	})
	return b.snap, b.searched, err
}

// Select implements [MailReader].
func (r *gmailReader) Select(f imapconn.Folder) (imapconn.Selected, error) {
	r.folder = f
	snap, err := r.look()
	if err != nil {
		return imapconn.Selected{}, err
	}
	return snap.selected(f)
}

func (s *gmailSnap) selected(f imapconn.Folder) (imapconn.Selected, error) {
	sel := imapconn.Selected{UIDValidity: s.validity[gmailFolder(f.Wire)]}
	if sel.UIDValidity == 0 {
		return sel, fmt.Errorf("folder %q: %w: Gmail does not show it to IMAP", f.Name, ErrFolder)
	}
	for _, m := range s.msgs[gmailFolder(f.Wire)] {
		if m.set.in(f.Wire) {
			sel.Exists++
		}
	}
	return sel, nil
}

// ListAll implements [MailReader].
func (r *gmailReader) ListAll(imapconn.Items) ([]imapconn.Meta, imapconn.Selected, error) {
	snap, err := r.look()
	if err != nil {
		return nil, imapconn.Selected{}, err
	}
	sel, err := snap.selected(r.folder)
	if err != nil {
		return nil, sel, err
	}
	metas := make([]imapconn.Meta, 0, sel.Exists)
	for _, m := range snap.msgs[gmailFolder(r.folder.Wire)] {
		if m.set.in(r.folder.Wire) {
			meta := m.Meta
			meta.Flags = m.set.flags(m.Flags)
			metas = append(metas, meta)
		}
	}
	return metas, sel, nil
}

// UIDsFrom gives the UIDs of the folder as a second look finds them. What a
// search finds and a list does not counts as being there.
func (r *gmailReader) UIDsFrom(from uint32) ([]uint32, error) {
	before, err := r.look()
	if err != nil {
		return nil, err
	}
	snap, searched, err := r.confirm()
	if err != nil {
		return nil, err
	}
	i := gmailFolder(r.folder.Wire)
	if snap.validity[i] != before.validity[i] {
		return nil, fmt.Errorf("folder %q: %w", r.folder.Name, imapconn.ErrChanged)
	}
	listed := make(map[uint32]bool, len(snap.msgs[i]))
	var uids []uint32
	for _, m := range snap.msgs[i] {
		listed[m.UID] = true
		if m.set.in(r.folder.Wire) && m.UID >= from {
			uids = append(uids, m.UID)
		}
	}
	for u := range searched[i] {
		if !listed[u] && u >= from {
			uids = append(uids, u)
		}
	}
	slices.Sort(uids)
	return uids, nil
}

// Fetch implements [MailReader].
func (r *gmailReader) Fetch(uids []uint32, it imapconn.Items, recv imapconn.Receiver) ([]imapconn.Failure, error) {
	snap, err := r.look()
	if err != nil {
		return nil, err
	}
	i := gmailFolder(r.folder.Wire)
	wire := r.b.view.real[i]
	if r.r == nil || r.at != wire {
		r.at = ""
		sel, err := r.reader().Select(imapconn.Folder{Name: nameOf(wire), Wire: wire, Delim: "/"})
		if err != nil {
			return nil, err
		}
		if sel.UIDValidity != snap.validity[i] {
			return nil, fmt.Errorf("folder %q: %w", wire, imapconn.ErrChanged)
		}
		r.at = wire
	}
	return r.r.Fetch(uids, it, &gmailReceiver{recv, snap.msgs[i]})
}

// gmailReceiver adds to the flags of messages what their labels say.
type gmailReceiver struct {
	imapconn.Receiver
	msgs []gmailMessage
}

// End implements [imapconn.Receiver].
func (g *gmailReceiver) End(m imapconn.Meta) error {
	i, ok := slices.BinarySearchFunc(g.msgs, m.UID, func(a gmailMessage, uid uint32) int { return cmp.Compare(a.UID, uid) })
	if !ok {
		return errors.New("a message came from Gmail that was not asked for")
	}
	m.Flags = g.msgs[i].set.flags(m.Flags)
	return g.Receiver.End(m)
}
