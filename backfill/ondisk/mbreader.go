package ondisk

import (
	"cmp"
	"slices"

	"crossfade/backfill/imapconn"
)

// mbReader reads the messages of mbox files.
type mbReader struct {
	t     *mbTree
	wire  string
	state *mbState
	byUID map[uint32]*mbMessage
	hand  handing
}

// Close implements [backfill.MailReader].
func (r *mbReader) Close() error { return nil }

// Select implements [backfill.MailReader]. A file that only grew since this pass looked
// at it is taken as it was then: what came behind is for the next pass, and mail that
// comes without pause does not have it read again and again.
func (r *mbReader) Select(f imapconn.Folder) (imapconn.Selected, error) {
	r.wire, r.state = f.Wire, nil
	if s := r.t.grown(f.Wire); s != nil {
		r.take(s)
		return r.selected(), nil
	}
	if err := r.again(); err != nil {
		return imapconn.Selected{}, err
	}
	return r.selected(), nil
}

func (r *mbReader) again() error {
	s, err := r.t.look(r.wire)
	if err != nil {
		return err
	}
	if r.state != nil && r.state.numbered.Validity != s.numbered.Validity {
		return folderError(r.wire, imapconn.ErrChanged)
	}
	r.take(s)
	return nil
}

func (r *mbReader) take(s *mbState) {
	r.state, r.byUID = s, make(map[uint32]*mbMessage, len(s.index.messages))
	for i := range s.index.messages {
		m := &s.index.messages[i]
		r.byUID[s.numbered.UIDs[m.name]] = m
	}
}

func (r *mbReader) selected() imapconn.Selected {
	n := r.state.numbered
	return imapconn.Selected{UIDValidity: n.Validity, UIDNext: n.Next, Exists: uint32(len(r.state.index.messages))}
}

// ListAll implements [backfill.MailReader]. Sizes are those in the file.
func (r *mbReader) ListAll(it imapconn.Items) ([]imapconn.Meta, imapconn.Selected, error) {
	metas := make([]imapconn.Meta, 0, len(r.byUID))
	for uid, m := range r.byUID {
		metas = append(metas, m.meta(uid, it))
	}
	slices.SortFunc(metas, func(a, b imapconn.Meta) int { return cmp.Compare(a.UID, b.UID) })
	return metas, r.selected(), nil
}

func (m *mbMessage) meta(uid uint32, it imapconn.Items) imapconn.Meta {
	meta := imapconn.Meta{UID: uid, Size: m.end - m.start}
	if it.Flags {
		meta.Flags = slices.Clone(m.flags)
	}
	if it.Date {
		meta.Date = m.date
	}
	return meta
}
