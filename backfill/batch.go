package backfill

import (
	"context"
	"errors"
	"fmt"
	"io"
	"slices"
	"strings"
	"time"

	"crossfade/backfill/imapconn"
)

// incoming is a message of the source on its way.
type incoming struct {
	meta imapconn.Meta
	id   identity
	body *body
	keep []string // flags that the destination keeps
	done bool     // paired or refused
}

// fetcher takes messages off a reader: their identity, and their bodies when
// keep says so.
type fetcher struct {
	host string
	dir  string
	keep bool

	h    *hasher
	cur  *body
	uid  uint32
	msgs []*incoming
	seen func(size int64)
}

func (t *fetcher) Begin(uid uint32, size int64) (io.Writer, error) {
	t.cur.close() // of an attempt that broke off
	t.uid, t.cur, t.h = uid, nil, newHasher(t.host)
	if !t.keep {
		return t.h, nil
	}
	var err error
	if t.cur, err = newBody(size, t.dir); err != nil {
		return nil, err
	}
	return io.MultiWriter(t.h, t.cur), nil
}

func (t *fetcher) End(m imapconn.Meta) error {
	if t.h == nil || m.UID != t.uid {
		return fmt.Errorf("message %d ends that never began", m.UID)
	}
	msg := &incoming{meta: m, id: t.h.sum(), body: t.cur}
	if t.cur != nil {
		msg.meta.Size = t.cur.size
	}
	t.msgs = append(t.msgs, msg)
	t.h, t.cur = nil, nil
	if t.seen != nil {
		t.seen(msg.id.Size)
	}
	return nil
}

func (t *fetcher) close() {
	t.cur.close()
	for _, m := range t.msgs {
		m.body.close()
	}
}

// copyBatch reads messages, pairs those that are on the destination already,
// and appends the others.
func (f *folderRun) copyBatch(metas []imapconn.Meta) error {
	t := &fetcher{host: f.p.job.Host, dir: f.p.c.TempDir, keep: true}
	defer t.close()
	uids := make([]uint32, 0, len(metas))
	for _, m := range metas {
		uids = append(uids, m.UID)
	}
	failures, err := f.p.src.Fetch(uids, imapconn.Items{Flags: true, Date: true, Body: true}, t)
	if err != nil {
		return fmt.Errorf("source: %w", err)
	}
	f.noteFailures(failures)
	f.p.crash("after-fetch")
	slices.SortFunc(t.msgs, func(a, b *incoming) int { return int(int64(a.meta.UID) - int64(b.meta.UID)) })
	if err := f.cand.adopt(t.msgs); err != nil {
		return fmt.Errorf("destination: %w", err)
	}
	f.p.crash("after-adopt")
	rest := slices.DeleteFunc(slices.Clone(t.msgs), func(m *incoming) bool { return m.done })
	if err := f.append(rest); err != nil {
		return fmt.Errorf("destination: %w", err)
	}
	f.p.progress.MessagesDone += len(metas)
	f.p.show(false)
	return nil
}

// phantomAfter is the number of passes after which a message that is listed,
// but that the server answers OK for without handing it out, counts as none.
const phantomAfter = 3

func (f *folderRun) noteFailures(failures []imapconn.Failure) {
	for _, x := range failures {
		pr := Problem{Folder: f.src.Name, UID: x.UID, Class: ClassUnreadable, Text: x.Err.Error()}
		switch {
		case x.Gone:
			pr.Class, pr.Text = ClassVanished, "it was listed and is gone from the source"
		default:
			if f.rec.Unread == nil {
				f.rec.Unread = map[uint32]int{}
			}
			f.rec.Unread[x.UID]++
			if errors.Is(x.Err, imapconn.ErrOmitted) && f.rec.Unread[x.UID] > phantomAfter {
				pr.Class = ClassVanished
				pr.Text = fmt.Sprintf("it is listed, but in %d passes the source never had a message for it", f.rec.Unread[x.UID])
			}
			f.failed = true
		}
		f.p.problem(pr)
	}
}

// append appends messages, with the journal written before and the pairs after.
func (f *folderRun) append(msgs []*incoming) error {
	msgs = f.screen(msgs)
	if len(msgs) == 0 {
		return f.save()
	}
	j := &journal{Validity: f.rec.DstValidity, UIDNext: f.uidNext, At: time.Now().UnixMilli()}
	for _, m := range msgs {
		m.keep = f.keep(m.meta)
		j.Entries = append(j.Entries, entry{UID: m.meta.UID, Exact: m.id.Exact, Loose: m.id.Loose})
	}
	f.rec.Pending = j
	if err := f.save(); err != nil {
		return err
	}
	f.p.crash("after-journal")
	var err error
	if f.p.dst.Has("MULTIAPPEND") {
		err = f.appendAll(msgs)
	} else {
		for _, m := range msgs {
			if err = f.appendAll([]*incoming{m}); err != nil {
				break
			}
		}
	}
	if err == nil {
		err = f.identify(j)
	}
	if err != nil {
		// The journal stays: the next pass looks for what was appended without
		// being recorded. What is recorded is saved.
		return errors.Join(err, f.save())
	}
	f.rec.Pending = nil
	if err := f.save(); err != nil {
		return err
	}
	f.p.crash("after-record")
	return nil
}

// screen takes out what must not or need not be offered.
func (f *folderRun) screen(msgs []*incoming) []*incoming {
	var out []*incoming
	limit := f.p.dst.Limit()
	for _, m := range msgs {
		switch {
		case m.body.size == 0:
			f.refuse(m, "an empty message cannot be appended (RFC 3502, 6.3.11)")
		case limit > 0 && m.body.size > limit:
			f.refuse(m, fmt.Sprintf("it has %d octets, the destination takes %d (APPENDLIMIT)", m.body.size, limit))
		default:
			out = append(out, m)
		}
	}
	return out
}

func (f *folderRun) refuse(m *incoming, text string) {
	if f.rec.Refused == nil {
		f.rec.Refused = map[uint32]*refusal{}
	}
	r := f.rec.Refused[m.meta.UID]
	if r == nil {
		r = &refusal{}
		f.rec.Refused[m.meta.UID] = r
	}
	r.Text, r.waiting = text, true
	r.Skip = min(1<<min(r.Tries, 4), 16)
	r.Tries++
	m.done = true
	f.p.problem(Problem{Folder: f.src.Name, UID: m.meta.UID, Class: ClassRefused, Text: text})
}

// refusedTooOften refusals in a row mean that the destination takes nothing at
// all, whatever it says of the single message.
const refusedTooOften = 10

// appendAll appends messages in one command. When the server refuses them, they
// are halved until the culprit is alone.
func (f *folderRun) appendAll(msgs []*incoming) error {
	out := make([]imapconn.Outgoing, 0, len(msgs))
	for _, m := range msgs {
		out = append(out, imapconn.Outgoing{Flags: m.keep, Date: m.meta.Date, Size: m.body.size, Body: m.body})
	}
	done, err := f.p.dst.Append(f.wire, out)
	var e *imapconn.Error
	switch {
	case err == nil:
		f.p.crash("after-append")
		f.p.refusedInRow = 0
		return f.appended(msgs, done)
	case !errors.As(err, &e), temporary(e), e.Code == "TRYCREATE":
		return fmt.Errorf("append: %w (nothing is lost: start the pass again when this is mended)", err)
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
	if f.p.refusedInRow++; f.p.refusedInRow >= refusedTooOften {
		f.forgetRefused()
		return fmt.Errorf("append: %d messages in a row were refused, so it is not the messages: %w", f.p.refusedInRow, err)
	}
	f.refuse(msgs[0], e.Error())
	return nil
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
	for _, out := range tries {
		done, err := f.p.dst.Append(f.wire, []imapconn.Outgoing{out})
		var e *imapconn.Error
		if errors.As(err, &e) && !temporary(e) {
			continue
		}
		if err != nil {
			return false, fmt.Errorf("append: %w", err)
		}
		f.p.crash("after-append")
		class, what := ClassFlag, "keywords"
		if out.Date.IsZero() {
			class, what = ClassDate, "keywords and date"
		}
		f.p.problem(Problem{Folder: f.src.Name, UID: m.meta.UID, Class: class, Text: "it was taken only without its " + what + ": " + cause.Error()})
		f.p.refusedInRow = 0
		return true, f.appended([]*incoming{m}, done)
	}
	return false, nil
}

// forgetRefused has all refused messages of the folder offered again.
func (f *folderRun) forgetRefused() {
	for _, r := range f.rec.Refused {
		r.Skip, r.Tries = 0, 0
	}
}

// temporary tells whether an error is one of the server's state and not of the
// message. Codes are those of RFC 5530 and those of single servers.
func temporary(e *imapconn.Error) bool {
	switch e.Code {
	case "OVERQUOTA", "THROTTLED", "UNAVAILABLE", "INUSE", "SERVERBUG", "CONTACTADMIN", "AUTHENTICATIONFAILED",
		"AUTHORIZATIONFAILED", "EXPIRED", "PRIVACYREQUIRED", "NOPERM", "EXPUNGEISSUED":
		return true
	case "LIMIT", "TOOBIG", "CANNOT", "PARSE", "BADCHARSET", "UNKNOWN-CTE":
		return false
	}
	text := strings.ToLower(e.Text)
	return slices.ContainsFunc([]string{"quota", "disk", "space", "try again", "tempora", "throttl", "backoff", "unavailable",
		"internal error", "timeout", "timed out", "busy", "too many"}, func(w string) bool { return strings.Contains(text, w) })
}

// appended notes what the server took.
func (f *folderRun) appended(msgs []*incoming, done imapconn.Appended) error {
	for _, m := range msgs {
		m.done = true
		f.p.report.Copied++
		f.p.report.Bytes += m.body.size
		f.p.progress.BytesDone += m.body.size
		delete(f.rec.Refused, m.meta.UID)
		delete(f.rec.Unread, m.meta.UID)
		if m.meta.Flags != nil {
			f.agreed[m.meta.UID] = flagSet(m.meta.Flags)
		}
	}
	if done.UIDs == nil {
		return nil // identify finds them
	}
	if done.UIDValidity != f.rec.DstValidity {
		return fmt.Errorf("append: %w: from %d to %d", imapconn.ErrChanged, f.rec.DstValidity, done.UIDValidity)
	}
	for i, m := range msgs {
		f.rec.Pairs.add(m.meta.UID, done.UIDs[i])
		f.uidNext = max(f.uidNext, done.UIDs[i]+1)
	}
	return nil
}

// recover looks for the messages of a batch that was being appended when the
// last pass ended.
func (f *folderRun) recover() error {
	j := f.rec.Pending
	if j == nil {
		return nil
	}
	var found int
	for settled := false; ; {
		if err := f.resolve(j, &found); err != nil {
			return fmt.Errorf("destination: look for what the last pass appended: %w", err)
		}
		if settled || !slices.ContainsFunc(j.Entries, f.unpaired) {
			break
		}
		// The server may have the whole command and still be writing.
		var err error
		if settled, err = f.settle(j); err != nil {
			return err
		}
	}
	f.p.report.Adopted += found
	f.rec.Pending = nil
	f.p.crash("after-recover")
	f.p.log.Info("batch recovered", "user", f.p.job.User, "folder", f.src.Name, "entries", len(j.Entries), "found", found)
	return f.save()
}

const (
	defaultSettle = 5 * time.Second
	settleLook    = 500 * time.Millisecond // between two looks
)

// settle waits for the next look at a destination that may still be writing a
// batch; the look after it is the last one when it is settled.
func (f *folderRun) settle(j *journal) (settled bool, err error) {
	whole := f.p.c.Settle
	if whole <= 0 {
		whole = defaultSettle
	}
	// A clock that was set back must not make the wait longer than it is.
	left := min(time.Until(time.UnixMilli(j.At).Add(whole)), whole)
	if left <= 0 {
		return true, nil
	}
	timer := time.NewTimer(min(left, settleLook))
	defer timer.Stop()
	select {
	case <-timer.C:
		return left <= settleLook, nil
	case <-f.p.ctx.Done():
		return false, context.Cause(f.p.ctx)
	}
}

// unpaired tells whether an entry of a journal has no place yet.
func (f *folderRun) unpaired(e entry) bool {
	_, paired := f.rec.Pairs.dest(e.UID)
	return !paired && f.rec.Refused[e.UID] == nil
}

// identify finds the UIDs of appended messages that the server did not tell.
func (f *folderRun) identify(j *journal) error {
	if !slices.ContainsFunc(j.Entries, f.unpaired) {
		return nil
	}
	var n int
	if err := f.resolve(j, &n); err != nil {
		return fmt.Errorf("look for the UIDs of what was appended: %w", err)
	}
	for _, e := range j.Entries {
		if f.unpaired(e) {
			// Offered again, it would be there twice.
			if f.rec.Refused == nil {
				f.rec.Refused = map[uint32]*refusal{}
			}
			f.rec.Refused[e.UID] = &refusal{Text: unrecognised, Skip: never, waiting: true}
			f.p.problem(Problem{Folder: f.src.Name, UID: e.UID, Class: ClassAltered, Text: unrecognised})
		}
	}
	return nil
}

const (
	unrecognised = "it was appended, but the destination shows no message with its content"
	never        = 1 << 30 // passes
)

// resolve pairs the entries of a journal with messages of the destination from
// the noted UIDNEXT on, by content and as a multiset. Mail that arrives
// meanwhile lies in the same range: the number of messages says nothing. First
// the same content, then what servers are known to alter.
func (f *folderRun) resolve(j *journal, found *int) error {
	if _, err := f.p.dstReader.Select(f.destFolder()); err != nil {
		return err
	}
	uids, err := f.p.dstReader.UIDsFrom(j.UIDNext)
	if err != nil {
		return err
	}
	paired := f.rec.Pairs.dests()
	uids = slices.DeleteFunc(uids, func(u uint32) bool { return paired[u] })
	t := &fetcher{}
	failures, err := f.p.dstReader.Fetch(uids, imapconn.Items{Body: true}, t)
	if err != nil {
		return err
	}
	for _, x := range failures {
		if !x.Gone {
			return fmt.Errorf("UID %d cannot be read, and it may be one of them: %w", x.UID, x.Err)
		}
	}
	slices.SortFunc(t.msgs, func(a, b *incoming) int { return int(int64(a.meta.UID) - int64(b.meta.UID)) })
	for _, exact := range []bool{true, false} {
		for _, e := range j.Entries {
			if _, ok := f.rec.Pairs.dest(e.UID); ok {
				continue
			}
			i := slices.IndexFunc(t.msgs, func(m *incoming) bool {
				return !m.done && (exact && m.id.Exact == e.Exact || !exact && m.id.Loose == e.Loose)
			})
			if i < 0 {
				continue
			}
			t.msgs[i].done = true
			f.rec.Pairs.add(e.UID, t.msgs[i].meta.UID)
			f.uidNext = max(f.uidNext, t.msgs[i].meta.UID+1)
			*found++
		}
	}
	return nil
}

// destFolder is the folder on the destination as a reader opens it.
func (f *folderRun) destFolder() imapconn.Folder {
	return imapconn.Folder{Name: f.name, Wire: f.wire}
}
