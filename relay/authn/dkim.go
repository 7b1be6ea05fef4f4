package authn

import (
	"bytes"
	"cmp"
	"context"
	"errors"
	"fmt"
	"io"
	"slices"
	"strings"

	"github.com/emersion/go-msgauth/dkim"
)

// What go-msgauth 0.7.0 does that strangers could use, and what is done about it here (dkim_test.go has a test of each):
//
//   - its simple canonicalisation of the body is quadratic in runs of empty lines, its relaxed one keeps them in memory:
//     runs at the end are not shown to it (they do not count), and a message with a long one inside is not verified;
//   - it looks through the whole header for each name in h=: it is shown only the fields that a signature names, and a
//     signature for which that is too many is not verified;
//   - it puts folded fields together at a cost that is quadratic in their lines: they are unfolded before, or bounded where the
//     form of the signature does not allow that;
//   - with several signatures it leaks goroutines when the body ends in an error: it is given one signature at a time,
//     that on top of the header;
//   - it looks up the key before it reads the body, however long that takes: keys are there before it is called;
//   - it takes RSA keys of any size: keys are measured first.

// signatures verifies the DKIM signatures of one message.
type signatures struct {
	k    *Check
	list []*signature
	more int // signatures that are not looked at

	buf     []byte
	crlfs   int    // line ends that are held back, because the body may end with them
	cr      bool   // behind them, a CR of which the LF has not come
	blank   int    // octets of white space since the last other one
	started bool   // the body is hashed as it comes; until then it is in buf
	broken  string // why nothing more is verified
	again   bool   // that is for now
}

// signature is one of those that are verified.
type signature struct {
	result DKIM
	tags   tags
	field  field
	head   []byte // the header that go-msgauth is shown
	key    chan key
	text   string // the key record, when it is known and good
	stream *stream
}

// undecided tells whether the signature has still to be verified.
func (s *signature) undecided() bool { return s.result.Result == "" }

func (s *signature) judge(r Result, format string, args ...any) {
	s.result.Result, s.result.Reason = r, fmt.Sprintf(format, args...)
}

// begin chooses signatures and looks up their keys. Those that DMARC could count come first: others, put on top by
// whoever passed the message on, must not push them out.
func (v *signatures) begin(ctx context.Context, h *header) {
	for _, f := range h.fields {
		if f.name == "dkim-signature" && len(v.list) < maxParsed {
			v.list = append(v.list, newSignature(h, f))
		}
	}
	if len(v.k.author.domains) == 1 {
		org := orgDomain(v.k.author.domains[0])
		slices.SortStableFunc(v.list, func(a, b *signature) int {
			return cmp.Compare(notAligned(a, org), notAligned(b, org))
		})
	}
	if len(v.list) > maxSignatures {
		v.list = v.list[:maxSignatures]
	}
	v.more = h.signed - len(v.list)
	if len(v.list) == 0 && h.signed > 0 { // none was kept
		v.list, v.more = []*signature{{}}, h.signed-1
	}
	if h.cut != "" {
		v.stop(!h.busy, h.cut)
		return
	}
	now := v.k.c.cfg.Now()
	for _, s := range v.list {
		s.examine(h, now)
		if s.undecided() && !v.k.reserve(v.k.reserved+int64(cap(s.head))) {
			s.judge(TempError, errBusy)
		}
		if s.undecided() {
			s.lookUp(ctx, v.k.c.cfg.Resolver)
		}
	}
}

func notAligned(s *signature, org string) int {
	if orgDomain(s.result.Domain) == org {
		return 0
	}
	return 1
}

// stop gives all signatures that are not decided yet the same result.
func (v *signatures) stop(forGood bool, why string) {
	v.broken, v.again = why, !forGood
	r := Policy
	if v.again {
		r = TempError
	}
	for _, s := range v.list {
		if s.undecided() {
			s.judge(r, "%s", why)
			s.result.skipped = true
		}
		s.abort()
	}
	v.buf = nil
}

// waiting tells whether the body is wanted.
func (v *signatures) waiting() bool {
	return v.broken == "" && slices.ContainsFunc(v.list, (*signature).undecided)
}

// body takes the next octets of the body. White space is counted, so that no run of it becomes expensive, and line ends are
// held back for as long as nothing follows them.
func (v *signatures) body(p []byte) {
	for len(p) > 0 && v.waiting() {
		part := p[:min(len(p), bodyChunk)]
		p = p[len(part):]
		n := v.hold(part)
		v.blank += n
		if part = part[n:]; len(part) == 0 {
			continue
		}
		if !v.countBlank(part) {
			v.stop(true, "there are more than 64 KiB of white space in a row in the body")
			return
		}
		end := lineEnds(part)
		v.release()
		v.add(part[:end])
		v.hold(part[end:])
	}
}

// lineEnds is where the line ends begin with which p ends, a CR alone included.
func lineEnds(p []byte) int {
	end := len(p)
	if p[end-1] == '\r' {
		end--
	}
	for end >= 2 && p[end-1] == '\n' && p[end-2] == '\r' {
		end -= 2
	}
	return end
}

// hold keeps back the line ends with which p begins, and gives their octets.
func (v *signatures) hold(p []byte) (n int) {
	for n < len(p) {
		switch {
		case v.cr && p[n] == '\n':
			v.cr = false
			v.crlfs++
		case !v.cr && p[n] == '\r':
			v.cr = true
		default:
			return n
		}
		n++
	}
	return n
}

// countBlank follows runs of white space over pieces of the body, and tells whether they are short enough. One that
// nothing follows is not counted when it is of line ends alone.
func (v *signatures) countBlank(p []byte) bool {
	const space = " \t\r\n"
	head := len(p) - len(bytes.TrimLeft(p, space))
	if v.blank+head > maxBlank {
		return false
	}
	if head == len(p) {
		v.blank += head
		return true
	}
	v.blank = len(p) - len(bytes.TrimRight(p, space))
	return true
}

// crlfRun is what release writes from.
var crlfRun = bytes.Repeat([]byte("\r\n"), 256)

// release adds the line ends that were held back: something follows them.
func (v *signatures) release() {
	for v.crlfs > 0 {
		n := min(v.crlfs, len(crlfRun)/2)
		v.crlfs -= n
		v.add(crlfRun[:2*n])
	}
	if v.cr {
		v.cr = false
		v.add(crlfRun[:1])
	}
}

// add keeps octets until there are enough of them to be hashed.
func (v *signatures) add(p []byte) {
	for len(p) > 0 && v.waiting() {
		if v.buf == nil && !v.k.reserve(v.k.reserved+bodyChunk) {
			v.stop(false, errBusy)
			return
		}
		if v.buf == nil {
			v.buf = make([]byte, 0, min(bodyChunk, max(4<<10, len(p))))
		}
		n := min(bodyChunk-len(v.buf), len(p))
		v.buf = append(v.buf, p[:n]...)
		p = p[n:]
		if len(v.buf) == bodyChunk {
			v.flush()
		}
	}
}

// flush hashes what is in the buffer. The first time it begins to: then the keys have to be there.
func (v *signatures) flush() {
	if !v.started {
		v.started = true
		for _, s := range v.list {
			if s.waitKey(); s.undecided() {
				s.stream = newStream(s)
			}
		}
	}
	release := v.k.c.slot()
	defer release()
	for _, s := range v.list {
		if s.stream != nil {
			s.stream.write(v.buf)
		}
	}
	v.buf = v.buf[:0]
}

// end gives the results. All line ends at the end of a body count as one, which the library adds.
func (v *signatures) end() (out []DKIM) {
	if v.waiting() {
		if v.cr {
			v.release() // a CR at the very end is text
		}
		if v.started {
			v.flush()
		}
		for _, s := range v.list {
			if s.waitKey(); s.undecided() {
				v.finish(s)
			}
		}
	}
	for _, s := range v.list {
		out = append(out, s.result)
	}
	return out
}

// finish verifies a signature whose body has come to its end.
func (v *signatures) finish(s *signature) {
	release := v.k.c.slot()
	defer release()
	if st := s.stream; st != nil {
		s.stream = nil
		s.conclude(st.end())
		return
	}
	s.conclude(s.verify(bytes.NewReader(append(s.head, v.buf...)))) // in one piece: the library reads it without a buffer of its own
}

// close ends what is under way.
func (v *signatures) close() {
	for _, s := range v.list {
		s.abort()
	}
	v.buf = nil
}

// verify has go-msgauth verify the signature of a message that begins with head.
func (s *signature) verify(msg io.Reader) (err error) {
	defer func() { // what strangers write must not end the process, whatever the library makes of it
		if p := recover(); p != nil {
			err = fmt.Errorf("%w: %v", errBroken, p)
		}
	}()
	list, err := dkim.VerifyWithOptions(msg, &dkim.VerifyOptions{
		MaxVerifications: 1,
		LookupTXT:        func(string) ([]string, error) { return []string{s.text}, nil },
	})
	if err != nil && len(list) == 0 { // with ErrTooManySignatures there is a list: the message may have more of them
		return err
	}
	if len(list) == 0 {
		return errBroken
	}
	return list[0].Err
}

// errBroken is a failure of the library itself.
var errBroken = errors.New("the signature could not be verified")

// conclude turns what go-msgauth says into a result.
func (s *signature) conclude(err error) {
	switch {
	case err == nil:
		s.result.Result = Pass
	case errors.Is(err, errBroken):
		s.judge(TempError, "%s", err)
	case dkim.IsTempFail(err):
		s.judge(TempError, "%s", reason(err))
	case dkim.IsPermFail(err):
		s.judge(PermError, "%s", reason(err))
	case strings.Contains(err.Error(), "body hash"):
		s.judge(Fail, "the body was changed")
	default:
		s.judge(Fail, "the signature does not fit")
	}
}

func reason(err error) string { return strings.TrimPrefix(err.Error(), "dkim: ") }

// stream is a verification that reads the body while it comes.
type stream struct {
	w    *io.PipeWriter
	done chan error
}

func newStream(s *signature) *stream {
	r, w := io.Pipe()
	st := &stream{w: w, done: make(chan error, 1)}
	go func() {
		err := s.verify(io.MultiReader(bytes.NewReader(s.head), r))
		_ = r.Close() // it may not have read all: nobody is to wait for that
		st.done <- err
	}()
	return st
}

func (st *stream) write(p []byte) { _, _ = st.w.Write(p) }

func (st *stream) end() error {
	_ = st.w.Close()
	return <-st.done
}

// abort ends the stream of a signature without a result.
func (s *signature) abort() {
	if s.stream != nil {
		_ = s.stream.w.CloseWithError(io.ErrUnexpectedEOF)
		<-s.stream.done
		s.stream = nil
	}
}
