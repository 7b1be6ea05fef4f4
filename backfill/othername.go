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
		d, oerr := f.otherFolder(name)
		var e *imapconn.Error
		switch {
		case errors.Is(oerr, errPlaced):
			continue
		case errors.As(oerr, &e):
			err = fmt.Errorf("%w (and %q: %w)", err, name, oerr)
			continue
		case oerr != nil:
			return oerr
		}
		f.p.problem(Problem{Folder: f.src.Name, Class: ClassName, Text: fmt.Sprintf("it is called %q on the destination, which refused %q: %s", d.Name, f.name, refused.Text)})
		f.p.given = append(f.p.given, d.Name)
		f.name, f.wire = d.Name, d.Wire
		return nil
	}
	return err
}

var errPlaced = errors.New("the name is another folder's")

// otherFolder gives the folder of the destination with a name, and makes it when it
// is not there.
func (f *folderRun) otherFolder(name string) (d imapconn.Folder, err error) {
	if placed, err := f.p.placed(f.src.Wire, name); err != nil {
		return d, err
	} else if placed {
		return d, errPlaced
	}
	there := f.p.dstSide.folders
	if i := slices.IndexFunc(there, func(d imapconn.Folder) bool { return fold(d.Name) == fold(name) }); i >= 0 {
		if d = there[i]; !d.Selectable() || inOthers(d, f.p.dstSide.ns) {
			err = errPlaced
		}
		return d, err
	}
	d = imapconn.Folder{Name: name, Wire: imapconn.EncodeName(name)}
	if err = f.lane.dst.Create(d.Wire, f.use); err == nil {
		f.p.dstSide.folders = append(there, d)
	}
	return d, err
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
