package milter

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"mime"
	"strings"

	"crossfade/mail"

	"github.com/emersion/go-milter"
)

// Bounds of what a scanner may add to one message.
const (
	maxFields = 100
	maxAdded  = 64 << 10 // octets
)

// End implements [relay.Inspection].
func (x *scan) End(context.Context, string) (trace string, err error) {
	var mods []milter.ModifyAction
	if !x.begun && !x.over() {
		x.work(x.start)
	}
	if !x.over() {
		x.work(func() (err error) {
			mods, err = x.finish()
			return err
		})
	}
	defer x.hangUp()
	switch {
	case x.large:
		x.f.cfg.Done(TooLarge, x.waited)
		return "", nil
	case x.err != nil:
		return "", x.failure()
	}
	x.f.well()
	return x.verdict(mods)
}

// failure is what becomes of a message that the scanner did not judge.
func (x *scan) failure() error {
	f := x.f
	if !errors.Is(x.err, errResting) {
		f.failed(x.err, x.asked, x.spoken)
	}
	f.cfg.Done(Failed, x.waited)
	f.told.Do(func() {
		what := "mail is put off (smtp.filter.on_failure: tempfail)"
		if f.cfg.Accept {
			what = "mail is accepted without being looked at (smtp.filter.on_failure: accept)"
		}
		f.cfg.Logger.Error("the content filter does not work: "+what, "filter", f.cfg.Address, "id", string(x.m.Envelope.ID), "error", x.err)
	})
	if f.cfg.Accept {
		return nil
	}
	return fmt.Errorf("%w: content filter %s: %w", unavailable, f.cfg.Address, x.err)
}

// verdict does what the scanner said.
func (x *scan) verdict(mods []milter.ModifyAction) (trace string, err error) {
	done := func(r Result) { x.f.cfg.Done(r, x.waited) }
	switch x.act.Code {
	case milter.ActReject:
		done(Refused)
		return "", mail.Replyf(550, mail.Enhanced{5, 7, 1}, "the message was refused by the content filter")
	case milter.ActDiscard:
		done(Refused)
		x.log("the content filter wants a message to disappear; it is refused instead, for what is accepted is delivered")
		return "", mail.Replyf(550, mail.Enhanced{5, 7, 1}, "the message was refused by the content filter")
	case milter.ActTempFail:
		done(PutOff)
		return "", mail.Replyf(451, mail.Enhanced{4, 7, 1}, "the content filter put the message off, try again later")
	case milter.ActReplyCode:
		r := reply(x.act)
		if r.Permanent() {
			done(Refused)
		} else {
			done(PutOff)
		}
		return "", r
	}
	done(Passed)
	return x.fields(mods), nil
}

func (x *scan) log(text string, args ...any) {
	args = append(args, slog.String("filter", x.f.cfg.Address), slog.String("id", string(x.m.Envelope.ID)))
	x.f.cfg.Logger.Warn(text, args...)
}

// reply is the scanner's own reply, if it is one.
func reply(act *milter.Action) *mail.Reply {
	code, text := act.SMTPCode, strings.TrimSpace(act.SMTPText)
	if code < 400 || code > 599 {
		return mail.Replyf(451, mail.Enhanced{4, 7, 1}, "the content filter put the message off, try again later")
	}
	e := mail.Enhanced{code / 100, 7, 1}
	if first, rest, ok := strings.Cut(text, " "); ok {
		var own mail.Enhanced
		if n, err := fmt.Sscanf(first, "%d.%d.%d", &own[0], &own[1], &own[2]); err == nil && n == 3 && own[0] == code/100 {
			e, text = own, rest
		}
	}
	if text == "" {
		text = "refused by the content filter"
	}
	return mail.Replyf(code, e, "%s", text)
}

// fields are the header fields that the scanner adds, the first on top. What
// else it wants is not done.
func (x *scan) fields(mods []milter.ModifyAction) string {
	var b strings.Builder
	n := 0
	for _, m := range mods {
		switch {
		case x.adds(&m):
			field, err := foldField(m.HeaderName, m.HeaderValue)
			if err == nil && (n >= maxFields || b.Len()+len(field) > maxAdded) {
				err = fmt.Errorf("it adds more than %d fields or %d octets", maxFields, maxAdded)
			}
			if err != nil {
				x.log("a header field of the content filter was left out", "field", m.HeaderName, "error", err)
				continue
			}
			b.WriteString(field)
			n++
		default:
			x.log("the content filter wants what is not done here: the message stays as its sender wrote it", "action", string(rune(m.Code)), "field", m.HeaderName)
		}
	}
	return b.String()
}

// adds tells whether a wish can be granted by a field on top: one that is added, a
// change of one that is not there, or of a verdict (X-...) that is, of which the
// first one counts.
func (x *scan) adds(m *milter.ModifyAction) bool {
	switch m.Code {
	case milter.ActAddHeader, milter.ActInsertHeader:
		return true
	case milter.ActChangeHeader:
		name := strings.ToLower(m.HeaderName)
		return m.HeaderValue != "" && (int(m.HeaderIndex) > x.names[name] || x.names[name] == 0 || strings.HasPrefix(name, "x-"))
	}
	return false
}

// maxLine keeps a line of a header below the 998 octets of RFC 5322, 2.1.1.
const maxLine = 900

// foldField writes a field with CRLF and folds where the value has line ends, or
// must have them. Text that is not ASCII is encoded (RFC 2047).
func foldField(name, value string) (string, error) {
	if name == "" || fieldName([]byte(name+":")) != len(name) || len(name) > 200 {
		return "", fmt.Errorf("%q is no name of a header field", name)
	}
	var b strings.Builder
	b.WriteString(name + ":")
	col, lines := b.Len(), 0
	for _, line := range strings.Split(strings.ReplaceAll(value, "\r", ""), "\n") {
		line = strings.TrimSpace(plain(line))
		if line == "" {
			continue
		}
		if lines++; lines > 1 {
			b.WriteString("\r\n\t")
			col = 1
		} else {
			b.WriteByte(' ')
			col++
		}
		for _, word := range strings.SplitAfter(line, " ") {
			if col+len(word) > maxLine && col > 1 {
				b.WriteString("\r\n\t")
				col = 1
			}
			if col == 1 && word == " " {
				continue // a line must not be of blanks alone (RFC 5322, 3.2.2)
			}
			if len(word) > maxLine {
				return "", fmt.Errorf("the value of %s has a word of %d octets", name, len(word))
			}
			b.WriteString(word)
			col += len(word)
		}
	}
	return b.String() + "\r\n", nil
}

// plain makes one line of printable ASCII.
func plain(line string) string {
	line = strings.Map(func(r rune) rune {
		if r == '\t' {
			return ' '
		}
		if r < ' ' || r == 0x7f {
			return -1
		}
		return r
	}, line)
	for i := range len(line) {
		if line[i] >= 0x80 {
			return mime.QEncoding.Encode("utf-8", strings.ToValidUTF8(line, "?"))
		}
	}
	return line
}
