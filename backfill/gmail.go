package backfill

import (
	"cmp"
	"encoding/binary"
	"encoding/json"
	"errors"
	"fmt"
	"hash/fnv"
	"slices"
	"strings"
	"sync"

	"crossfade/backfill/imapconn"
)

// gmailBox is a Gmail mailbox as a source. What Gmail shows as folders are labels
// of messages that all lie in All Mail, Spam or Trash. These three are listed,
// with the labels, and the folders of the pass are made from that: so a message
// is known by its UID there, in whatever folder it shows, and is in the pass
// exactly where its labels say.
type gmailBox struct {
	p      *pass
	labels GmailLabels
	narrow bool // a pass over the INBOX only
	view   gmailView

	mu        sync.Mutex
	session   *imapconn.Session // until a reader has it
	state     gmailState
	snap      *gmailSnap         // nil: nobody needed it yet
	confirmed bool               // snap is the second one, see confirm
	searched  [3]map[uint32]bool // UIDs that a search found before it
	notes     []Problem          // what is not carried as it is
	folders   []imapconn.Folder  // of the pass
}

// gmailState is what the folders of the pass were like when the mailbox was as
// Real says. As long as it is, nothing has to be listed.
type gmailState struct {
	Mode    GmailLabels                `json:"mode"`
	Real    [3]imapconn.Status         `json:"real"`
	Users   []string                   `json:"users,omitempty"` // labels of messages, the users' own
	Folders map[string]imapconn.Status `json:"folders"`
	// Twice is how many messages have labels of several folders, of which with
	// GmailKeywords one counts.
	Twice int `json:"twice,omitempty"`
}

const gmailStateName = "gmail/state" // of the record in the ledger

// gmailSnap is what was listed: All Mail, Spam and Trash.
type gmailSnap struct {
	validity [3]uint32
	msgs     [3][]gmailMessage // UIDs ascending
	sets     []*gmailSet
}

type gmailMessage struct {
	imapconn.Meta
	set *gmailSet
}

// gmailSet is a set of labels, which many messages have.
type gmailSet struct {
	labels []string
	folder int // which of the three
	place  gmailPlace
}

// in tells whether messages with these labels show in a folder.
func (s *gmailSet) in(wire string) bool { return slices.Contains(s.place.folders, wire) }

// flags gives the flags of a message with these labels.
func (s *gmailSet) flags(own []string) []string {
	if own == nil || len(s.place.flags) == 0 {
		return own
	}
	out := slices.Clone(own)
	for _, f := range s.place.flags {
		if !slices.ContainsFunc(out, func(o string) bool { return strings.EqualFold(o, f) }) {
			out = append(out, f)
		}
	}
	return out
}

// gmailFolder tells in which of the three the messages of a folder lie.
func gmailFolder(wire string) int {
	switch wire {
	case gmailJunk:
		return gmailSpam
	case gmailTrash:
		return gmailBin
	}
	return gmailAll
}

// openGmail takes a session over and finds out how the mailbox is.
func openGmail(p *pass, s *imapconn.Session) (*gmailBox, error) {
	b := &gmailBox{p: p, labels: cmp.Or(p.job.Gmail, GmailFolders)}
	b.narrow = p.narrow && slices.Equal(p.o.Only, []string{gmailInbox})
	s, err := b.over(s, b.open)
	if err != nil {
		return nil, err
	}
	b.session = s
	return b, nil
}

// over runs something on a session: on a new one when s is nil, and again when
// the server wants it slower or the connection ends. It gives the session back.
func (b *gmailBox) over(s *imapconn.Session, do func(*imapconn.Session) error) (*imapconn.Session, error) {
	const attempts = 3
	for try := 1; ; {
		var err error
		if s == nil {
			s, err = b.p.c.Dialer.Open(b.p.ctx, b.p.job.Source)
			b.p.srcServer().refused(err, srcSeats)
		}
		if err == nil {
			err = do(s)
		}
		if err == nil {
			return s, nil
		}
		if s != nil {
			s.Close()
			s = nil
		}
		if _, slower := imapconn.Throttled(err); slower {
			if err := (pauser{&b.p.throttle, b.p.srcServer(), SideSource}).Pause(b.p.ctx, err); err != nil {
				return nil, err
			}
			continue
		}
		if try++; try > attempts || b.p.ctx.Err() != nil || !offline(err) {
			return nil, err
		}
	}
}

// open looks at the folders of the mailbox, and lists the messages unless they
// are as they were in an earlier pass.
func (b *gmailBox) open(s *imapconn.Session) error {
	all, err := s.List()
	if err != nil {
		return err
	}
	if b.view, err = viewGmail(all); err != nil {
		return err
	}
	var known gmailState
	if data := b.p.book.known(gmailStateName); len(data) > 0 {
		if err := json.Unmarshal(data, &known); err != nil {
			known = gmailState{} // it only spares a look
		}
	}
	if b.state.Users = known.Users; b.narrow {
		return b.take(s, "")
	}
	real, err := b.statuses(s)
	if err != nil {
		return err
	}
	if known.Mode == b.labels && known.Real == real && real[gmailAll].ModSeq != 0 {
		b.state = known
		b.settle()
		return nil
	}
	b.state.Mode, b.state.Real = b.labels, real
	return b.take(s, gmailStateName)
}

// take lists the messages. With a name the state is noted under it.
func (b *gmailBox) take(s *imapconn.Session, name string) (err error) {
	label := ""
	if b.narrow {
		label = `\Inbox`
	}
	if b.snap, err = b.list(s, label); err != nil {
		return err
	}
	b.state.count(b.snap)
	b.settle()
	if name == "" || b.p.dry {
		return nil
	}
	data, err := json.Marshal(b.state)
	if err != nil {
		return err
	}
	return b.p.book.write(b.p.ctx, name, data)
}

// statuses asks how the three folders are, and what is in those that are not
// carried over.
func (b *gmailBox) statuses(s *imapconn.Session) (real [3]imapconn.Status, err error) {
	var wires []string
	for _, w := range b.view.real {
		if w != "" {
			wires = append(wires, w)
		}
	}
	for _, f := range b.view.odd {
		if f.Selectable() {
			wires = append(wires, f.Wire)
		}
	}
	stats, errs, err := s.Statuses(wires)
	if err != nil {
		return real, err
	}
	for i, w := range b.view.real {
		if err := errs[w]; err != nil {
			return real, fmt.Errorf("folder %q: %w", w, err)
		}
		real[i] = stats[w]
	}
	b.notes = nil
	for _, f := range b.view.odd {
		if n := int(stats[f.Wire].Messages); n > 0 && !slices.Contains(b.state.Users, f.Wire) {
			b.notes = append(b.notes, Problem{Folder: f.Name, Count: n, Class: ClassFiltered,
				Text: fmt.Sprintf("Gmail's own folder, with %d entries, is not copied: chats are no mail", n)})
		}
	}
	b.warn(real)
	return real, nil
}

// warn tells of what Gmail may keep from us: its settings bound how many
// messages of a folder IMAP shows.
func (b *gmailBox) warn(real [3]imapconn.Status) {
	if n := real[gmailAll].Messages; slices.Contains([]uint32{1000, 2000, 5000, 10000}, n) {
		b.notes = append(b.notes, Problem{Folder: nameOf(b.view.real[gmailAll]), Class: ClassFiltered,
			Text: fmt.Sprintf("IMAP shows exactly %d messages: unless these are all, have Gmail not limit the messages in a folder (Settings, Forwarding and POP/IMAP)", n)})
	}
	for i, what := range map[int]string{gmailSpam: "Spam", gmailBin: "Trash"} {
		if b.view.real[i] == "" {
			b.notes = append(b.notes, Problem{Folder: what, Class: ClassFiltered, Text: "Gmail does not show it to IMAP: it is not copied"})
		}
	}
}

// list lists the three folders, or what has a label in All Mail.
func (b *gmailBox) list(s *imapconn.Session, label string) (*gmailSnap, error) {
	snap := &gmailSnap{}
	ids, sets, words := map[uint64]bool{}, map[string]*gmailSet{}, map[string][]string{}
	for i, wire := range b.view.real {
		if wire == "" || label != "" && i != gmailAll {
			continue
		}
		msgs, sel, err := s.ListGmail(wire, label)
		if err != nil {
			return nil, err
		}
		snap.validity[i] = sel.UIDValidity
		for _, m := range msgs {
			if ids[m.ID] {
				continue // it moved between two lists; the next look finds it where it is
			}
			ids[m.ID] = true
			key := fmt.Sprintf("%d %q", i, m.Labels)
			if sets[key] == nil {
				sets[key] = &gmailSet{labels: m.Labels, folder: i}
				snap.sets = append(snap.sets, sets[key])
			}
			flags := strings.Join(m.Flags, " ")
			if words[flags] == nil {
				words[flags] = m.Flags
			}
			m.Flags = words[flags]
			snap.msgs[i] = append(snap.msgs[i], gmailMessage{m.Meta, sets[key]})
		}
	}
	b.settlePlaces(snap)
	return snap, nil
}

// settlePlaces says where the messages go.
func (b *gmailBox) settlePlaces(snap *gmailSnap) {
	var seen []string
	for _, s := range snap.sets {
		seen = append(seen, userLabels(s.labels)...)
	}
	slices.Sort(seen)
	if b.narrow { // the others are those of the last whole look
		seen = append(seen, b.state.Users...)
	}
	slices.Sort(seen)
	b.state.Users = slices.Compact(seen)
	rules := gmailRules{labels: b.labels}
	if b.labels == GmailKeywords {
		rules.keywords, _ = gmailKeywords(b.known())
	}
	for _, s := range snap.sets {
		switch s.folder {
		case gmailSpam:
			s.place = rules.placeIn(gmailJunk, s.labels)
		case gmailBin:
			s.place = rules.placeIn(gmailTrash, s.labels)
		default:
			s.place = rules.place(s.labels)
		}
	}
}

// known gives all labels of users, of messages and of folders.
func (b *gmailBox) known() []string {
	out := slices.Clone(b.state.Users)
	for _, f := range b.view.users {
		out = append(out, f.Wire)
	}
	return out
}

// count finds out how each folder is. The state of a folder changes with its
// messages and their flags, as that of a server with CONDSTORE does.
func (st *gmailState) count(snap *gmailSnap) {
	sums := map[string]uint64{}
	st.Folders, st.Twice = map[string]imapconn.Status{}, 0
	for _, msgs := range snap.msgs {
		for _, m := range msgs {
			if m.set.several() {
				st.Twice++
			}
			h := fnv.New64a()
			var n [4]byte
			binary.BigEndian.PutUint32(n[:], m.UID)
			h.Write(n[:])
			h.Write([]byte(flagSet(m.set.flags(m.Flags))))
			for _, wire := range m.set.place.folders {
				s := st.Folders[wire]
				s.Messages++
				s.Size += m.Size
				st.Folders[wire] = s
				sums[wire] = (sums[wire]^h.Sum64())*1099511628211 + 1
			}
		}
	}
	for _, wire := range []string{gmailInbox, gmailSent, gmailDrafts, gmailArchive, gmailJunk, gmailTrash} {
		if _, ok := st.Folders[wire]; !ok {
			st.Folders[wire] = imapconn.Status{}
		}
	}
	for wire, s := range st.Folders {
		s.UIDValidity, s.ModSeq = snap.validity[gmailFolder(wire)], sums[wire]>>1|1
		st.Folders[wire] = s
	}
}

// settle makes the list of folders and tells what is not carried as it is.
func (b *gmailBox) settle() {
	b.folders = b.view.folders(b.labels, b.state.Users)
	if b.labels != GmailKeywords {
		return
	}
	_, problems := gmailKeywords(b.known())
	b.notes = append(b.notes, problems...)
	if b.state.Twice > 0 {
		b.notes = append(b.notes, Problem{Folder: "INBOX", Count: b.state.Twice, Class: ClassFlag,
			Text: fmt.Sprintf("%d messages are in several of Inbox, Sent and Drafts: with labels as keywords they are in the first of these only", b.state.Twice)})
	}
}

// Namespaces implements [Mailbox].
func (b *gmailBox) Namespaces() (imapconn.Namespaces, error) {
	return imapconn.Namespaces{Delim: "/"}, nil
}

// List implements [Mailbox].
func (b *gmailBox) List() ([]imapconn.Folder, error) { return b.folders, nil }

// Statuses implements [Mailbox]. No UIDNEXT is told: the UIDs are those of a
// folder that is larger.
func (b *gmailBox) Statuses(wires []string) (map[string]imapconn.Status, map[string]error, error) {
	stats, errs := map[string]imapconn.Status{}, map[string]error{}
	for _, w := range wires {
		st, ok := b.state.Folders[w]
		if !ok { // a label without a message
			st = imapconn.Status{UIDValidity: b.state.Folders[gmailArchive].UIDValidity, ModSeq: 1}
		}
		stats[w] = st
		if st.UIDValidity == 0 {
			delete(stats, w)
			errs[w] = errors.New("Gmail does not show it to IMAP")
		}
	}
	return stats, errs, nil
}

// Close implements [Mailbox].
func (b *gmailBox) Close() error {
	b.mu.Lock()
	defer b.mu.Unlock()
	if b.session != nil {
		b.session.Close()
		b.session = nil
	}
	return nil
}

// several tells whether labels name more than one folder of the system.
func (s *gmailSet) several() bool {
	n := 0
	for _, l := range s.labels {
		if folder, _, _ := systemLabel(l); folder != "" && s.folder == gmailAll {
			n++
		}
	}
	return n > 1
}
