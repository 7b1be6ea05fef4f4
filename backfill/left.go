package backfill

// uncarried counts what a sweep saw and did not carry. err is how it ended.
func (p *pass) uncarried(err error) int {
	if !p.sweeps() {
		return 0
	}
	n := 0
	for _, x := range p.report.Problems {
		if x.Class == ClassRefused || x.Class == ClassUnreadable {
			n += max(x.Count, 1)
		}
	}
	if err == nil {
		return n
	}
	for _, f := range p.every {
		n += f.uncarried()
	}
	return n
}

// uncarried counts the messages of a folder that looked new to a sweep, are not on the
// other side and are in no problem.
func (f *folderRun) uncarried() (n int) {
	if f.fresh == nil {
		return 0
	}
	apart := f.p.apart.sources(f.src.Wire, f.fresh.sel.UIDValidity)
	for _, m := range f.fresh.metas {
		_, paired := f.rec.Pairs.dest(m.UID)
		_, unread := f.rec.Unread[m.UID]
		if !paired && !unread && !apart[m.UID] && !f.rec.Known.has(m.UID) && f.rec.Refused[m.UID] == nil {
			n++
		}
	}
	return n
}
