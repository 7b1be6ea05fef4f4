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

// rightsEvery is how often the source is asked who may do what: rights change
// seldom, and each folder costs a round trip.
const rightsEvery = 24 * time.Hour

// granted is what the ledger knows of the rights on a folder.
type granted struct {
	At   int64    `json:"at"`             // when the source was asked, in seconds of Unix time
	Seen string   `json:"seen"`           // what it said
	Left []string `json:"left,omitempty"` // what was not carried over
}

// carryRights brings over what others may do with the folders (RFC 4314), where
// both servers tell and the login may ask. Rights are added and never taken, so
// that a change on the destination lasts. A final pass leaves them alone: somebody
// is held while it runs.
func (p *pass) carryRights(all []*folderRun) error {
	able := p.asksRights()
	src, _ := p.srcBox.(*imapMailbox)
	for _, f := range all {
		if f.unmade {
			continue
		}
		g := f.rec.Rights
		if able && (g == nil || time.Since(time.Unix(g.At, 0)) >= rightsEvery) {
			if err := f.carryRights(src); err != nil {
				return folderError(f, err)
			}
			g = f.rec.Rights
		}
		if g == nil {
			continue
		}
		for _, text := range g.Left {
			p.note(Problem{Folder: f.src.Name, Class: ClassACL, Text: text})
		}
	}
	return nil
}

// asksRights tells whether both servers can be asked who may do what, and are.
func (p *pass) asksRights() bool {
	if p.o.Back || p.sweeps() {
		return false
	}
	src, ok := p.srcBox.(*imapMailbox)
	return ok && src.Has("ACL") && p.dst.Has("ACL") && !p.o.Final && len(p.o.Only) == 0
}

func (f *folderRun) carryRights(src *imapMailbox) error {
	acl, err := src.ACL(f.src.Wire)
	var e *imapconn.Error
	if err != nil && !errors.As(err, &e) {
		return inside("source", err)
	}
	// A login that may not ask is told so in every folder: nothing can be said.
	slices.SortFunc(acl, func(a, b imapconn.Right) int { return cmp.Compare(a.Identifier, b.Identifier) })
	seen := fmt.Sprint(acl)
	now := &granted{At: time.Now().Unix(), Seen: seen}
	if was := f.rec.Rights; was != nil && was.Seen == seen {
		now.Left = was.Left
		acl = nil
	}
	for _, r := range acl {
		if f.p.own(r.Identifier) || r.Rights == "" {
			continue
		}
		if !f.p.colleague(r.Identifier) {
			now.Left = append(now.Left, fmt.Sprintf("%q has the rights %q on the source: that is no address of this domain, so they are not carried over", r.Identifier, r.Rights))
			continue
		}
		err := f.lane.dst.AddRights(f.wire, r)
		if err != nil && !errors.As(err, &e) {
			return inside("destination", err)
		}
		if err != nil {
			now.Left = append(now.Left, fmt.Sprintf("%q has the rights %q on the source, and not on the destination: %s", r.Identifier, r.Rights, e.Error()))
		}
	}
	f.rec.Rights = now
	return f.save()
}

// own tells whether an identifier is the owner of the mailbox, or the login that
// copies it.
func (p *pass) own(id string) bool {
	l := p.job.Source.Login
	user, _, _ := strings.Cut(l.User, "*") // of a master
	return slices.ContainsFunc([]string{p.job.User, l.User, user, l.Authz, "owner", "#owner"}, func(s string) bool { return strings.EqualFold(s, id) })
}

// colleague tells whether an identifier is an address in the domain of the user:
// that is one who has a mailbox on both sides, under one name.
func (p *pass) colleague(id string) bool {
	_, domain, ok := strings.Cut(id, "@")
	_, ours, _ := strings.Cut(p.job.User, "@")
	return ok && domain != "" && strings.EqualFold(domain, ours) && !strings.ContainsAny(id[:1], "-$#@")
}
