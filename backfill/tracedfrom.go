package backfill

import (
	"bytes"
	"fmt"
	"io"
	"slices"

	"crossfade/backfill/imapconn"
)

// runFrom looks into a mailbox that is not reached over IMAP. These have no Received
// fields by themselves: messages are read until their header has ended.
func (t *tracing) runFrom() (err error) {
	if t.book, err = openBook(t.p.ctx, t.p.c.Ledger, t.p.job.User); err != nil {
		return err
	}
	box, err := t.p.job.From.Open(t.p.ctx, &Numbers{ctx: t.p.ctx, book: t.book, dry: true})
	if err != nil {
		return err
	}
	defer box.Close()
	folders, err := box.List()
	if err != nil {
		return err
	}
	r := box.NewReader()
	defer r.Close()
	for _, f := range folders {
		if !f.Selectable() {
			continue
		}
		if err := t.folderFrom(r, f); err != nil {
			return fmt.Errorf("folder %q: %w", f.Name, err)
		}
	}
	return t.anewBefore()
}

func (t *tracing) folderFrom(r MailReader, f imapconn.Folder) error {
	sel, err := r.Select(f)
	if err != nil {
		return err
	}
	paired, err := t.opened(f, sel)
	if err != nil {
		return err
	}
	metas, _, err := r.ListAll(imapconn.Items{})
	if err != nil {
		return err
	}
	t.out.Messages += len(metas)
	h := &headers{f: func(uid uint32, header []byte) {
		t.found(header, Place{Folder: f.Name, UID: uid, Validity: sel.UIDValidity}, paired)
	}}
	failures, err := r.Fetch(uidsOf(metas), imapconn.Items{Body: true}, h)
	t.unread(failures)
	return err
}

// headers takes of each message the header, as far as our Received field can be.
type headers struct {
	f   func(uid uint32, header []byte)
	buf headBuffer
}

// Begin implements imapconn.Receiver.
func (h *headers) Begin(uint32, int64) (io.Writer, error) {
	h.buf = headBuffer{b: h.buf.b[:0]}
	return &h.buf, nil
}

// End implements imapconn.Receiver.
func (h *headers) End(m imapconn.Meta) error {
	h.f(m.UID, h.buf.b)
	return nil
}

// headBuffer keeps the beginning of a message up to the end of its header.
type headBuffer struct {
	b    []byte
	full bool
}

// mostHeader is how much of a header is looked at, in octets.
const mostHeader = 256 << 10

// Write implements io.Writer.
func (h *headBuffer) Write(p []byte) (int, error) {
	if h.full {
		return len(p), nil
	}
	from := max(len(h.b)-3, 0)
	h.b = append(h.b, p[:min(len(p), mostHeader-len(h.b))]...)
	if i := bytes.Index(h.b[from:], []byte("\r\n\r\n")); i >= 0 {
		h.b, h.full = h.b[:from+i+4], true
	}
	h.full = h.full || len(h.b) == mostHeader
	return len(p), nil
}

// opened notes a folder, and gives what tells of its messages where their counterparts
// were on the other side.
func (t *tracing) opened(f imapconn.Folder, sel imapconn.Selected) (func(uint32) (Twin, bool), error) {
	t.out.Folders[f.Wire] = sel.UIDValidity
	recs, err := t.recordsAt(f.Wire)
	if err != nil {
		return nil, err
	}
	twins := map[uint32]Twin{}
	for _, r := range recs {
		_, last := r.Pairs.last()
		if r.DstValidity != 0 && (r.DstValidity != sel.UIDValidity || sel.UIDNext != 0 && sel.UIDNext <= last) {
			t.out.Anew = append(t.out.Anew, Anew{Folder: f.Name, Was: r.DstValidity, Now: sel.UIDValidity, At: t.out.At})
			continue
		}
		for _, run := range r.Pairs {
			for i := range run.N {
				twins[run.Dst+i] = Twin{Wire: r.Source, Validity: r.SrcValidity}
			}
		}
		for _, uid := range r.other().Known {
			twins[uid] = Twin{}
		}
	}
	return func(uid uint32) (Twin, bool) {
		w, ok := twins[uid]
		return w, ok
	}, nil
}

// recordsAt gives what the ledger knows of a folder of the side that is looked into,
// as a pass to that side sees it.
func (t *tracing) recordsAt(wire string) ([]*record, error) {
	if t.out.Side == SideSource {
		r, err := t.book.record(wire)
		if err != nil || r.SrcValidity == 0 {
			return nil, err
		}
		return []*record{r.inverted()}, nil
	}
	all, err := t.book.all()
	return slices.DeleteFunc(all, func(r *record) bool { return r.Dest != wire }), err
}
