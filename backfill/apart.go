package backfill

import (
	"encoding/json"
	"fmt"
	"slices"
	"sync"
)

// aparts are pairs of messages that lie in folders which are no counterparts of each
// other: a client moved one of them on the side that the user does not read. The
// reader's side keeps its order, and each of the two messages stays the other's:
// neither is copied. They have one record, with the sides as the job has them.
type aparts struct {
	p *pass

	mu   sync.Mutex // the lanes of a pass look here
	list []*apart
}

// apart has those of two folders.
type apart struct {
	Source      string `json:"source"` // names on the wire
	SrcValidity uint32 `json:"src_validity"`
	Dest        string `json:"dest"`
	DstValidity uint32 `json:"dst_validity"`
	Pairs       pairs  `json:"pairs"`
}

const apartName = "apart" // of the record

func (a *apart) inverted() *apart {
	return &apart{Source: a.Dest, SrcValidity: a.DstValidity, Dest: a.Source, DstValidity: a.SrcValidity, Pairs: a.Pairs.inverted()}
}

func openAparts(p *pass) (*aparts, error) {
	a := &aparts{p: p}
	data := p.book.known(apartName)
	if len(data) == 0 {
		return a, nil
	}
	if err := json.Unmarshal(data, &a.list); err != nil {
		return nil, fmt.Errorf("ledger of %s, record %q: %w (remove the record: what clients moved on the side that is not read is copied once more then)", p.book.user, apartName, err)
	}
	if p.o.Back {
		for i, x := range a.list {
			a.list[i] = x.inverted()
		}
	}
	return a, nil
}

// save writes the record; a.mu is held.
func (a *aparts) save() error {
	a.list = slices.DeleteFunc(a.list, func(x *apart) bool { return len(x.Pairs) == 0 })
	if len(a.list) == 0 && len(a.p.book.known(apartName)) == 0 {
		return nil
	}
	out := slices.Clone(a.list)
	if a.p.o.Back {
		for i, x := range out {
			out[i] = x.inverted()
		}
	}
	data, err := json.Marshal(out)
	if err != nil {
		return err
	}
	return a.p.book.write(a.p.ctx, apartName, data)
}

// sources gives the messages of a folder of the source that have theirs apart.
func (a *aparts) sources(wire string, validity uint32) map[uint32]bool {
	return a.ends(func(x *apart) pairs {
		if x.Source != wire || x.SrcValidity != validity {
			return nil
		}
		return x.Pairs.inverted()
	})
}

// dests gives the messages of a folder of the destination that are those.
func (a *aparts) dests(wire string, validity uint32) map[uint32]bool {
	return a.ends(func(x *apart) pairs {
		if x.Dest != wire || x.DstValidity != validity {
			return nil
		}
		return x.Pairs
	})
}

func (a *aparts) ends(of func(*apart) pairs) map[uint32]bool {
	if a == nil {
		return nil
	}
	a.mu.Lock()
	defer a.mu.Unlock()
	out := map[uint32]bool{}
	for _, x := range a.list {
		for uid := range of(x).dests() {
			out[uid] = true
		}
	}
	return out
}

// add notes two messages; what either had before is void.
func (a *aparts) add(from, to apart, src, dst uint32) error {
	a.mu.Lock()
	defer a.mu.Unlock()
	for _, x := range a.list {
		if x.Source == from.Source && x.SrcValidity == from.SrcValidity {
			x.Pairs.remove(src)
		}
		if x.Dest == to.Dest && x.DstValidity == to.DstValidity {
			if was, ok := x.Pairs.inverted().dest(dst); ok {
				x.Pairs.remove(was)
			}
		}
	}
	i := slices.IndexFunc(a.list, func(x *apart) bool {
		return x.Source == from.Source && x.SrcValidity == from.SrcValidity && x.Dest == to.Dest && x.DstValidity == to.DstValidity
	})
	if i < 0 {
		i = len(a.list)
		a.list = append(a.list, &apart{Source: from.Source, SrcValidity: from.SrcValidity, Dest: to.Dest, DstValidity: to.DstValidity})
	}
	a.list[i].Pairs.add(src, dst)
	return a.save()
}

// remove takes messages out of those of two folders.
func (a *aparts) remove(x *apart, srcs uidSet) error {
	a.mu.Lock()
	defer a.mu.Unlock()
	for _, u := range srcs {
		x.Pairs.remove(u)
	}
	return a.save()
}

// all gives the present list.
func (a *aparts) all() []*apart {
	a.mu.Lock()
	defer a.mu.Unlock()
	return slices.Clone(a.list)
}

// forget takes a message of the source out.
func (a *aparts) forget(wire string, validity, uid uint32) error {
	a.mu.Lock()
	defer a.mu.Unlock()
	found := false
	for _, x := range a.list {
		if x.Source == wire && x.SrcValidity == validity {
			if _, ok := x.Pairs.dest(uid); ok {
				x.Pairs.remove(uid)
				found = true
			}
		}
	}
	if !found {
		return nil
	}
	return a.save()
}
