package backfill

import "sync"

const (
	pageSize = 64 << 10
	slabSize = 1 << 20
	// keptSlabs stay when nothing is in memory: small passes need no more.
	keptSlabs = 2
)

// pages is the memory of messages on their way, in pages of one size that are
// used again and again. It does not lie in the heap where the system allows that:
// the collector would let garbage grow to as much again beside it. nil is the
// heap.
type pages struct {
	mu    sync.Mutex
	slabs [][]byte
	free  [][]byte
	used  int
}

func (p *pages) get() []byte {
	if p == nil {
		return make([]byte, pageSize)
	}
	p.mu.Lock()
	defer p.mu.Unlock()
	if len(p.free) == 0 {
		slab := newSlab()
		p.slabs = append(p.slabs, slab)
		p.cut(slab)
	}
	page := p.free[len(p.free)-1]
	p.free = p.free[:len(p.free)-1]
	p.used++
	return page
}

// cut makes pages of a slab.
func (p *pages) cut(slab []byte) {
	for at := 0; at < len(slab); at += pageSize {
		p.free = append(p.free, slab[at:at+pageSize:at+pageSize])
	}
}

// put takes pages back: nobody reads them any more. When the last one is back,
// most of the memory goes to the system.
func (p *pages) put(list [][]byte) {
	if p == nil || len(list) == 0 {
		return
	}
	p.mu.Lock()
	defer p.mu.Unlock()
	p.used -= len(list)
	p.free = append(p.free, list...)
	if p.used > 0 || len(p.slabs) <= keptSlabs {
		return
	}
	for _, slab := range p.slabs[keptSlabs:] {
		freeSlab(slab)
	}
	p.slabs, p.free = p.slabs[:keptSlabs:keptSlabs], nil
	for _, slab := range p.slabs {
		p.cut(slab)
	}
}

// arena holds the messages of a batch one behind the other.
type arena struct {
	from *pages
	list [][]byte
	size int64
}

func (a *arena) write(p []byte) {
	for len(p) > 0 {
		at := int(a.size % pageSize)
		if at == 0 {
			a.list = append(a.list, a.from.get())
		}
		n := copy(a.list[len(a.list)-1][at:], p)
		a.size += int64(n)
		p = p[n:]
	}
}

// read fills p from off on; so much has to be there.
func (a *arena) read(p []byte, off int64) {
	for len(p) > 0 {
		n := copy(p, a.list[off/pageSize][off%pageSize:])
		off += int64(n)
		p = p[n:]
	}
}

// cut forgets what lies behind the first size octets.
func (a *arena) cut(size int64) {
	keep := int((size + pageSize - 1) / pageSize)
	a.from.put(a.list[keep:])
	clear(a.list[keep:])
	a.list, a.size = a.list[:keep], size
}
