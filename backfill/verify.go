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
// as multisets of content keys. It takes nothing from the ledger but the places
// of the folders, and changes nothing. Messages that differ in what servers are
// known to alter count as matched and have a problem of the class "altered";
// the two copies of a message that our relay delivered to both sides are one.
func (c *Copier) Verify(ctx context.Context, job Job) (Verification, error) {
	v := Verification{User: job.User, At: time.Now().UTC()}
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
	for _, pr := range p.pairings {
		check, problems, err := p.verify(pr)
		if err != nil {
			return v, fmt.Errorf("verify %s: folder %q: %w", job.User, pr.src.Name, err)
		}
		v.Folders = append(v.Folders, check)
		v.Missing += len(check.Missing)
		v.Filtered += check.Filtered
		v.Wrapped += check.Wrapped
		v.Problems = append(v.Problems, problems...)
	}
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

// verify compares one folder.
func (p *pass) verify(pr pairing) (FolderCheck, []Problem, error) {
	check := FolderCheck{Source: pr.src.Name, Dest: pr.name}
	src, problems, filtered, err := p.identities(p.src, pr.src, p.c.Filter)
	if err != nil {
		return check, nil, fmt.Errorf("source: %w", err)
	}
	check.OnSource, check.Filtered = len(src), filtered
	for _, x := range problems {
		if x.Class == ClassUnreadable {
			check.Missing = append(check.Missing, x.UID)
		}
	}
	var dst []*incoming
	if pr.exists {
		if dst, _, _, err = p.identities(p.dstReader, imapconn.Folder{Name: pr.name, Wire: pr.wire}, Filter{}); err != nil {
			return check, nil, fmt.Errorf("destination: %w", err)
		}
	}
	check.OnDest = len(dst)
	match(src, dst, func(id identity) key { return id.Exact })
	match(src, dst, func(id identity) key { return id.Delivery })
	for _, m := range match(src, dst, func(id identity) key { return id.Loose }) {
		problems = append(problems, Problem{Folder: pr.src.Name, UID: m.meta.UID, Class: ClassAltered,
			Text: "the destination has it with other line ends or without NUL"})
	}
	rec, err := p.book.record(pr.src.Wire)
	if err != nil {
		return check, nil, err
	}
	for _, m := range src {
		switch {
		case m.done:
			check.Matched++
		case p.attic.shows(pr.src.Wire, m.id):
			check.Wrapped++
			x := Problem{Folder: pr.src.Name, UID: m.meta.UID, Class: ClassWrapped, Text: fmt.Sprintf("it is in %q as an attachment", p.attic.name())}
			if r := rec.Refused[m.meta.UID]; r != nil {
				x.Text += ": " + r.Text
			}
			problems = append(problems, x)
		default:
			check.Missing = append(check.Missing, m.meta.UID)
		}
	}
	slices.Sort(check.Missing)
	for _, uid := range check.Missing {
		if r := rec.Refused[uid]; r != nil {
			problems = append(problems, Problem{Folder: pr.src.Name, UID: uid, Class: ClassRefused, Text: r.Text})
		}
	}
	return check, problems, nil
}

// match marks messages with the same key on both sides, one by one, and gives
// those of the source that found one.
func match(src, dst []*incoming, by func(identity) key) []*incoming {
	free := map[key][]*incoming{}
	for _, d := range dst {
		if k := by(d.id); !d.done && k != (key{}) {
			free[k] = append(free[k], d)
		}
	}
	var found []*incoming
	for _, m := range src {
		k := by(m.id)
		if m.done || len(free[k]) == 0 {
			continue
		}
		free[k][0].done, m.done = true, true
		free[k] = free[k][1:]
		found = append(found, m)
	}
	return found
}

// identities reads a folder through, but for what the filter leaves out. What
// cannot be read is a problem.
func (p *pass) identities(r MailReader, f imapconn.Folder, filter Filter) (msgs []*incoming, problems []Problem, filtered int, err error) {
	if _, err := r.Select(f); err != nil {
		return nil, nil, 0, err
	}
	metas, _, err := r.ListAll(filter.items(imapconn.Items{Size: true}))
	if err != nil {
		return nil, nil, 0, err
	}
	uids := make([]uint32, 0, len(metas))
	for _, m := range metas {
		if filter.omits(m) {
			filtered++
			continue
		}
		uids = append(uids, m.UID)
	}
	if filtered > 0 {
		problems = append(problems, omitted(f.Name, filtered, false))
	}
	t := &fetcher{host: p.job.Host}
	failures, err := r.Fetch(uids, imapconn.Items{Body: true}, t)
	if err != nil {
		return nil, nil, 0, err
	}
	for _, x := range failures {
		switch {
		case x.Gone:
		case errors.Is(x.Err, imapconn.ErrOmitted):
			problems = append(problems, Problem{Folder: f.Name, UID: x.UID, Class: ClassUnreadable, Text: "it is listed, and the server has no message for it"})
		default:
			problems = append(problems, Problem{Folder: f.Name, UID: x.UID, Class: ClassUnreadable, Text: x.Err.Error()})
		}
	}
	slices.SortFunc(t.msgs, byUID)
	return t.msgs, problems, filtered, nil
}
