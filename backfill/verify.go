package backfill

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"time"

	"crossfade/backfill/imapconn"
)

// Verify reads every message on both sides and compares them folder by folder,
// as multisets of content keys, and what is left of that over the whole mailbox:
// users move messages. It changes nothing, and takes nothing from the ledger but
// the places of the folders, the words of a server that refused a message, and,
// for Job.Settled, what was there once. Messages that differ in what servers are
// known to alter count as matched and have a problem of the class "altered"; the
// two copies of a message that our relay delivered to both sides are one.
func (c *Copier) Verify(ctx context.Context, job Job) (Verification, error) {
	began := time.Now()
	v := Verification{User: job.User, At: began.UTC()}
	p, err := c.start(ctx, job, Options{}, false)
	if err != nil {
		return v, fmt.Errorf("verify %s: %w", job.User, err)
	}
	defer p.close()
	if err := p.attic.inspect(); err != nil {
		return v, fmt.Errorf("verify %s: destination: folder %q: %w", job.User, p.attic.name(), err)
	}
	if err := p.verifyOutside(&v); err != nil {
		return v, fmt.Errorf("verify %s: source: %w", job.User, err)
	}
	s := &comparison{p: p, v: &v}
	for _, pr := range p.pairings {
		if err := s.folder(pr); err != nil {
			return v, fmt.Errorf("verify %s: folder %q: %w", job.User, pr.src.Name, err)
		}
	}
	if err := s.others(); err != nil {
		return v, fmt.Errorf("verify %s: %w", job.User, err)
	}
	s.judge()
	if err := p.verifyUnlisted(&v); err != nil {
		return v, fmt.Errorf("verify %s: %w", job.User, err)
	}
	v.Source, v.Dest = job.sourceName(), job.Dest.Server.Address
	if v.History, err = p.book.history(); err != nil {
		return v, err
	}
	v.Took = time.Since(began)
	return v, nil
}

// verifyOutside names the folders that the filter leaves out, and then has the
// source read.
func (p *pass) verifyOutside(v *Verification) error {
	stats, _, err := p.srcBox.Statuses(sourceWires(p.outside))
	if err != nil {
		return err
	}
	for _, pr := range p.outside {
		n := countOf(stats, pr)
		v.Filtered += max(n, 0)
		v.Folders = append(v.Folders, FolderCheck{Source: pr.src.Name, Filtered: max(n, 0)})
		v.Problems = append(v.Problems, omitted(pr.src.Name, n, true))
	}
	p.src = p.srcBox.NewReader()
	return nil
}

// verifyUnlisted names the folders that were copied once and that the source does
// not list any more: nobody compared what is in them.
func (p *pass) verifyUnlisted(v *Verification) error {
	listed := map[string]bool{}
	for _, pr := range slices.Concat(p.pairings, p.outside) {
		listed[pr.src.Wire] = true
	}
	unlisted, err := p.book.others(listed)
	if err != nil {
		return err
	}
	for _, wire := range unlisted {
		rec, err := p.book.record(wire)
		if err != nil {
			return err
		}
		if n := rec.Pairs.count(); n > 0 {
			v.Problems = append(v.Problems, Problem{Folder: nameOf(wire), Count: n, Class: ClassDeletions,
				Text: fmt.Sprintf("the folder is gone from the source: its %d messages, which were copied, are not compared", n)})
		}
	}
	return nil
}

// match marks messages with the same key on both sides, one by one, and gives
// those of the source that found one, each with what it found.
func match(src, dst []*incoming, by func(identity) key) (found, partners []*incoming) {
	return matchKeys(src, dst, by, by)
}

// matchMunged is match for what the destination's server munged: see
// identity.Munged.
func matchMunged(src, dst []*incoming) (found, partners []*incoming) {
	return matchKeys(src, dst, mungedKey, looseKey)
}

func matchKeys(src, dst []*incoming, bySrc, byDst func(identity) key) (found, partners []*incoming) {
	free := map[key][]*incoming{}
	for _, d := range dst {
		if k := byDst(d.id); !d.done && k != (key{}) {
			free[k] = append(free[k], d)
		}
	}
	for _, m := range src {
		k := bySrc(m.id)
		if m.done || len(free[k]) == 0 {
			continue
		}
		d := free[k][0]
		d.done, m.done = true, true
		free[k] = free[k][1:]
		found, partners = append(found, m), append(partners, d)
	}
	return found, partners
}

func exactKey(id identity) key    { return id.Exact }
func deliveryKey(id identity) key { return id.Delivery }
func looseKey(id identity) key    { return id.Loose }
func mungedKey(id identity) key   { return id.Munged }

// listing is a folder that was read through.
type listing struct {
	sel      imapconn.Selected
	msgs     []*incoming // UIDs ascending
	problems []Problem   // unreadable messages, and what the filter left out
	filtered int
}

// open gives the messages that found no partner.
func (l listing) open() (out []*incoming) {
	for _, m := range l.msgs {
		if !m.done {
			out = append(out, m)
		}
	}
	return out
}

// identities reads a folder through, but for what the filter leaves out. What
// cannot be read is a problem.
func (p *pass) identities(r MailReader, f imapconn.Folder, filter Filter) (l listing, err error) {
	if l.sel, err = r.Select(f); err != nil {
		return l, err
	}
	metas, _, err := r.ListAll(filter.items(imapconn.Items{Size: true}))
	if err != nil {
		return l, err
	}
	uids := make([]uint32, 0, len(metas))
	var octets int64
	for _, m := range metas {
		if filter.omits(m) {
			l.filtered++
			continue
		}
		uids = append(uids, m.UID)
		octets += m.Size
	}
	if r == p.src {
		if err := p.day.count(SideSource, octets); err != nil {
			return l, err
		}
	}
	if l.filtered > 0 {
		l.problems = append(l.problems, omitted(f.Name, l.filtered, false))
	}
	t := &fetcher{host: p.job.Host}
	failures, err := r.Fetch(uids, imapconn.Items{Body: true}, t)
	if err != nil {
		return l, err
	}
	for _, x := range failures {
		switch {
		case x.Gone:
		case errors.Is(x.Err, imapconn.ErrOmitted):
			l.problems = append(l.problems, Problem{Folder: f.Name, UID: x.UID, Class: ClassUnreadable, Text: "it is listed, and the server has no message for it"})
		default:
			l.problems = append(l.problems, Problem{Folder: f.Name, UID: x.UID, Class: ClassUnreadable, Text: x.Err.Error()})
		}
	}
	slices.SortFunc(t.msgs, byUID)
	l.msgs = t.msgs
	return l, nil
}
