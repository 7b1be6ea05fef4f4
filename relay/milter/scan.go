package milter

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"net"
	"strings"
	"sync"
	"time"

	"crossfade/mail"
	"crossfade/relay"

	"github.com/emersion/go-milter"
)

// buffers are pooled.
type buffers struct {
	early []byte // what the scanner has not heard of
	chunk []byte // of the body
	field []byte
}

var bufPool = sync.Pool{New: func() any {
	return &buffers{early: make([]byte, 0, 8<<10), chunk: make([]byte, 0, milter.MaxBodyChunk), field: make([]byte, 0, 512)}
}}

// scan is the work of a Filter on one message.
type scan struct {
	f   *Filter
	ctx context.Context
	m   relay.Incoming
	buf *buffers

	size   int64
	left   time.Duration // that the message may still wait
	until  time.Time     // when that is over, while it waits
	waited time.Duration
	conn   *bounded
	s      *milter.ClientSession
	placed bool
	stream bool      // it has one of Filter.streams besides
	begun  bool      // the session was tried
	asked  time.Time // when
	spoken bool      // it is not known that the scanner takes no session

	names map[string]int // fields of the message, in small letters
	body  bool           // the header is over
	skip  bool           // the scanner wants no more of the body
	act   *milter.Action // the final word
	err   error          // why there is none
	large bool
}

// Sent implements [relay.Inspection]: the scanner sees what the client sent.
func (x *scan) Sent(p []byte) {
	if x.over() {
		return
	}
	if x.size += int64(len(p)); x.size > x.f.cfg.MaxSize {
		x.large = true
		x.hangUp()
		return
	}
	if !x.begun {
		x.buf.early = append(x.buf.early, p...)
		if len(x.buf.early) > early {
			x.work(x.startStream)
		}
		return
	}
	x.work(func() error { return x.feed(p) })
}

// Kept implements [relay.Inspection].
func (x *scan) Kept([]byte) {}

// over tells whether nothing is left to say to the scanner.
func (x *scan) over() bool { return x.large || x.err != nil || x.act != nil }

// work does something that waits for the scanner, within what is left of the
// time.
func (x *scan) work(do func() error) {
	began := time.Now()
	x.until = began.Add(x.left)
	if x.conn != nil {
		x.conn.until = x.until
	}
	err := do()
	took := time.Since(began)
	x.left -= took
	x.waited += took
	if err != nil {
		x.err = err
		x.hangUp()
	}
}

// startStream is start for a message of which more is to come: its client decides
// how long the connection is in use, so that half of them are not for such.
func (x *scan) startStream() (err error) {
	if x.stream, err = x.enter(x.f.streams); err != nil {
		x.begun, x.asked, x.spoken = true, time.Now(), true
		return err
	}
	return x.start()
}

// enter waits for a place.
func (x *scan) enter(places chan struct{}) (in bool, err error) {
	wait := time.NewTimer(time.Until(x.until))
	defer wait.Stop()
	select {
	case places <- struct{}{}:
		return true, nil
	case <-wait.C:
		return false, errors.New("all connections to it are in use")
	case <-x.ctx.Done():
		return false, context.Cause(x.ctx)
	}
}

// start opens the session and tells the scanner what there is so far.
func (x *scan) start() (err error) {
	x.begun, x.asked, x.spoken = true, time.Now(), true
	if err := x.f.ready(x.asked); err != nil {
		return err
	}
	if x.placed, err = x.enter(x.f.places); err != nil {
		return err
	}
	if err := x.open(); err != nil {
		x.spoken = false
		return err
	}
	if err := x.envelope(); err != nil {
		return err
	}
	return x.feed(x.buf.early)
}

// actions are what we do for a scanner, and steps what it need not answer.
const (
	actions                    = milter.OptAddHeader | milter.OptChangeHeader
	steps   milter.OptProtocol = milter.OptNoConnReply | milter.OptNoHeloReply | milter.OptNoMailReply | milter.OptNoRcptReply |
		milter.OptNoHeaderReply | milter.OptNoEOHReply | milter.OptNoBodyReply | milter.OptSkip |
		milter.OptNoConnect | milter.OptNoHelo | milter.OptNoMailFrom | milter.OptNoRcptTo | milter.OptNoBody | milter.OptNoHeaders |
		milter.OptNoEOH | milter.OptNoUnknown | milter.OptNoData | milter.OptNoDataReply | milter.OptNoUnknownReply
)

// Dial implements the library's Dialer, for one session.
func (x *scan) Dial(network, addr string) (net.Conn, error) {
	ctx, cancel := context.WithDeadline(x.ctx, x.until)
	defer cancel()
	conn, err := (&net.Dialer{}).DialContext(ctx, network, addr)
	if err != nil {
		return nil, err
	}
	x.conn = &bounded{Conn: conn, until: x.until, left: maxSays}
	return x.conn, nil
}

// oldSteps are those that scanners from before version 6 know.
const oldSteps = steps & 0x7f

func (x *scan) open() error {
	cfg := &x.f.cfg
	offer := steps
	if x.f.old.Load() {
		offer = oldSteps
	}
	client := milter.NewClientWithOptions(cfg.Network, cfg.Address, milter.ClientOptions{
		Dialer: x, ReadTimeout: cfg.Timeout, WriteTimeout: cfg.Timeout, ActionMask: actions, ProtocolMask: offer,
	})
	s, err := client.Session()
	if err != nil && x.conn != nil {
		_ = x.conn.Close()
		x.conn = nil
	}
	if errors.Is(err, milter.ErrUnsupportedMilterVersion) && !x.f.old.Swap(true) {
		return x.open()
	}
	if err != nil {
		return err
	}
	if more := s.ProtocolOpts &^ offer; more != 0 {
		return fmt.Errorf("it wants protocol options that were not offered to it: %#x", uint32(more))
	}
	x.s = s
	return nil
}

// macro values must not end the string that they are in.
func clean(s string) string { return strings.ReplaceAll(s, "\x00", "") }

// envelope tells who sends what to whom.
func (x *scan) envelope() error {
	env, info := x.m.Envelope, x.m.Info
	ip := info.Remote.Addr().Unmap().WithZone("")
	family, addr := milter.FamilyInet, ip.String()
	switch {
	case !ip.IsValid():
		family, addr = milter.FamilyUnknown, ""
	case ip.Is6():
		family = milter.FamilyInet6
	}
	name := "[" + ip.String() + "]" // we do not look names up
	macros := []string{"j", x.f.cfg.Hostname, "{daemon_name}", x.f.cfg.Hostname, "v", "Crossfade", "{client_addr}", ip.String(), "{client_name}", name}
	if err := x.s.Macros(milter.CodeConn, macros...); err != nil {
		return err
	}
	if err := x.take(x.s.Conn(name, family, info.Remote.Port(), addr)); err != nil {
		return err
	}
	if env.Client.TLS != "" {
		version, cipher, _ := strings.Cut(env.Client.TLS, " ")
		if err := x.s.Macros(milter.CodeHelo, "{tls_version}", version, "{cipher}", cipher); err != nil {
			return err
		}
	}
	if err := x.take(x.s.Helo(clean(env.Client.Helo))); err != nil {
		return err
	}
	if err := x.s.Macros(milter.CodeMail, "i", string(env.ID), "{auth_authen}", clean(info.User), "{mail_addr}", env.From.String()); err != nil {
		return err
	}
	if err := x.take(x.s.Mail(env.From.String(), nil)); err != nil {
		return err
	}
	return x.recipients()
}

// recipients names each address that was given. A scanner that refuses one of
// several does not refuse the message: what it said about the others counts.
func (x *scan) recipients() error {
	var refused *milter.Action
	given := map[mail.Address]bool{}
	taken := 0
	for i := range x.m.Envelope.Recipients {
		rcpt := x.m.Envelope.Recipients[i].Given()
		if given[rcpt] || x.act != nil {
			continue
		}
		given[rcpt] = true
		act, err := x.s.Rcpt(rcpt.String(), nil)
		if err != nil {
			return err
		}
		if refusal(act) {
			refused = act
			continue
		}
		taken++
		if err := x.take(act, nil); err != nil {
			return err
		}
	}
	if taken == 0 && refused != nil {
		x.act = refused
	}
	return nil
}

func refusal(act *milter.Action) bool {
	switch act.Code {
	case milter.ActReject, milter.ActTempFail, milter.ActReplyCode:
		return true
	}
	return false
}

// take notes an answer that is final.
func (x *scan) take(act *milter.Action, err error) error {
	switch {
	case err != nil:
		return err
	case act.Code == milter.ActSkip:
		x.skip = true
	case act.Code != milter.ActContinue:
		x.act = act
	}
	return nil
}

// feed passes on the next octets of the message.
func (x *scan) feed(p []byte) error {
	for len(p) > 0 && !x.body && x.act == nil {
		i := bytes.IndexByte(p, '\n') + 1
		if i == 0 {
			x.buf.field = append(x.buf.field, p...)
			return nil
		}
		x.buf.field = append(x.buf.field, p[:i]...)
		p = p[i:]
		if err := x.line(); err != nil {
			return err
		}
	}
	for len(p) > 0 && !x.skip && x.act == nil {
		n := min(len(p), cap(x.buf.chunk)-len(x.buf.chunk))
		x.buf.chunk = append(x.buf.chunk, p[:n]...)
		p = p[n:]
		if len(x.buf.chunk) == cap(x.buf.chunk) {
			if err := x.sendChunk(); err != nil {
				return err
			}
		}
	}
	return nil
}

// line looks at the last line of buf.field: it goes on with the field, begins
// another one, or ends the header.
func (x *scan) line() error {
	b := x.buf.field
	at := bytes.LastIndexByte(b[:len(b)-1], '\n') + 1
	last := b[at:]
	switch {
	case at > 0 && (last[0] == ' ' || last[0] == '\t'):
		return nil
	case at == 0 && fieldName(last) > 0:
		return nil // the first line of a field, which may go on
	}
	if at > 0 {
		if err := x.sendField(b[:at]); err != nil {
			return err
		}
	}
	rest := append(x.buf.field[:0], last...)
	x.buf.field = rest
	if fieldName(rest) > 0 {
		return nil
	}
	x.body = true
	x.buf.field = rest[:0]
	if err := x.endHeader(); err != nil {
		return err
	}
	if len(bytes.TrimRight(rest, "\r\n")) > 0 { // a line that is no field is body already
		x.buf.chunk = append(x.buf.chunk, rest...)
	}
	return nil
}

// fieldName is the length of the name of the field that line begins, or 0.
func fieldName(line []byte) int {
	colon := bytes.IndexByte(line, ':')
	if colon <= 0 {
		return 0
	}
	name := bytes.TrimRight(line[:colon], " \t")
	for _, c := range name {
		if c <= ' ' || c > '~' {
			return 0
		}
	}
	return len(name)
}

// maxSent is how many octets of a field are passed on. Sendmail's library, in which
// most scanners are written, hangs up when one packet has more than 64 KiB, and the
// message would be put off for ever.
const maxSent = 65_000

// sendField passes one field on. As other servers do, folds are LF alone, and the
// blank behind the colon is left out.
func (x *scan) sendField(b []byte) error {
	if x.act != nil {
		return nil
	}
	n := fieldName(b)
	if x.names == nil {
		x.names = map[string]int{}
	}
	x.names[strings.ToLower(string(b[:n]))]++
	_, value, _ := bytes.Cut(b, []byte{':'})
	value = bytes.TrimPrefix(bytes.TrimRight(value, "\r\n"), []byte{' '})
	value = bytes.ReplaceAll(bytes.ReplaceAll(value, []byte("\r\n"), []byte{'\n'}), []byte{0}, nil)
	name := b[:min(n, maxSent/2)]
	return x.take(x.s.HeaderField(string(name), string(value[:min(len(value), maxSent-len(name))])))
}

func (x *scan) endHeader() error {
	if x.act != nil {
		return nil
	}
	return x.take(x.s.HeaderEnd())
}

func (x *scan) sendChunk() error {
	if len(x.buf.chunk) == 0 || x.skip || x.act != nil {
		return nil
	}
	err := x.take(x.s.BodyChunk(x.buf.chunk))
	x.buf.chunk = x.buf.chunk[:0]
	return err
}

// finish ends the message and takes the scanner's word.
func (x *scan) finish() (mods []milter.ModifyAction, err error) {
	if !x.body {
		if len(x.buf.field) > 0 && fieldName(x.buf.field) > 0 {
			if err := x.sendField(x.buf.field); err != nil {
				return nil, err
			}
		}
		if err := x.endHeader(); err != nil {
			return nil, err
		}
	}
	if err := x.sendChunk(); err != nil || x.act != nil {
		return nil, err
	}
	mods, x.act, err = x.s.End()
	return mods, err
}

// hangUp ends the session, whatever it is at.
func (x *scan) hangUp() {
	if x.s != nil && x.err == nil {
		x.conn.until = time.Now().Add(time.Second)
		_ = x.s.Close() // says goodbye
	}
	if x.conn != nil {
		_ = x.conn.Close() // where there was no goodbye, that is the end of the message
		x.conn, x.s = nil, nil
	}
	if x.placed {
		<-x.f.places
		x.placed = false
	}
	if x.stream {
		<-x.f.streams
		x.stream = false
	}
}

// Close implements [relay.Inspection].
func (x *scan) Close() {
	x.hangUp()
	if cap(x.buf.early) <= 2*early && cap(x.buf.field) <= early {
		x.buf.early, x.buf.chunk, x.buf.field = x.buf.early[:0], x.buf.chunk[:0], x.buf.field[:0]
		bufPool.Put(x.buf)
	}
	x.buf = nil
}
