package imapconn

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"strings"
	"time"

	"github.com/emersion/go-imap/v2"
	"github.com/emersion/go-imap/v2/imapclient"
)

// Reader reads messages of one account through go-imap. It connects again by
// itself: after a drop, and after a response that go-imap cannot parse. It is
// not safe for use by several goroutines.
//
// Only UID, FLAGS, INTERNALDATE, RFC822.SIZE and BODY.PEEK[] are asked for: what
// go-imap makes of more than that ends connections.
type Reader struct {
	d    *Dialer
	ctx  context.Context
	acct Account

	client *imapclient.Client
	w      *wire
	stop   func() bool

	// Pauser waits when the server wants it slower; nil: its answer is an error
	// like any other.
	Pauser Pauser

	folder   Folder
	selected Selected
	// forgetful is the session's, kept has the folders that were settled.
	forgetful bool
	kept      map[string]bool
	expected  *Items // see Expect
	ahead     *listing
	buf       []byte // for copying literals
}

// NewReader makes a reader. A session that is handed over is used up; nil
// makes the reader connect when it is needed.
func NewReader(ctx context.Context, d *Dialer, acct Account, s *Session) *Reader {
	r := &Reader{d: d, ctx: ctx, acct: acct}
	if s != nil && s.broken == nil {
		r.adopt(s)
	}
	return r
}

// adopt puts go-imap on a session that is logged in already. go-imap sees a
// greeting of ours, which names only the capabilities that change what it
// writes: without IMAP4rev2 it writes names in modified UTF-7.
func (r *Reader) adopt(s *Session) {
	greeting := "* PREAUTH [CAPABILITY IMAP4rev1"
	for _, c := range []string{"LITERAL+", "LITERAL-", "CONDSTORE"} {
		if s.caps[c] {
			greeting += " " + c
		}
	}
	greeting += "] handed over\r\n"
	r.w, r.stop = s.w, s.stop
	var from io.Reader = s.br
	if s.caps["BINARY"] {
		from = &plainLiterals{br: s.br}
	}
	conn := &handedOver{wire: s.w, r: io.MultiReader(strings.NewReader(greeting), from)}
	r.client = imapclient.New(conn, nil)
	r.forgetful = s.forgetful
	s.broken = errClosed
}

type handedOver struct {
	*wire
	r io.Reader
}

func (h *handedOver) Read(p []byte) (int, error) { return h.r.Read(p) }

// Close ends the connection.
func (r *Reader) Close() error {
	if r.client == nil {
		return nil
	}
	client, stop := r.client, r.stop
	r.w.idle.Store(int64(2 * time.Second))
	_ = client.Logout() // the answer changes nothing
	r.client = nil
	err := r.w.Conn.Close()
	_ = client.Close()
	r.ahead.wait()
	r.ahead = nil
	stop()
	return err
}

// abort gives the connection up. The net.Conn goes first: go-imap's Close
// hangs on a literal that nobody reads.
func (r *Reader) abort() {
	if r.client == nil {
		return
	}
	r.w.Conn.Close()
	_ = r.client.Close()
	r.ahead.wait()
	r.stop()
	r.client, r.ahead = nil, nil
}

// fault is an error of a connection; the connection is given up with it.
type fault struct {
	err   error
	parse bool // go-imap could not read what the server sent
}

func (f *fault) Error() string { return f.err.Error() }
func (f *fault) Unwrap() error { return f.err }

// failed turns an error of go-imap into ours. NO and BAD leave the connection
// as it is.
func (r *Reader) failed(what string, err error) error {
	if err == nil {
		return nil
	}
	var e *imap.Error
	if errors.As(err, &e) {
		return &Error{Command: what, Status: string(e.Type), Code: string(e.Code), Text: printable(e.Text)}
	}
	if r.ctx.Err() != nil {
		r.abort()
		return context.Cause(r.ctx)
	}
	f := &fault{err: fmt.Errorf("%s: %s", what, printable(err.Error()))}
	if r.w != nil {
		f.parse = r.w.dropped() == nil
		f.err = r.w.explain(f.err)
	}
	r.abort()
	return f
}

// ErrChanged says that UIDVALIDITY changed while the folder was being read: all
// UIDs mean other messages now.
var ErrChanged = errors.New("UIDVALIDITY changed meanwhile")

// Select opens a folder for reading.
func (r *Reader) Select(f Folder) (Selected, error) {
	r.folder, r.selected = f, Selected{}
	sel, err := r.reselect()
	r.expected = nil
	if err == nil {
		r.selected = sel
	}
	return sel, err
}

// Again opens the folder that is open once more, and so learns what is new.
func (r *Reader) Again() (Selected, error) {
	sel, err := r.reselect()
	if err == nil {
		r.selected = sel
	}
	return sel, err
}

func (r *Reader) reselect() (Selected, error) {
	var sel Selected
	var err error
	for try := 0; try < 3; try++ { // a kept connection may have died of old age
		sel, err = r.examine()
		if again, perr := r.slower(err); perr != nil {
			return sel, fmt.Errorf("folder %q: %w", r.folder.Name, perr)
		} else if again {
			try--
			continue
		}
		var f *fault
		if errors.As(err, &f) && f.parse {
			// An odd keyword in FLAGS, say: our own engine reads over it.
			sel, err = r.examineRaw()
		}
		if !errors.As(err, &f) {
			break
		}
	}
	if err != nil {
		return sel, fmt.Errorf("folder %q: %w", r.folder.Name, err)
	}
	if r.selected.UIDValidity != 0 && sel.UIDValidity != r.selected.UIDValidity {
		return sel, fmt.Errorf("folder %q: %w", r.folder.Name, ErrChanged)
	}
	if r.forgetful && !r.kept[r.folder.Wire] && young(sel.UIDValidity) {
		if err := r.keep(); err != nil {
			return sel, fmt.Errorf("folder %q: %w", r.folder.Name, err)
		}
		return r.reselect()
	}
	return sel, nil
}

func (r *Reader) examine() (Selected, error) {
	if EncodeName(r.folder.Name) != r.folder.Wire && r.folder.Name != "INBOX" {
		return r.examineRaw()
	}
	if r.client == nil {
		s, err := r.d.Open(r.ctx, r.acct)
		if err != nil {
			return Selected{}, err
		}
		r.adopt(s)
	}
	opts := &imap.SelectOptions{ReadOnly: true, CondStore: r.client.Caps().Has(imap.CapCondStore)}
	cmd := r.client.Select(r.folder.Name, opts)
	r.lookAhead()
	data, err := cmd.Wait()
	if err != nil {
		err = r.failed("EXAMINE", err)
		r.ahead.wait()
		r.ahead = nil
		return Selected{}, err
	}
	sel := Selected{UIDValidity: data.UIDValidity, UIDNext: uint32(data.UIDNext), Exists: data.NumMessages, ModSeq: data.HighestModSeq}
	if sel.UIDNext == 0 || sel.UIDValidity == 0 {
		st, err := r.client.Status(r.folder.Name, &imap.StatusOptions{UIDNext: true, UIDValidity: true}).Wait()
		if err != nil {
			return Selected{}, r.failed("STATUS", err)
		}
		sel.UIDValidity, sel.UIDNext = st.UIDValidity, uint32(st.UIDNext)
	}
	if sel.UIDValidity == 0 {
		return sel, errors.New("EXAMINE: the server tells no UIDVALIDITY, so no message can be known again")
	}
	return sel, nil
}

// examineRaw opens a folder whose name go-imap would write in another way than
// the server does: a new connection opens it before go-imap takes over.
func (r *Reader) examineRaw() (Selected, error) {
	r.abort()
	s, err := r.d.Open(r.ctx, r.acct)
	if err != nil {
		return Selected{}, err
	}
	sel, err := s.open("EXAMINE", r.folder.Wire)
	if err != nil {
		s.Close()
		return sel, err
	}
	r.adopt(s)
	return sel, nil
}

// slower waits when err says that the server wants less to be asked of it, and
// tells whether to ask again.
func (r *Reader) slower(err error) (again bool, _ error) {
	if _, ok := Throttled(err); !ok || r.Pauser == nil {
		return false, nil
	}
	if err := r.Pauser.Pause(r.ctx, err); err != nil {
		return false, err
	}
	return true, nil
}

// ensure connects and opens the folder when there is no connection.
func (r *Reader) ensure() error {
	if r.client != nil {
		return nil
	}
	_, err := r.reselect()
	return err
}

// Meta is what is known of a message without its body.
type Meta struct {
	UID  uint32
	Size int64 // RFC822.SIZE
	// Flags are without \Recent; nil when they
	// were not asked for or cannot be read, empty when there are none.
	Flags []string
	Date  time.Time // INTERNALDATE; zero when it cannot be read
}

// Items say what to fetch beside the UID.
type Items struct {
	Flags bool
	Size  bool
	Date  bool
	// Body asks for the whole message, Received for its Received fields only.
	Body     bool
	Received bool
}

func (it Items) options() *imap.FetchOptions {
	o := &imap.FetchOptions{UID: true, Flags: it.Flags, RFC822Size: it.Size, InternalDate: it.Date}
	switch {
	case it.Body:
		o.BodySection = []*imap.FetchItemBodySection{{Peek: true}}
	case it.Received:
		o.BodySection = []*imap.FetchItemBodySection{{Peek: true, Specifier: imap.PartSpecifierHeader, HeaderFields: []string{"Received"}}}
	}
	return o
}

func (it Items) literal() bool { return it.Body || it.Received }

// asked tells whether a section is what was asked for.
func (it Items) asked(s *imap.FetchItemBodySection) bool {
	switch {
	case s == nil || len(s.Part) > 0 || s.Partial != nil:
		return false
	case it.Body:
		return s.Specifier == imap.PartSpecifierNone
	}
	return it.Received && s.Specifier == imap.PartSpecifierHeader
}

// Receiver takes messages as they come.
type Receiver interface {
	// Begin gives the place for the octets of a message; its size is what the
	// server announces. It is called again for the same message when the first
	// attempt broke off: what was written then is void.
	Begin(uid uint32, size int64) (io.Writer, error)
	// End says that the message is complete.
	End(m Meta) error
}

// receiverError is an error of the receiver: no further attempt mends it.
type receiverError struct{ err error }

func (e *receiverError) Error() string { return e.err.Error() }
func (e *receiverError) Unwrap() error { return e.err }

// fetchOnce asks once for a set of messages. got has those that came complete.
func (r *Reader) fetchOnce(set imap.UIDSet, it Items, recv Receiver, got map[uint32]bool) error {
	if err := r.ensure(); err != nil {
		return err
	}
	cmd := r.client.Fetch(set, it.options())
	for data := cmd.Next(); data != nil; data = cmd.Next() {
		if err := r.takeMessage(data, it, recv, got); err != nil {
			return r.breakOff(cmd, err)
		}
	}
	return r.failed("UID FETCH", cmd.Close())
}

// breakOff ends a FETCH in the middle, and the connection with it. The net.Conn
// is closed first. After a literal that ended early go-imap's reading goroutine
// has to be over before the rest is drained, because draining reads the same
// literal once more; after an error of the receiver it waits for the draining.
func (r *Reader) breakOff(cmd *imapclient.FetchCommand, err error) error {
	var re *receiverError
	mine := errors.As(err, &re)
	r.w.Conn.Close()
	if !mine {
		<-r.client.Closed()
	}
	_ = cmd.Close()
	if mine {
		r.abort()
		return err
	}
	return r.failed("UID FETCH", err)
}

func (r *Reader) takeMessage(data *imapclient.FetchMessageData, it Items, recv Receiver, got map[uint32]bool) error {
	var m Meta
	body, sized := false, false
	for item := data.Next(); item != nil; item = data.Next() {
		switch item := item.(type) {
		case imapclient.FetchItemDataUID:
			m.UID = uint32(item.UID)
		case imapclient.FetchItemDataFlags:
			m.Flags = lasting(item.Flags)
		case imapclient.FetchItemDataRFC822Size:
			m.Size, sized = item.Size, true
		case imapclient.FetchItemDataInternalDate:
			m.Date = item.Time
		case imapclient.FetchItemDataBodySection:
			// What was not asked for is thrown away: part of a message is not it.
			if item.Literal == nil || m.UID == 0 || got[m.UID] || !it.asked(item.Section) {
				continue
			}
			if err := r.copyLiteral(m.UID, item.Literal, recv); err != nil {
				return err
			}
			body = true
		}
	}
	// An unsolicited update of the flags is no message, and when it comes in
	// front of one go-imap throws the message away: it is asked for again.
	if m.UID == 0 || got[m.UID] || it.literal() && !body || it.Size && !sized {
		return nil
	}
	if err := recv.End(m); err != nil {
		return &receiverError{err}
	}
	got[m.UID] = true
	return nil
}

// lasting gives flags without \Recent, which says something of the session only.
func lasting(flags []imap.Flag) []string {
	out := []string{}
	for _, f := range flags {
		if !strings.EqualFold(string(f), `\Recent`) {
			out = append(out, string(f))
		}
	}
	return out
}

// copyLiteral compares what came with what was announced: go-imap shows a
// literal that was cut short as one that ended well.
func (r *Reader) copyLiteral(uid uint32, lit imap.LiteralReader, recv Receiver) error {
	w, err := recv.Begin(uid, lit.Size())
	if err != nil {
		return &receiverError{err}
	}
	sink := &sink{w: w}
	if r.buf == nil {
		r.buf = make([]byte, 32<<10)
	}
	n, err := io.CopyBuffer(sink, lit, r.buf)
	if sink.err != nil {
		return &receiverError{sink.err}
	}
	if err != nil {
		return err
	}
	if n != lit.Size() {
		return fmt.Errorf("message %d has %d octets instead of the %d announced", uid, n, lit.Size())
	}
	return nil
}

// sink tells errors of writing from errors of reading.
type sink struct {
	w   io.Writer
	err error
}

func (s *sink) Write(p []byte) (int, error) {
	n, err := s.w.Write(p)
	if err != nil {
		s.err = err
	}
	return n, err
}

// metaReceiver collects messages without bodies, and the Received fields.
type metaReceiver struct {
	metas  []Meta
	fields map[uint32]*fieldBuffer
}

// maxFields is how many octets of a message's Received fields are kept.
const maxFields = 256 << 10

// fieldBuffer keeps the first octets; a server may send as many as it likes.
type fieldBuffer struct{ bytes.Buffer }

func (b *fieldBuffer) Write(p []byte) (int, error) {
	b.Buffer.Write(p[:min(len(p), maxFields-b.Len())])
	return len(p), nil
}

func (c *metaReceiver) Begin(uid uint32, _ int64) (io.Writer, error) {
	b := &fieldBuffer{}
	c.fields[uid] = b
	return b, nil
}

func (c *metaReceiver) End(m Meta) error {
	c.metas = append(c.metas, m)
	return nil
}
