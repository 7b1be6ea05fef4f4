package backfill

import (
	"cmp"
	"errors"
	"fmt"
	"slices"
	"strings"
	"time"

	"crossfade/backfill/imapconn"
)

// append appends messages, with the journal written before and the pairs after.
func (f *folderRun) append(msgs []*incoming) error {
	if f.dsel.ReadOnly && len(msgs) > 0 {
		return fmt.Errorf("append: %w: give the login the right to insert messages there", errReadOnly)
	}
	msgs = f.screen(msgs)
	if len(msgs) == 0 {
		f.unsaved = true
		return nil
	}
	if err := f.payFor(msgs); err != nil {
		return err // before the journal: nothing was begun
	}
	j := &journal{Validity: f.rec.DstValidity, UIDNext: f.uidNext, At: time.Now().UnixMilli()}
	for _, m := range msgs {
		m.keep = f.keep(m.meta)
		j.Entries = append(j.Entries, entry{UID: m.meta.UID, Exact: m.id.Exact, Loose: m.id.Loose, Munged: m.id.Munged, Size: m.id.Size})
	}
	f.rec.Pending = j
	if err := f.save(); err != nil {
		return err
	}
	f.p.crash("after-journal")
	err := f.bring(j, msgs)
	if err == nil {
		err = f.identify(j)
	}
	if err != nil {
		// The journal stays: the next pass looks for what was appended without
		// being recorded. What is recorded is saved.
		return errors.Join(err, f.save())
	}
	// It is written with the next batch's journal, in one step.
	f.rec.Pending, f.unsaved = nil, true
	f.p.crash("after-record")
	return nil
}

// payFor takes a batch out of what the destination may be sent today.
func (f *folderRun) payFor(msgs []*incoming) error {
	_, octets := outgoing(msgs)
	if err := f.p.day.take(SideDest, octets); err != nil {
		return err
	}
	f.lane.paid = octets
	return nil
}

// takeDest waits until messages may be appended. What is offered a second time
// counts a second time.
func (f *folderRun) takeDest(n int, octets int64) error {
	more := max(octets-f.lane.paid, 0)
	f.lane.paid = max(f.lane.paid-octets, 0)
	if more > 0 {
		if err := f.p.day.count(SideDest, more); err != nil {
			return err
		}
	}
	return f.p.takeDest(f.p.ctx, n, octets)
}

// screen takes out what must not or need not be offered.
func (f *folderRun) screen(msgs []*incoming) []*incoming {
	var out []*incoming
	limit := f.lane.dst.Limit()
	for _, m := range msgs {
		if text := unfit(m.body.size, limit); text != "" {
			f.refuse(m, text).tooBig = m.body.size > 0
			continue
		}
		out = append(out, m)
	}
	return out
}

// unfit tells why a message of this size need not be offered to a destination
// that announces a limit (0: none); "" when nothing speaks against it.
func unfit(size, limit int64) string {
	switch {
	case size == 0:
		return "an empty message cannot be appended (RFC 3502, 6.3.11)"
	case limit > 0 && size > limit:
		return fmt.Sprintf("it has %d octets, the destination takes %d (APPENDLIMIT)", size, limit)
	}
	return ""
}

func (f *folderRun) refuse(m *incoming, text string) *refusal {
	if f.rec.Refused == nil {
		f.rec.Refused = map[uint32]*refusal{}
	}
	r := f.rec.Refused[m.meta.UID]
	if r == nil {
		r = &refusal{}
		f.rec.Refused[m.meta.UID] = r
	}
	r.Text, r.waiting, r.fresh, r.Wrapped = text, true, true, false
	r.Skip = min(1<<min(r.Tries, 4), 16)
	r.Tries++
	m.done = true
	return r
}

var errReadOnly = errors.New("the server opens the folder read-only")

// refusedTooOften refusals in a row mean that the destination takes nothing at
// all, whatever it says of the single message.
const refusedTooOften = 10

// appendEach appends messages with a command for each, for servers without
// MULTIAPPEND. Those that are refused are offered once more, alone.
func (f *folderRun) appendEach(msgs []*incoming) error {
	var refused []*incoming
	for len(msgs) > 0 {
		out, octets := outgoing(msgs)
		if err := f.takeDest(len(out), octets); err != nil {
			return err
		}
		results, err := f.lane.dst.AppendEach(f.wire, out)
		if err != nil {
			return fmt.Errorf("append: %w", err)
		}
		f.p.crash("after-append")
		var slower error
		var again []*incoming
		var failed error
		for i, r := range results {
			m := msgs[i : i+1]
			_, throttled := imapconn.Throttled(r.Err)
			var e *imapconn.Error
			switch {
			case r.Err == nil:
				failed = errors.Join(failed, f.appended(m, r.Appended))
			case throttled:
				slower, again = r.Err, append(again, m...)
			case errors.As(r.Err, &e) && !temporary(e) && e.Code != "TRYCREATE":
				refused = append(refused, m...)
			default:
				failed = cmp.Or(failed, stalled(r.Err))
			}
		}
		if failed != nil {
			return failed
		}
		if len(again) < len(msgs) {
			f.p.throttle.eased()
		}
		if slower != nil {
			if err := f.p.pauseDest(slower); err != nil {
				return fmt.Errorf("append: %w", err)
			}
		}
		msgs = again
	}
	for _, m := range refused {
		if err := f.appendAll([]*incoming{m}); err != nil {
			return err
		}
	}
	return nil
}

func outgoing(msgs []*incoming) (out []imapconn.Outgoing, octets int64) {
	for _, m := range msgs {
		out = append(out, imapconn.Outgoing{Flags: m.keep, Date: m.meta.Date, Size: m.body.size, Body: m.body})
		octets += m.body.size
	}
	return out, octets
}

// appendAll appends messages in one command. When the server refuses them, they
// are halved until the culprit is alone.
func (f *folderRun) appendAll(msgs []*incoming) error {
	out, _ := outgoing(msgs)
	done, err := f.offer(out)
	var e *imapconn.Error
	switch {
	case err == nil:
		f.p.crash("after-append")
		f.lane.refusedInRow = 0
		return f.appended(msgs, done)
	case !errors.As(err, &e):
		return fmt.Errorf("append: %w", err)
	case temporary(e), e.Code == "TRYCREATE":
		return stalled(err)
	case len(msgs) > 1:
		half := len(msgs) / 2
		if err := f.appendAll(msgs[:half]); err != nil {
			return err
		}
		return f.appendAll(msgs[half:])
	}
	if taken, terr := f.appendPlain(msgs[0], e); taken || terr != nil {
		return terr
	}
	if !aboutMessage(e) {
		f.lane.refusedInRow++
	}
	if f.lane.refusedInRow >= refusedTooOften {
		f.forgetRefused()
		return fmt.Errorf("append: %d messages in a row were refused, so it is not the messages: %w", f.lane.refusedInRow, err)
	}
	f.refuse(msgs[0], e.Error()).tooBig = e.Code == "TOOBIG"
	return nil
}

// offer appends messages, at the rate that is allowed, and again when the server
// wants it slower: it did not take any of them then.
func (f *folderRun) offer(out []imapconn.Outgoing) (imapconn.Appended, error) {
	var octets int64
	for _, m := range out {
		octets += m.Size
	}
	for {
		if err := f.takeDest(len(out), octets); err != nil {
			return imapconn.Appended{}, err
		}
		done, err := f.lane.dst.Append(f.wire, out)
		var e *imapconn.Error
		if err == nil {
			f.p.throttle.eased()
		}
		if _, slower := imapconn.Throttled(err); !slower || !errors.As(err, &e) {
			return done, err
		}
		if err := f.p.pauseDest(err); err != nil {
			return done, err
		}
	}
}

// appendPlain offers a refused message without what may be the reason beside its
// content: without keywords, then without its date too.
func (f *folderRun) appendPlain(m *incoming, cause *imapconn.Error) (taken bool, err error) {
	system := slices.DeleteFunc(slices.Clone(m.keep), func(flag string) bool { return !strings.HasPrefix(flag, `\`) })
	plain := imapconn.Outgoing{Flags: system, Size: m.body.size, Body: m.body}
	dated := plain
	dated.Date = m.meta.Date
	tries := []imapconn.Outgoing{dated, plain}
	if len(system) == len(m.keep) {
		tries = tries[1:]
	}
	if m.id.NUL && f.lane.dst.Has("BINARY") {
		tries = slices.Insert(tries, 0, imapconn.Outgoing{Flags: m.keep, Date: m.meta.Date, Size: m.body.size, Body: m.body, Binary: true})
	}
	for _, out := range tries {
		done, err := f.offer([]imapconn.Outgoing{out})
		var e *imapconn.Error
		if errors.As(err, &e) && !temporary(e) {
			continue
		}
		if err != nil {
			return false, fmt.Errorf("append: %w", err)
		}
		f.p.crash("after-append")
		f.lane.refusedInRow = 0
		if out.Binary {
			return true, f.appended([]*incoming{m}, done)
		}
		class, what := ClassFlag, "keywords"
		if out.Date.IsZero() {
			class, what = ClassDate, "keywords and date"
		}
		f.p.problem(Problem{Folder: f.src.Name, UID: m.meta.UID, Class: class, Text: "it was taken only without its " + what + ": " + cause.Error()})
		return true, f.appended([]*incoming{m}, done)
	}
	return false, nil
}

// aboutMessage tells whether the words of a refusal are about the message: any
// number of those may come in a row, as from a folder of mail that a broken
// program wrote, or of large ones. The words are Cyrus's ("Message contains
// invalid header"), Dovecot's and Exchange's.
func aboutMessage(e *imapconn.Error) bool {
	switch e.Code {
	case "TOOBIG", "PARSE", "BADCHARSET", "UNKNOWN-CTE":
		return true
	}
	text := strings.ToLower(e.Text)
	return slices.ContainsFunc([]string{"message contains", "message size", "message too large", "message is too large", "message too big", "invalid message"},
		func(w string) bool { return strings.Contains(text, w) })
}

// forgetRefused has all refused messages of the folder offered again.
func (f *folderRun) forgetRefused() {
	for _, r := range f.rec.Refused {
		if r.Text != unrecognised && !r.Wrapped { // that one is there: offered again, it would be there twice
			r.Skip, r.Tries = 0, 0
		}
	}
}

// stalled is the error of a destination that takes nothing for now.
func stalled(err error) error {
	var e *imapconn.Error
	if errors.As(err, &e) && (e.Code == "OVERQUOTA" || strings.Contains(strings.ToLower(e.Text), "quota")) {
		return fmt.Errorf("append: the mailbox on the destination is full: %w (raise its quota or have room made; nothing is lost, the next pass goes on from here)", err)
	}
	return fmt.Errorf("append: %w (nothing is lost: start the pass again when this is mended)", err)
}

// temporary tells whether an error is one of the server's state and not of the
// message. Codes are those of RFC 5530 and those of single servers.
func temporary(e *imapconn.Error) bool {
	if _, slower := imapconn.Throttled(e); slower {
		return true
	}
	switch e.Code {
	case "OVERQUOTA", "THROTTLED", "UNAVAILABLE", "INUSE", "SERVERBUG", "CONTACTADMIN", "AUTHENTICATIONFAILED",
		"AUTHORIZATIONFAILED", "EXPIRED", "PRIVACYREQUIRED", "NOPERM", "EXPUNGEISSUED":
		return true
	case "LIMIT", "TOOBIG", "CANNOT", "PARSE", "BADCHARSET", "UNKNOWN-CTE":
		return false
	}
	text := strings.ToLower(e.Text)
	return slices.ContainsFunc([]string{"quota", "disk", "space", "try again", "tempora", "throttl", "backoff", "unavailable",
		"internal error", "timeout", "timed out", "busy", "too many", "read-only", "permission", "access denied"}, func(w string) bool { return strings.Contains(text, w) })
}

// taken counts what the destination has.
func (f *folderRun) taken(msgs []*incoming) {
	f.p.tally(func(r *Report, g *Progress) {
		for _, m := range msgs {
			if f.isAttic {
				r.Wrapped++
				continue
			}
			r.Copied++
			r.Bytes += m.body.size
			g.BytesDone += m.body.size
			g.Copied, g.CopiedBytes = r.Copied, r.Bytes
		}
	})
	f.tellArrived(msgs)
	for _, m := range msgs {
		m.done = true
		f.arrived(m.meta.UID, m.id)
		if r := f.rec.Refused[m.meta.UID]; r != nil && r.Wrapped {
			f.p.note(Problem{Folder: f.src.Name, UID: m.meta.UID, Class: ClassWrapped,
				Text: fmt.Sprintf("the destination takes it as it is by now: its copy in %q may be deleted", f.p.attic.name())})
		}
		delete(f.rec.Refused, m.meta.UID)
		delete(f.rec.Unread, m.meta.UID)
		if m.meta.Flags != nil {
			f.agreed[m.meta.UID] = flagSet(m.meta.Flags)
		}
		if len(m.keep) > 0 && !f.isAttic {
			f.rec.Unproven.add(m.meta.UID)
		}
	}
}

// appended notes what the server took.
func (f *folderRun) appended(msgs []*incoming, done imapconn.Appended) error {
	f.taken(msgs)
	if done.UIDs == nil {
		return nil // identify finds them
	}
	if done.UIDValidity != f.rec.DstValidity {
		return fmt.Errorf("append: %w: from %d to %d", imapconn.ErrChanged, f.rec.DstValidity, done.UIDValidity)
	}
	if !ascending(f.uidNext, done.UIDs) {
		f.rec.Pending.told = append(f.rec.Pending.told, done.UIDs...)
		return nil
	}
	for i, m := range msgs {
		f.rec.paired(m.meta.UID, done.UIDs[i], m.id.Loose, m.id.Loose)
		f.uidNext = max(f.uidNext, done.UIDs[i]+1)
	}
	return nil
}

// ascending tells whether UIDs are what RFC 4315 promises for new messages:
// each above the one before, the first not below the UIDNEXT of before. A server
// that names others may have found that it has such a message already, or may
// be mistaken: what those UIDs are is looked up by content.
func ascending(next uint32, uids []uint32) bool {
	for _, uid := range uids {
		if uid < next {
			return false
		}
		next = uid + 1
	}
	return true
}
