package backfill

import (
	"fmt"
	"slices"

	"crossfade/backfill/imapconn"
)

// only leaves the folders that the pass is for.
func (p *pass) only(all []pairing) []pairing {
	if len(p.o.Only) == 0 {
		return all
	}
	return slices.DeleteFunc(all, func(pr pairing) bool { return !slices.Contains(p.o.Only, pr.src.Wire) })
}

// knownOnly gives the folders that the pass is for, and their places, when the
// ledger knows them all: they were copied before, so they have a place on the
// destination. Else it gives nil, and both sides have to be asked for their
// folders.
func (p *pass) knownOnly() ([]pairing, error) {
	if p.o.Final || p.dry {
		return nil, nil
	}
	var out []pairing
	for _, wire := range p.o.Only {
		rec, err := p.book.record(wire)
		if err != nil {
			return nil, err
		}
		if rec.Dest == "" || rec.SrcValidity == 0 || rec.DstValidity == 0 {
			return nil, nil
		}
		pr := pairing{src: imapconn.Folder{Wire: wire, Name: nameOf(wire)}, wire: rec.Dest, name: nameOf(rec.Dest), exists: true}
		if p.filter.omitsFolder(pr.src.Name) {
			return nil, nil
		}
		out = append(out, pr)
	}
	return out, nil
}

// nameOf is the name of a folder for people.
func nameOf(wire string) string {
	if name, err := imapconn.DecodeName(wire); err == nil {
		return name
	}
	return wire
}

// connectTo logs in to both sides and takes the folders as they are known. One
// that is gone from its place is an error of the pass; the next pass over all
// folders mends that.
func (p *pass) connectTo(known []pairing) (err error) {
	p.pairings, p.narrow = known, true
	if p.attic, err = openAttic(p); err != nil {
		return err
	}
	if err = p.login(); err == nil {
		p.dstReader = p.reader(p.job.Dest, nil)
	}
	return err
}

// lookAround asks the destination for its folders in a pass that has done without.
func (p *pass) lookAround(dst *imapconn.Session) (err error) {
	if !p.narrow {
		return nil
	}
	there, err := survey(dst, nil, false)
	if err != nil {
		return fmt.Errorf("list the folders: %w", err)
	}
	p.dstSide.side = there.side
	p.narrow = false
	return nil
}
