package pop3

import (
	"bytes"
	"cmp"
	"context"
	"errors"
	"fmt"
	"hash/fnv"
	"io"
	"slices"

	"crossfade/backfill"
	"crossfade/backfill/imapconn"
)

// Source is a mailbox on a POP3 server. A pass has it locked for as long as it
// lasts (RFC 1939, 3): the user's own program waits.
type Source struct {
	Server Server
	Login  Login
}

// String names the mailbox in reports and certificates.
func (s Source) String() string { return "pop3 " + s.Server.Address + " " + s.Login.name() }

// Open implements [backfill.Source].
func (s Source) Open(ctx context.Context, n *backfill.Numbers) (backfill.Mailbox, error) {
	b := &box{ctx: ctx, src: s, numbers: n}
	if err := b.connect(); err != nil {
		return nil, err
	}
	return b, nil
}

// Probe logs in and tells how many messages there are.
func (s Source) Probe(ctx context.Context) (messages int, err error) {
	c, err := dial(ctx, s.Server, s.Login)
	if err != nil {
		return 0, err
	}
	defer c.close()
	list, err := c.list()
	return len(list), err
}

// box is the mailbox in one pass. There is one folder, so one reader works.
type box struct {
	ctx      context.Context
	src      Source
	numbers  *backfill.Numbers
	conn     *conn
	entries  []entry
	numbered backfill.Numbered
	byUID    map[uint32]entry
	chunk    bytes.Buffer
	most     int64 // octets of a message; 0 means backfill.MaxMessage
}

// connect logs in, lists the messages and numbers them.
func (b *box) connect() error {
	if b.conn != nil {
		b.conn.close()
		b.conn = nil
	}
	c, err := dial(b.ctx, b.src.Server, b.src.Login)
	if err != nil {
		return err
	}
	b.conn = c
	if b.entries, err = c.list(); err != nil {
		b.Close()
		return fmt.Errorf("pop3 %s as %s: %w", b.src.Server.Address, b.src.Login.name(), err)
	}
	if err := b.number(); err != nil {
		b.Close()
		return err
	}
	return nil
}

// number gives the messages their UIDs. Servers that make the UIDL of something
// that is free again when a message is gone give it to another one: that is seen
// by the size, and then all are matched by their content again.
func (b *box) number() (err error) {
	names, sizes := make([]string, len(b.entries)), make(map[string]int64, len(b.entries))
	count := map[string]int{}
	for i, e := range b.entries {
		// Messages that are the same may have the same id (RFC 1939, 7).
		count[e.id]++
		if names[i] = e.id; count[e.id] > 1 {
			names[i] = fmt.Sprintf("%s %d", e.id, count[e.id])
		}
		sizes[names[i]] = e.size
	}
	if b.numbered, err = b.numbers.Assign("INBOX", names, backfill.StoreUIDs{Sizes: sizes}); err != nil {
		return err
	}
	b.byUID = make(map[uint32]entry, len(names))
	for i, name := range names {
		b.byUID[b.numbered.UIDs[name]] = b.entries[i]
	}
	return nil
}

// Close implements [backfill.Mailbox].
func (b *box) Close() error {
	if b.conn != nil {
		b.conn.close()
		b.conn = nil
	}
	return nil
}

// Namespaces implements [backfill.Mailbox].
func (b *box) Namespaces() (imapconn.Namespaces, error) { return imapconn.Namespaces{Delim: "/"}, nil }

// List implements [backfill.Mailbox].
func (b *box) List() ([]imapconn.Folder, error) {
	return []imapconn.Folder{{Name: "INBOX", Wire: "INBOX", Delim: "/"}}, nil
}

// Statuses implements [backfill.Mailbox].
func (b *box) Statuses([]string) (map[string]imapconn.Status, map[string]error, error) {
	h, size := fnv.New64a(), int64(0)
	for _, e := range b.entries {
		fmt.Fprintf(h, "%s %d\n", e.id, e.size)
		size += e.size
	}
	return map[string]imapconn.Status{"INBOX": {Messages: uint32(len(b.entries)), UIDNext: b.numbered.Next, UIDValidity: b.numbered.Validity,
		ModSeq: h.Sum64()>>1 | 1, Size: size}}, nil, nil
}

// NewReader implements [backfill.Mailbox].
func (b *box) NewReader() backfill.MailReader { return &reader{b: b} }

// reader reads the one folder over the one connection.
type reader struct {
	b        *box
	validity uint32 // when the folder was opened
}

// Close implements [backfill.MailReader].
func (r *reader) Close() error { return nil }

// Select implements [backfill.MailReader].
func (r *reader) Select(f imapconn.Folder) (imapconn.Selected, error) {
	if f.Wire != "INBOX" {
		return imapconn.Selected{}, fmt.Errorf("%q: %w: POP3 has the INBOX only", f.Name, backfill.ErrFolder)
	}
	r.validity = r.b.numbered.Validity
	return r.selected(), nil
}

func (r *reader) selected() imapconn.Selected {
	b := r.b
	return imapconn.Selected{UIDValidity: b.numbered.Validity, UIDNext: b.numbered.Next, Exists: uint32(len(b.entries))}
}

// ListAll implements [backfill.MailReader]. POP3 has no flags: the lists of them
// are empty. The date is known when the message is read.
func (r *reader) ListAll(it imapconn.Items) ([]imapconn.Meta, imapconn.Selected, error) {
	metas := make([]imapconn.Meta, 0, len(r.b.byUID))
	for uid, e := range r.b.byUID {
		metas = append(metas, meta(uid, e, it))
	}
	slices.SortFunc(metas, func(a, b imapconn.Meta) int { return cmp.Compare(a.UID, b.UID) })
	return metas, r.selected(), nil
}

func meta(uid uint32, e entry, it imapconn.Items) imapconn.Meta {
	m := imapconn.Meta{UID: uid, Size: e.size}
	if it.Flags {
		m.Flags = []string{}
	}
	return m
}

const (
	attempts = 3  // for one message, until it counts as unreadable
	hopeless = 20 // unreadable messages in a row: it is not the messages
	window   = 32 // commands that are sent ahead of their answers
)

var (
	errGone     = errors.New("the server has it no more")
	errTooLarge = fmt.Errorf("it has more than %d octets, which is no message", int64(backfill.MaxMessage))
)

// Fetch implements [backfill.MailReader]. What does not come is asked for again
// over a new connection.
func (r *reader) Fetch(uids []uint32, it imapconn.Items, recv imapconn.Receiver) ([]imapconn.Failure, error) {
	var failures []imapconn.Failure
	for tries, streak := 0, 0; len(uids) > 0; {
		done, refused, err := r.b.fetch(uids, it, recv)
		failures = append(failures, refused...)
		var re *errReceiver
		if errors.As(err, &re) {
			return nil, re.err
		}
		if r.b.ctx.Err() != nil {
			return nil, context.Cause(r.b.ctx)
		}
		if err == nil {
			break
		}
		if done > 0 {
			tries, streak = 0, 0
		}
		uids = uids[done:]
		if tries++; tries >= attempts || errors.Is(err, errTooLarge) {
			failures = append(failures, imapconn.Failure{UID: uids[0], Err: err})
			uids, tries = uids[1:], 0
			if streak++; streak >= hopeless {
				return nil, fmt.Errorf("%d messages in a row cannot be read: %w", streak, err)
			}
		}
		if err := r.b.connect(); err != nil {
			return nil, err
		}
		if r.b.numbered.Validity != r.validity {
			return nil, fmt.Errorf("folder INBOX: %w", imapconn.ErrChanged)
		}
	}
	return failures, nil
}

// fetch reads messages until the connection ends, and tells how many of them are
// settled.
func (b *box) fetch(uids []uint32, it imapconn.Items, recv imapconn.Receiver) (done int, failures []imapconn.Failure, err error) {
	if b.conn == nil || b.conn.broken != nil {
		return 0, nil, &errConn{errors.New("it was not used for too long")}
	}
	ahead := 1
	if b.conn.has("PIPELINING") {
		ahead = window
	}
	sent := 0
	for i, uid := range uids {
		e, ok := b.byUID[uid]
		if !ok {
			failures = append(failures, imapconn.Failure{UID: uid, Gone: true, Err: errGone})
			sent = max(sent, i+1)
			continue
		}
		if !it.Body {
			if err := recv.End(meta(uid, e, it)); err != nil {
				return i, failures, &errReceiver{err}
			}
			continue
		}
		if i >= sent {
			if sent, err = b.ask(uids, i, ahead); err != nil {
				return i, failures, err
			}
		}
		err := b.take(uid, e, it, recv)
		var refused *Error
		if errors.As(err, &refused) {
			failures = append(failures, imapconn.Failure{UID: uid, Err: err})
			continue
		}
		if err != nil {
			b.conn.fail(err)
			return i, failures, err
		}
	}
	return len(uids), failures, nil
}

// ask sends the commands for the next messages.
func (b *box) ask(uids []uint32, from, ahead int) (sent int, err error) {
	var lines []string
	end := min(from+ahead, len(uids))
	for _, uid := range uids[from:end] {
		if e, ok := b.byUID[uid]; ok {
			lines = append(lines, fmt.Sprintf("RETR %d", e.num))
		}
	}
	if err := b.conn.send(lines...); err != nil {
		return from, &errConn{err}
	}
	return end, nil
}

// inMemory is the size up to which a message is read before it is handed on, so
// that its size is known exactly: what LIST says is often not true.
const inMemory = 1 << 20

// take reads the answer to one RETR.
func (b *box) take(uid uint32, e entry, it imapconn.Items, recv imapconn.Receiver) error {
	if _, err := b.conn.reply("RETR"); err != nil {
		return err
	}
	src := &body{br: b.conn.br, bareLF: b.conn.bareLF}
	b.chunk.Reset()
	n, err := b.chunk.ReadFrom(io.LimitReader(src, inMemory))
	if err != nil {
		return &errConn{err}
	}
	m := meta(uid, e, it)
	if it.Date {
		m.Date = received(b.chunk.Bytes())
	}
	size := n
	if n == inMemory {
		size = max(n+1, e.size) // more follows, whatever LIST says
	}
	w, err := recv.Begin(uid, size)
	if err != nil {
		return &errReceiver{err}
	}
	for m.Size = 0; ; {
		if m.Size += n; m.Size > cmp.Or(b.most, backfill.MaxMessage) {
			return errTooLarge
		}
		if _, err := w.Write(b.chunk.Bytes()); err != nil {
			return &errReceiver{err}
		}
		if n < inMemory {
			break
		}
		b.chunk.Reset()
		if n, err = b.chunk.ReadFrom(io.LimitReader(src, inMemory)); err != nil {
			return &errConn{err}
		}
	}
	if err := recv.End(m); err != nil {
		return &errReceiver{err}
	}
	return nil
}
