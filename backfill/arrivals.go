package backfill

// arrivals are the contents that were paired in this pass, as a multiset: what is
// gone from one folder and among them was moved and not deleted. Only what has the
// size of one of them is read to find out.
type arrivals struct {
	keys  map[key]int
	sizes map[int64]bool
}

// came is one of them that is kept until a pass over all folders.
type came struct {
	Loose key   `json:"loose"`
	Size  int64 `json:"size"`
}

// mostCame are kept of a folder; what was moved beside them counts as deleted.
const mostCame = 5000

func (f *folderRun) arrived(id identity) {
	c := came{id.Loose, id.Size}
	switch {
	case f.isAttic:
	case len(f.p.o.Only) > 0 && len(f.rec.Came) < mostCame:
		f.rec.Came = append(f.rec.Came, c)
	case f.p.again && f.p.deletes():
		f.p.arrive(c)
	}
}

func (p *pass) arrive(c came) {
	p.tally(func(*Report, *Progress) {
		if p.arrivals.keys == nil {
			p.arrivals = arrivals{map[key]int{}, map[int64]bool{}}
		}
		p.arrivals.keys[c.Loose]++
		p.arrivals.sizes[c.Size] = true
	})
}

// arriveEarlier takes what came in passes over single folders for what came in
// this one; forgetCame has it forgotten when this one is through.
func (p *pass) arriveEarlier() {
	for _, f := range p.every {
		for _, c := range f.rec.Came {
			p.arrive(c)
		}
	}
}

func (p *pass) forgetCame() error {
	for _, f := range p.every {
		if len(f.rec.Came) == 0 {
			continue
		}
		f.rec.Came = nil
		if err := f.save(); err != nil {
			return folderError(f, err)
		}
	}
	return nil
}
