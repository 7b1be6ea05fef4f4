package backfill

import (
	"fmt"
	"slices"
	"strings"

	"crossfade/backfill/imapconn"
)

// comparison is the work of a verification.
type comparison struct {
	p     *pass
	v     *Verification
	pairs []*facing
	// strays are messages of the destination without a counterpart in their
	// folder, and where they lie.
	strays []*incoming
	lies   map[*incoming]string
}

// facing is a folder of the source and its place on the destination, with what
// was not found there.
type facing struct {
	wire  string // of the source
	check int    // in Verification.Folders
	rec   *record
	src   listing
	dst   listing
}

// folder reads a folder on both sides and pairs what is equal.
func (s *comparison) folder(pr pairing) (err error) {
	f := &facing{wire: pr.src.Wire, check: len(s.v.Folders)}
	err = both(func() (err error) {
		f.src, err = s.p.identities(s.p.src, pr.src, s.p.filter)
		return inside("source", err)
	}, func() (err error) {
		if pr.exists {
			f.dst, err = s.p.identities(s.p.dstReader, imapconn.Folder{Name: pr.name, Wire: pr.wire}, Filter{})
		}
		return inside("destination", err)
	})
	if err != nil {
		return err
	}
	if f.rec, err = s.p.book.record(pr.src.Wire); err != nil {
		return err
	}
	c := FolderCheck{
		Source: pr.src.Name, Dest: pr.name, OnSource: len(f.src.msgs), OnDest: len(f.dst.msgs), Filtered: f.src.filtered,
		Classes: map[string]int{}, Validity: f.src.sel.UIDValidity, Digest: digest(f.src.msgs), Bytes: octets(f.src.msgs),
	}
	match(f.src.msgs, f.dst.msgs, exactKey)
	match(f.src.msgs, f.dst.msgs, deliveryKey)
	altered, _ := match(f.src.msgs, f.dst.msgs, looseKey)
	for _, m := range altered {
		s.problem(&c, m.meta.UID, ClassAltered, "the destination has it with other line ends or without NUL")
	}
	munged, _ := matchMunged(f.src.msgs, f.dst.msgs)
	for _, m := range munged {
		s.problem(&c, m.meta.UID, ClassAltered, "the destination has it with X for the 8-bit octets in its header")
	}
	for _, m := range f.src.msgs {
		if m.done {
			c.Matched++
		}
	}
	s.take(pr.name, f.dst, &c)
	if pr.exists {
		s.v.Holds = append(s.v.Holds, holding(pr.name, f.dst))
	}
	s.v.Problems = append(s.v.Problems, f.src.problems...)
	s.v.Filtered += c.Filtered
	s.v.Folders = append(s.v.Folders, c)
	s.pairs = append(s.pairs, f)
	// What is paired is not needed any more: a mailbox may be large.
	f.src.msgs, f.dst.msgs = f.src.open(), uidsOnly(f.dst.msgs)
	return nil
}

// uidsOnly keeps of messages what tells whether they are there.
func uidsOnly(msgs []*incoming) []*incoming {
	out := make([]*incoming, len(msgs))
	for i, m := range msgs {
		out[i] = &incoming{meta: imapconn.Meta{UID: m.meta.UID}}
	}
	return out
}

// take notes the messages of a folder of the destination that have no
// counterpart there.
func (s *comparison) take(name string, l listing, c *FolderCheck) {
	paired := map[key]bool{}
	for _, m := range l.msgs {
		if m.done {
			paired[m.id.Exact] = true
		}
	}
	if s.lies == nil {
		s.lies = map[*incoming]string{}
	}
	for _, m := range l.open() {
		s.strays = append(s.strays, m)
		s.lies[m] = name
		c.Extra++
		if paired[m.id.Exact] {
			c.Twice++
		}
	}
	for _, x := range l.problems {
		x.Text = "on the destination: " + x.Text
		s.v.Problems = append(s.v.Problems, x)
	}
}

// others reads the folders of the destination that no folder of the source leads
// to: users make folders, and move messages there.
func (s *comparison) others() error {
	known := map[string]bool{}
	for _, pr := range s.p.pairings {
		known[pr.wire] = true
	}
	var none FolderCheck
	for _, d := range s.p.dstSide.folders {
		if known[d.Wire] || !d.Selectable() || inOthers(d, s.p.dstSide.ns) {
			continue
		}
		l, err := s.p.identities(s.p.dstReader, d, Filter{})
		if skippable(err) {
			s.v.Problems = append(s.v.Problems, Problem{Folder: d.Name, Class: ClassUnreadable, Text: "on the destination: " + err.Error()})
			continue
		}
		if err != nil {
			return fmt.Errorf("destination: folder %q: %w", d.Name, err)
		}
		s.take(d.Name, l, &none)
		s.v.Holds = append(s.v.Holds, holding(d.Name, l))
	}
	return nil
}

// judge says of each message that has no counterpart in its folder what became
// of it.
func (s *comparison) judge() {
	var left []*incoming
	for _, f := range s.pairs {
		left = append(left, f.src.msgs...)
	}
	moved := map[*incoming]string{}
	note := func(found, partners []*incoming) {
		for i, m := range found {
			moved[m] = s.lies[partners[i]]
		}
	}
	for _, by := range []func(identity) key{exactKey, deliveryKey, looseKey} {
		note(match(left, s.strays, by))
	}
	note(matchMunged(left, s.strays))
	for _, f := range s.pairs {
		s.judgeFolder(f, moved)
	}
}

func (s *comparison) judgeFolder(f *facing, moved map[*incoming]string) {
	c := &s.v.Folders[f.check]
	same := newGroups(c.Source)
	for _, x := range f.src.problems {
		if x.Class == ClassUnreadable {
			c.Missing = append(c.Missing, x.UID)
			c.Classes[ClassUnreadable]++
		}
	}
	there := map[uint32]bool{}
	for _, m := range f.dst.msgs {
		there[m.meta.UID] = true
	}
	for _, m := range f.src.msgs {
		uid := m.meta.UID
		refused := f.rec.Refused[uid]
		to, wasMoved := moved[m]
		switch {
		case s.p.attic.shows(f.wire, m.id):
			c.Wrapped++
			text := fmt.Sprintf("it is in %q as an attachment", s.p.attic.name())
			if refused != nil {
				text += ": " + refused.Text
			}
			s.problem(c, uid, ClassWrapped, text)
			continue
		case wasMoved:
			same.add(uid, ClassMoved, fmt.Sprintf("it is in the folder %q of the destination", to))
			c.Classes[ClassMoved]++
			continue
		case refused != nil:
			s.problem(c, uid, ClassRefused, refused.Text)
		case s.p.job.Settled && (f.gone(uid, there) || f.known(s.p, uid)):
			same.add(uid, ClassDeleted, "it was copied, and is gone from the destination since")
			c.Classes[ClassDeleted]++
			continue
		case f.gone(uid, there):
			same.add(uid, ClassMissing, "it was copied and is gone from the destination, which the user does not read yet: the next pass copies it again")
			c.Classes[ClassMissing]++
		default:
			same.add(uid, ClassMissing, "it is nowhere on the destination: the next pass copies it")
			c.Classes[ClassMissing]++
		}
		c.Missing = append(c.Missing, uid)
	}
	slices.Sort(c.Missing)
	s.v.Missing += len(c.Missing)
	s.v.Wrapped += c.Wrapped
	s.v.Problems = append(s.v.Problems, same.list...)
}

// gone tells whether a message was on the destination once and is not any more.
func (f *facing) gone(uid uint32, there map[uint32]bool) bool {
	if f.rec.SrcValidity != f.src.sel.UIDValidity || f.rec.DstValidity != f.dst.sel.UIDValidity {
		return false // the pairs mean other messages
	}
	to, paired := f.rec.Pairs.dest(uid)
	return paired && !there[to]
}

// known tells whether a message was on the destination once, though it is in no pair
// any more: no pass copies it.
func (f *facing) known(p *pass, uid uint32) bool {
	return f.rec.SrcValidity == f.src.sel.UIDValidity && (f.rec.Known.has(uid) || p.apart.sources(f.rec.Source, f.rec.SrcValidity)[uid])
}

func (s *comparison) problem(c *FolderCheck, uid uint32, class, text string) {
	c.Classes[class]++
	s.v.Problems = append(s.v.Problems, Problem{Folder: c.Source, UID: uid, Class: class, Text: text})
}

// groups are problems of a folder that many messages have.
type groups struct {
	folder string
	at     map[[2]string]int
	uids   [][]uint32
	list   []Problem
}

func newGroups(folder string) *groups { return &groups{folder: folder, at: map[[2]string]int{}} }

// add notes a message; UIDs come in ascending order.
func (g *groups) add(uid uint32, class, text string) {
	k := [2]string{class, text}
	i, ok := g.at[k]
	if !ok {
		i = len(g.list)
		g.at[k] = i
		g.list = append(g.list, Problem{Folder: g.folder, Class: class, Text: text})
		g.uids = append(g.uids, nil)
	}
	g.uids[i] = append(g.uids[i], uid)
	g.list[i].UIDs, g.list[i].Count = formatUIDs(g.uids[i]), len(g.uids[i])
}

func formatUIDs(uids []uint32) string { return strings.Join(imapconn.FormatUIDs(uids, 1<<30), ",") }

// sourceName says where the mail is read from.
func (j Job) sourceName() string {
	if s, ok := j.From.(fmt.Stringer); ok {
		return s.String()
	}
	return j.Source.Server.Address
}
