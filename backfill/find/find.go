// Package find looks for one message in a mailbox, by the queue id in the
// Received field that the relay wrote into it. It is asked for deliveries whose
// reply was lost, before they are sent again.
//
// It looks in the INBOX first and then in every other folder of the user, because
// filters file mail away and users move it; only at what arrived since the
// delivery. What a server's own search of headers says is believed when it finds
// something, and the field is compared even then: such searches look for parts of
// words, for whole words, or not at all, each server in its own way. A message
// that is not found may still come: its server may have it in a queue.
//
// Start reading at [Message].
package find

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"strings"
	"time"

	"crossfade/backfill/imapconn"
)

// Query says what is looked for.
type Query struct {
	ID     string    // the queue id
	Since  time.Time // nothing of it arrived before
	Copies int       // the look ends when so many are found; 0 means 1
	Memory *Memory   // of earlier looks; nil: none
}

// ErrUnreachable says that the server could not be reached, or has no room now: a
// look at another mailbox of it would fail too.
var ErrUnreachable = errors.New("the mail server cannot be asked now")

// Place is where a message lies.
type Place struct {
	Folder   string // in UTF-8, with the server's separator
	Validity uint32 // UIDVALIDITY
	UID      uint32
}

// String names folder and UID.
func (p Place) String() string { return fmt.Sprintf("%s, UID %d", p.Folder, p.UID) }

const (
	// fetchMost is how many messages are asked for in one command, newest first.
	fetchMost = 200
	// searchFrom is how many messages make the server's own search worth a try.
	searchFrom = 500
)

// Message looks for a message over one connection of its own. It gives the places
// in which it lies, none when all folders were looked through without an error
// and it is in none of them. An error says that it may be there nevertheless.
func Message(ctx context.Context, d *imapconn.Dialer, acct imapconn.Account, q Query) ([]Place, error) {
	s, err := d.Open(ctx, acct)
	var login *imapconn.LoginError
	switch {
	case errors.As(err, &login) && !login.Busy():
		return nil, err
	case err != nil:
		return nil, fmt.Errorf("%w: %w", ErrUnreachable, err)
	}
	defer s.Close()
	q.Copies = max(q.Copies, 1)
	l := &look{s: s, acct: acct, q: q, day: q.Since.Add(-24 * time.Hour)}
	inbox := imapconn.Folder{Name: "INBOX", Wire: "INBOX"}
	if !s.Has(imapconn.GmailExtensions) {
		if err := l.folder(inbox); err != nil || l.enough() {
			return l.places, err
		}
	}
	folders, err := others(s)
	if err != nil {
		return nil, fmt.Errorf("list the folders: %w", err)
	}
	for _, f := range folders {
		if err := l.folder(f); err != nil || l.enough() {
			return l.places, err
		}
	}
	return l.places, nil
}

// others gives the folders that are looked at beside the INBOX: Junk first, Trash
// last. Gmail shows each message in a folder for each of its labels, so there it
// is the one that has all, and the two that it leaves out.
func others(s *imapconn.Session) ([]imapconn.Folder, error) {
	ns, err := s.Namespaces()
	if err != nil {
		return nil, err
	}
	all, err := s.List()
	if err != nil {
		return nil, err
	}
	gmail := s.Has(imapconn.GmailExtensions)
	keep := func(f imapconn.Folder) bool {
		whole := slices.Contains(f.Attrs, `\all`)
		foreign := slices.ContainsFunc(ns.Others, func(p string) bool { return strings.HasPrefix(f.Name, p) })
		if gmail {
			return whole || f.Use() == `\Junk` || f.Use() == `\Trash`
		}
		return f.Selectable() && f.Name != "INBOX" && !whole && !foreign
	}
	all = slices.DeleteFunc(all, func(f imapconn.Folder) bool { return !keep(f) })
	slices.SortStableFunc(all, func(a, b imapconn.Folder) int { return rank(a) - rank(b) })
	return all, nil
}

func rank(f imapconn.Folder) int {
	switch f.Use() {
	case `\Junk`:
		return 0
	case `\Trash`:
		return 2
	}
	return 1
}

// look is one search on its way.
type look struct {
	s      *imapconn.Session
	acct   imapconn.Account
	q      Query
	day    time.Time
	places []Place
}

func (l *look) enough() bool { return len(l.places) >= l.q.Copies }

// folder looks into one folder. One that is gone meanwhile, or cannot be opened, is
// none that mail is delivered to; the INBOX always is.
func (l *look) folder(f imapconn.Folder) error {
	sel, err := l.s.Examine(f.Wire)
	var no *imapconn.Error
	if errors.As(err, &no) && f.Wire != "INBOX" {
		if _, slow := imapconn.Throttled(err); !slow {
			return nil
		}
	}
	if err == nil && sel.Exists > 0 {
		err = l.open(f, sel)
	}
	if err != nil {
		return fmt.Errorf("folder %q: %w", f.Name, err)
	}
	return nil
}

// open looks into the folder that is open.
func (l *look) open(f imapconn.Folder, sel imapconn.Selected) error {
	uids, err := l.s.Since(l.day, "", "")
	if err != nil {
		return err
	}
	o := &opened{look: l, f: f, validity: sel.UIDValidity, key: key(l.acct, f.Wire, sel.UIDValidity), done: map[uint32]bool{}}
	likely, unknown := l.q.Memory.split(o.key, uids, l.q.ID)
	if err := o.compare(likely); err != nil || l.enough() {
		return err
	}
	if len(unknown) > searchFrom {
		likely, err := l.s.Since(l.day, "Received", l.q.ID)
		var no *imapconn.Error
		if err != nil && !errors.As(err, &no) {
			return err
		}
		if err := o.compare(likely); err != nil || l.enough() {
			return err
		}
	}
	for len(unknown) > 0 && !l.enough() {
		from := max(0, len(unknown)-fetchMost)
		if err := o.compare(unknown[from:]); err != nil {
			return err
		}
		unknown = unknown[:from]
	}
	return nil
}

// opened is a folder that is being looked into.
type opened struct {
	*look
	f        imapconn.Folder
	validity uint32
	key      string // in the Memory
	done     map[uint32]bool
}

// compare fetches the fields of messages that were not compared before. One that
// the server leaves out is asked for once more, and is gone when the server does
// not list it any longer.
func (o *opened) compare(uids []uint32) error {
	for try := 0; ; try++ {
		uids = slices.DeleteFunc(slices.Clone(uids), func(u uint32) bool { return o.done[u] })
		if len(uids) == 0 {
			return nil
		}
		if try == 2 {
			return fmt.Errorf("%w: UID %d", imapconn.ErrOmitted, uids[0])
		}
		if try > 0 {
			listed, err := o.s.Since(o.day, "", "")
			if err != nil {
				return err
			}
			uids = slices.DeleteFunc(uids, func(u uint32) bool { _, ok := slices.BinarySearch(listed, u); return !ok })
		}
		got, err := o.s.ReceivedFields(uids)
		if err != nil {
			return err
		}
		o.take(got)
	}
}

// take notes what messages carry.
func (o *opened) take(got map[uint32][]byte) {
	ids := make(map[uint32]string, len(got))
	for uid, fields := range got {
		ids[uid] = QueueID(fields)
		if ids[uid] == o.q.ID && !o.done[uid] {
			o.places = append(o.places, Place{Folder: o.f.Name, Validity: o.validity, UID: uid})
		}
		o.done[uid] = true
	}
	o.q.Memory.add(o.key, ids)
}

// Mark stands behind the host name in the Received fields that the relay writes.
const Mark = "(Crossfade)"

// QueueID gives the queue id of the topmost Received field that a relay of ours
// wrote, whatever its host name: "by HOST (Crossfade) ... id QUEUEID". Fields that
// servers behind it put on top are passed over. Empty when there is none.
func QueueID(header []byte) string {
	text := strings.ReplaceAll(string(header), "\r\n", "\n")
	for _, fold := range []string{"\n ", "\n\t"} {
		text = strings.ReplaceAll(text, fold, " ")
	}
	for line := range strings.SplitSeq(text, "\n") {
		name, value, ok := strings.Cut(line, ":")
		if !ok || !strings.EqualFold(strings.TrimSpace(name), "Received") {
			continue
		}
		words := strings.Fields(value)
		at := slices.Index(words, Mark)
		if at < 2 || !strings.EqualFold(words[at-2], "by") {
			continue
		}
		for i := at + 1; i+1 < len(words); i++ {
			if strings.EqualFold(words[i], "id") {
				return strings.TrimRight(words[i+1], ";")
			}
		}
	}
	return ""
}
