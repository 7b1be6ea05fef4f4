package backfill

import (
	"errors"
	"fmt"
	"slices"

	"crossfade/backfill/imapconn"
)

// createOther makes a folder whose name the destination refuses under another
// one. What is there with such a name already is it: a pass whose ledger was lost
// gave it, or it is as much this folder as any that has the same name.
func (f *folderRun) createOther(refused *imapconn.Error, err error) error {
	for _, name := range otherNames(f.name, f.p.dstSide.ns) {
		placed, perr := f.p.placed(f.src.Wire, name)
		if perr != nil {
			return perr
		}
		if placed {
			continue
		}
		wire := imapconn.EncodeName(name)
		if i := slices.IndexFunc(f.p.dstSide.folders, func(d imapconn.Folder) bool { return fold(d.Name) == fold(name) }); i >= 0 {
			d := f.p.dstSide.folders[i]
			if !d.Selectable() || inOthers(d, f.p.dstSide.ns) {
				continue
			}
			name, wire = d.Name, d.Wire
		} else {
			var e *imapconn.Error
			if cerr := f.lane.dst.Create(wire, f.use); errors.As(cerr, &e) {
				err = fmt.Errorf("%w (and %q: %w)", err, name, cerr)
				continue
			} else if cerr != nil {
				return cerr
			}
			f.p.dstSide.folders = append(f.p.dstSide.folders, imapconn.Folder{Name: name, Wire: wire})
		}
		f.p.problem(Problem{Folder: f.src.Name, Class: ClassName, Text: fmt.Sprintf("it is called %q on the destination, which refused %q: %s", name, f.name, refused.Text)})
		f.p.given = append(f.p.given, name)
		f.name, f.wire = name, wire
		return nil
	}
	return err
}

// placed tells whether a name on the destination is that of another folder of the
// source, in this pass or as the ledger knows it: two never become one.
func (p *pass) placed(src, name string) (bool, error) {
	same := func(other string) bool { return fold(other) == fold(name) }
	if slices.ContainsFunc(p.given, same) {
		return true, nil
	}
	for _, pr := range slices.Concat(p.pairings, p.outside) {
		if pr.src.Wire != src && same(pr.name) {
			return true, nil
		}
	}
	wires, dests, err := p.book.folders()
	if err != nil {
		return false, err
	}
	for i, wire := range dests {
		if wires[i] != src && same(nameOf(wire)) {
			return true, nil
		}
	}
	return false, nil
}
