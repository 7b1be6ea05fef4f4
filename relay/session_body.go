package relay

import (
	"context"
	"errors"
	"io"
	"log/slog"
	"sync"
	"time"

	"crossfade/mail"
	"crossfade/relay/wire"
)

// bodyReader is what the store reads: our trace header, then the message as
// wire settled it, unchanged (I9). On the way it scans the header, and it sets
// Envelope.MessageID and Envelope.Passage when the header is over: queue.Enqueuer.Put reads the body
// to its end before it writes the envelope, in whichever goroutine it likes.
type bodyReader struct {
	head []byte // what is left of the trace header
	r    io.Reader
	env  *mail.Envelope
	scan headerScan
	from mail.Route // the side whose server the client is

	forged *forgedFilter // nil: the message is of our own systems
	rest   []byte        // what stays of it and did not fit, for the next Read
	looks  inspections
	ctx    context.Context
	log    *slog.Logger

	buf   *bodyBuffers
	begun bool  // the first octet that is stored of the message was seen
	err   error // sticky
	done  bool  // the end of the message was reached
	ended time.Time
}

// bodyBuffers are pooled: most connections bring one message.
type bodyBuffers struct{ head, line, text []byte }

var bodyPool = sync.Pool{New: func() any {
	return &bodyBuffers{head: make([]byte, 0, 512), line: make([]byte, 0, 256), text: make([]byte, 0, 256)}
}}

func (b *bodyReader) start(s *session, env *mail.Envelope, info wire.Info) {
	buf := bodyPool.Get().(*bodyBuffers)
	buf.head = appendReceived(buf.head[:0], traceInfo{Info: info, by: s.srv.by, tls: s.tls, env: env})
	*b = bodyReader{head: buf.head, r: s.conn.Body(s.srv.cfg.Limits.MaxMessageSize), env: env, buf: buf, ctx: s.srv.ctx, log: s.srv.log}
	b.from = s.srv.side(info.Remote.Addr())
	system := b.from != "" || s.srv.trusts(wire.Info{Remote: info.Remote, Certified: info.Certified})
	ours := system || info.User != ""
	b.looks = s.srv.inspect(Incoming{Envelope: env, Info: info, Ours: ours, Received: b.head})
	if !system { // who has logged in is no system that could write results in our name
		b.forged = &forgedFilter{own: s.srv.ownResults, verdicts: s.srv.cfg.Verdicts}
	}
	b.scan = headerScan{
		own: s.srv.by, ours: ours, take: s.srv.loops.Allow, maxFields: s.srv.cfg.Limits.MaxHeaderFields,
		line: buf.line[:0], text: buf.text[:0],
	}
}

// release gives the buffers back.
func (b *bodyReader) release() {
	b.looks.close()
	b.looks = nil
	b.buf.line, b.buf.text = b.scan.line, b.scan.text
	bodyPool.Put(b.buf)
	b.buf, b.r, b.head, b.env = nil, nil, nil, nil
	b.scan.line, b.scan.text = nil, nil
}

// errTooBig is also what SIZE at MAIL meets.
var errTooBig = mail.Replyf(552, mail.Enhanced{5, 3, 4}, "the message is larger than the limit")

// Read gives the trace header and then the message. An error that is not io.EOF
// stays.
func (b *bodyReader) Read(p []byte) (int, error) {
	if len(b.head) > 0 {
		n := copy(p, b.head)
		b.head = b.head[n:]
		return n, nil
	}
	for len(b.rest) == 0 && b.err == nil {
		n, err := b.r.Read(p)
		out := b.take(p[:n], err)
		if b.err != nil && b.err != io.EOF {
			return 0, b.err
		}
		n = copy(p, out)
		b.rest = append(b.rest[:0], out[n:]...)
		if n > 0 || len(p) == 0 {
			return n, b.end()
		}
	}
	n := copy(p, b.rest)
	b.rest = b.rest[n:]
	return n, b.end()
}

// end is the error behind what was given last.
func (b *bodyReader) end() error {
	if len(b.rest) > 0 {
		return nil
	}
	b.done = b.err == io.EOF
	return b.err
}

// take looks at the next octets, and gives what stays of them. An error of the
// message is in b.err then.
func (b *bodyReader) take(p []byte, err error) (out []byte) {
	if errors.Is(err, wire.ErrTooLarge) {
		err = errTooBig
	}
	if b.err = b.look(p, err); b.err != nil {
		return nil
	}
	end := errors.Is(err, io.EOF)
	b.looks.sent(p)
	out = p
	if b.forged != nil {
		out = b.forged.next(p, end)
	}
	out = b.fence(out)
	b.looks.kept(out)
	if err == nil {
		return out
	}
	b.ended = time.Now()
	if b.err = err; end {
		if b.err = b.endInspections(); b.err == nil {
			b.err = io.EOF
		}
	}
	return out
}

// foldFence stands between our trace header and a message whose first line begins
// with a blank or a tab: that line would be read as the end of our header, in
// which nobody else shall write. Not a byte of the message is changed for it.
const foldFence = "X-Crossfade-Note: the message began with a continuation line\r\n"

// fence puts the fence in front of a message that needs one.
func (b *bodyReader) fence(out []byte) []byte {
	if b.begun || len(out) == 0 {
		return out
	}
	b.begun = true
	if out[0] != ' ' && out[0] != '\t' {
		return out
	}
	return append([]byte(foldFence), out...)
}

// look scans the header as far as it goes.
func (b *bodyReader) look(p []byte, readErr error) error {
	if b.scan.over {
		return nil
	}
	err := b.scan.scan(p)
	if err == nil && errors.Is(readErr, io.EOF) {
		err = b.scan.close()
	}
	if b.scan.over {
		b.env.MessageID = b.scan.messageID
		b.env.TLSOptional = b.scan.noTLS && !b.env.RequireTLS // RFC 8689, 4.1
		if b.scan.ownHops > 0 || b.scan.hops > maxHops {
			b.env.Passage = b.scan.passage
			b.env.Passage.From, b.env.Passage.Hops, b.env.Passage.Ours = b.from, b.scan.hops, b.scan.ownHops
		}
	}
	return err
}
