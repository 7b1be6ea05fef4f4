package mailtest

import (
	"bytes"
	"slices"
	"strings"
	"sync"
	"time"

	"github.com/emersion/go-imap/v2"
	"github.com/emersion/go-imap/v2/imapserver"
)

// mailbox is one folder's messages. go-imap's memory server is not used for it: that one answers BODY[] with a header it
// has parsed and written anew (nothing at all when it cannot parse it), which is no ground to compare messages on.
type mailbox struct {
	tracker     *imapserver.MailboxTracker
	uidValidity uint32

	mu      sync.Mutex // also around every use of the tracker, which reads its counter unlocked
	msgs    []*boxMessage
	uidNext imap.UID
}

// boxMessage is one message; all but the flags never change.
type boxMessage struct {
	uid   imap.UID
	time  time.Time
	body  []byte
	flags []imap.Flag // replaced, never changed in place
}

func newMailbox(uidValidity uint32) *mailbox {
	return &mailbox{tracker: imapserver.NewMailboxTracker(0), uidValidity: uidValidity, uidNext: 1}
}

func (b *mailbox) append(body []byte, flags []imap.Flag, t time.Time) *imap.AppendData {
	if t.IsZero() {
		t = time.Now()
	}
	b.mu.Lock()
	defer b.mu.Unlock()
	msg := &boxMessage{uid: b.uidNext, time: t.Truncate(time.Second), body: body, flags: addFlags(nil, flags)}
	b.uidNext++
	b.msgs = append(b.msgs, msg)
	b.tracker.QueueNumMessages(uint32(len(b.msgs)))
	return &imap.AppendData{UIDValidity: b.uidValidity, UID: msg.uid}
}

// snapshot returns copies that stay as they are.
func (b *mailbox) snapshot() []boxMessage {
	b.mu.Lock()
	defer b.mu.Unlock()
	l := make([]boxMessage, len(b.msgs))
	for i, m := range b.msgs {
		l[i] = *m
	}
	return l
}

func (b *mailbox) count() int {
	b.mu.Lock()
	defer b.mu.Unlock()
	return len(b.msgs)
}

func (b *mailbox) status(name string) *imap.StatusData {
	b.mu.Lock()
	defer b.mu.Unlock()
	var unseen, deleted, recent uint32
	var size int64
	for _, m := range b.msgs {
		size += int64(len(m.body))
		if !hasFlag(m.flags, imap.FlagSeen) {
			unseen++
		}
		if hasFlag(m.flags, imap.FlagDeleted) {
			deleted++
		}
	}
	num := uint32(len(b.msgs))
	return &imap.StatusData{
		Mailbox: name, NumMessages: &num, UIDNext: b.uidNext, UIDValidity: b.uidValidity,
		NumUnseen: &unseen, NumDeleted: &deleted, NumRecent: &recent, Size: &size,
	}
}

// open makes a view of the folder for a connection, and what SELECT says of it, in one step.
func (b *mailbox) open() (*imapserver.SessionTracker, *imap.SelectData) {
	b.mu.Lock()
	defer b.mu.Unlock()
	data := &imap.SelectData{
		Flags:          []imap.Flag{imap.FlagAnswered, imap.FlagFlagged, imap.FlagDeleted, imap.FlagSeen, imap.FlagDraft},
		NumMessages:    uint32(len(b.msgs)),
		UIDNext:        b.uidNext,
		UIDValidity:    b.uidValidity,
		PermanentFlags: []imap.Flag{imap.FlagAnswered, imap.FlagFlagged, imap.FlagDeleted, imap.FlagSeen, imap.FlagDraft, imap.FlagWildcard},
	}
	for i, m := range b.msgs {
		data.Flags = addFlags(data.Flags, m.flags)
		if data.FirstUnseenSeqNum == 0 && !hasFlag(m.flags, imap.FlagSeen) {
			data.FirstUnseenSeqNum = uint32(i) + 1
		}
	}
	return b.tracker.NewSession(), data
}

// viewed is a message as one connection sees it.
type viewed struct {
	seq uint32 // in the connection's numbering
	idx int    // in the folder's
	msg *boxMessage
}

// selectLocked finds the messages of a set that the connection has been told of: a message whose EXISTS has not been sent
// has no sequence number yet and cannot be in an answer.
func (b *mailbox) selectLocked(view *imapserver.SessionTracker, set imap.NumSet) []viewed {
	var all, l []viewed
	for i, m := range b.msgs {
		if seq := view.EncodeSeqNum(uint32(i) + 1); seq != 0 {
			all = append(all, viewed{seq, i, m})
		}
	}
	if len(all) == 0 {
		return nil
	}
	last := all[len(all)-1]
	for _, v := range all {
		if inSet(set, v, last) {
			l = append(l, v)
		}
	}
	return l
}

// inSet resolves "*" to the last message (RFC 3501, 6.4.8: a range that begins above it still names it).
func inSet(set imap.NumSet, v, last viewed) bool {
	switch set := set.(type) {
	case imap.SeqSet:
		return slices.ContainsFunc(set, func(r imap.SeqRange) bool { return inRange(v.seq, r.Start, r.Stop, last.seq) })
	case imap.UIDSet:
		return slices.ContainsFunc(set, func(r imap.UIDRange) bool {
			return inRange(uint32(v.msg.uid), uint32(r.Start), uint32(r.Stop), uint32(last.msg.uid))
		})
	default:
		return false
	}
}

func inRange(n, start, stop, last uint32) bool {
	if start == 0 {
		start = last
	}
	if stop == 0 {
		stop = last
	}
	return n >= min(start, stop) && n <= max(start, stop)
}

// fetch returns copies of the messages of a set and marks them as seen if asked to.
func (b *mailbox) fetch(view *imapserver.SessionTracker, set imap.NumSet, markSeen bool) []viewed {
	b.mu.Lock()
	defer b.mu.Unlock()
	l := b.selectLocked(view, set)
	for i, v := range l {
		if markSeen && !hasFlag(v.msg.flags, imap.FlagSeen) {
			v.msg.flags = addFlags(v.msg.flags, []imap.Flag{imap.FlagSeen})
			b.tracker.QueueMessageFlags(uint32(v.idx)+1, v.msg.uid, v.msg.flags, nil)
		}
		msg := *v.msg
		l[i].msg = &msg
	}
	return l
}

func (b *mailbox) store(view *imapserver.SessionTracker, set imap.NumSet, change *imap.StoreFlags) {
	b.mu.Lock()
	defer b.mu.Unlock()
	for _, v := range b.selectLocked(view, set) {
		switch change.Op {
		case imap.StoreFlagsAdd:
			v.msg.flags = addFlags(v.msg.flags, change.Flags)
		case imap.StoreFlagsDel:
			v.msg.flags = slices.DeleteFunc(slices.Clone(v.msg.flags), func(f imap.Flag) bool { return hasFlag(change.Flags, f) })
		default:
			v.msg.flags = addFlags(nil, change.Flags)
		}
		b.tracker.QueueMessageFlags(uint32(v.idx)+1, v.msg.uid, v.msg.flags, view)
	}
}

// expunge removes the messages that match and queues the news to every connection, this one included.
func (b *mailbox) expunge(match func(*boxMessage) bool) {
	b.mu.Lock()
	defer b.mu.Unlock()
	for i := len(b.msgs) - 1; i >= 0; i-- {
		if match(b.msgs[i]) {
			b.msgs = slices.Delete(b.msgs, i, i+1)
			b.tracker.QueueExpunge(uint32(i) + 1)
		}
	}
}

func (b *mailbox) search(view *imapserver.SessionTracker, criteria *imap.SearchCriteria) []viewed {
	b.mu.Lock()
	defer b.mu.Unlock()
	all := b.selectLocked(view, imap.SeqSet{{Start: 1}})
	if len(all) == 0 {
		return nil
	}
	last := all[len(all)-1]
	return slices.DeleteFunc(all, func(v viewed) bool { return !matches(v, last, criteria) })
}

// matches decides SEARCH. Header, Body and Text match raw bytes without regard to encodings.
func matches(v, last viewed, c *imap.SearchCriteria) bool {
	for _, s := range c.SeqNum {
		if !inSet(s, v, last) {
			return false
		}
	}
	for _, s := range c.UID {
		if !inSet(s, v, last) {
			return false
		}
	}
	for _, f := range c.Flag {
		if !hasFlag(v.msg.flags, f) {
			return false
		}
	}
	for _, f := range c.NotFlag {
		if hasFlag(v.msg.flags, f) {
			return false
		}
	}
	size := int64(len(v.msg.body))
	if c.Larger != 0 && size <= c.Larger || c.Smaller != 0 && size >= c.Smaller || !matchesDate(v.msg, c) || !matchesText(v.msg, c) {
		return false
	}
	for i := range c.Not {
		if matches(v, last, &c.Not[i]) {
			return false
		}
	}
	for i := range c.Or {
		if !matches(v, last, &c.Or[i][0]) && !matches(v, last, &c.Or[i][1]) {
			return false
		}
	}
	return true
}

// matchesDate compares days and disregards time zones (RFC 3501, 6.4.4).
func matchesDate(m *boxMessage, c *imap.SearchCriteria) bool {
	within := func(t, since, before time.Time) bool {
		y, mon, d := t.Date()
		day := time.Date(y, mon, d, 0, 0, 0, 0, time.UTC)
		return (since.IsZero() || !day.Before(since)) && (before.IsZero() || day.Before(before))
	}
	if !within(m.time, c.Since, c.Before) {
		return false
	}
	if c.SentSince.IsZero() && c.SentBefore.IsZero() {
		return true
	}
	env := envelope(m.body)
	return env != nil && within(env.Date, c.SentSince, c.SentBefore)
}

func matchesText(m *boxMessage, c *imap.SearchCriteria) bool {
	header, text := splitMessage(m.body)
	for _, h := range c.Header {
		if !headerContains(header, h.Key, h.Value) {
			return false
		}
	}
	for _, s := range c.Body {
		if !containsFold(text, s) {
			return false
		}
	}
	for _, s := range c.Text {
		if !containsFold(m.body, s) {
			return false
		}
	}
	return true
}

func containsFold(b []byte, s string) bool {
	return bytes.Contains(bytes.ToLower(b), bytes.ToLower([]byte(s)))
}

func headerContains(header []byte, key, value string) bool {
	unfolded := strings.NewReplacer("\r\n ", " ", "\r\n\t", "\t").Replace(string(header))
	for line := range strings.SplitSeq(unfolded, "\n") {
		k, v, ok := strings.Cut(line, ":")
		if ok && strings.EqualFold(strings.TrimSpace(k), key) && containsFold([]byte(v), value) {
			return true
		}
	}
	return false
}

// splitMessage cuts a message behind the empty line that ends its header, which stays with the header. A message without
// one is all header.
func splitMessage(body []byte) (header, text []byte) {
	if bytes.HasPrefix(body, []byte("\r\n")) {
		return body[:2], body[2:]
	}
	if i := bytes.Index(body, []byte("\r\n\r\n")); i >= 0 {
		return body[:i+4], body[i+4:]
	}
	return body, nil
}

// addFlags returns a new list; flags are the same whatever their letter case, and \Recent cannot be set.
func addFlags(have, more []imap.Flag) []imap.Flag {
	l := slices.Clone(have)
	for _, f := range more {
		if !hasFlag(l, f) && !strings.EqualFold(string(f), `\Recent`) {
			l = append(l, f)
		}
	}
	return l
}

func hasFlag(l []imap.Flag, f imap.Flag) bool {
	return slices.ContainsFunc(l, func(g imap.Flag) bool { return strings.EqualFold(string(f), string(g)) })
}
