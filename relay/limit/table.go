package limit

import (
	"hash/maphash"
	"math/rand/v2"
	"sync"
)

// tableSize is how many subjects a table remembers. More than that many networks
// send to hardly any relay in the time that something is remembered; an attacker
// has more.
const tableSize = 1 << 15

// picks is how many subjects are looked at to find one that may be forgotten.
const picks = 8

// table remembers something about subjects: networks, domains, recipients. It
// keeps a keyed hash of each and not the subject itself, so that its size does
// not depend on what strangers write, and nobody can choose names that collide.
//
// A full table forgets, for a new subject, the one with the least weight of a
// few that are picked at random. So a flood of new subjects, each with little
// weight, pushes out itself. To have a heavy one forgotten, all of the picks must
// be as heavy: somebody who fills half of the table with subjects of that weight
// has a chance of one in 256 for each further one, and then it is any of 16,384.
type table[E any] struct {
	seed   maphash.Seed
	size   int
	weight func(E) float64 // how much would be lost

	mu      sync.Mutex
	at      map[uint64]int32 // key -> place
	keys    []uint64
	entries []E
}

func newTable[E any](size int, weight func(E) float64) *table[E] {
	return &table[E]{seed: maphash.MakeSeed(), size: size, weight: weight, at: make(map[uint64]int32)}
}

// with calls f for what is remembered of a subject, the zero value at first, and
// remembers what f returns. f runs with the table's lock held.
func (t *table[E]) with(subject []byte, f func(E) E) {
	key := maphash.Bytes(t.seed, subject)
	t.mu.Lock()
	defer t.mu.Unlock()
	if i, there := t.at[key]; there {
		t.entries[i] = f(t.entries[i])
		return
	}
	var none E
	t.put(key, f(none))
}

// look returns what is remembered of a subject, and takes no room for one that
// is new.
func (t *table[E]) look(subject []byte) (e E, there bool) {
	key := maphash.Bytes(t.seed, subject)
	t.mu.Lock()
	defer t.mu.Unlock()
	i, there := t.at[key]
	if there {
		e = t.entries[i]
	}
	return e, there
}

// peek calls f for what is remembered of a subject, if anything is, with the
// table's lock held.
func (t *table[E]) peek(subject []byte, f func(E)) {
	key := maphash.Bytes(t.seed, subject)
	t.mu.Lock()
	defer t.mu.Unlock()
	if i, there := t.at[key]; there {
		f(t.entries[i])
	}
}

func (t *table[E]) put(key uint64, e E) {
	if len(t.keys) < t.size {
		t.at[key] = int32(len(t.keys))
		t.keys, t.entries = append(t.keys, key), append(t.entries, e)
		return
	}
	i := t.lightest()
	delete(t.at, t.keys[i])
	t.at[key] = int32(i)
	t.keys[i], t.entries[i] = key, e
}

// lightest is the place of the subject to be forgotten.
func (t *table[E]) lightest() int {
	best := rand.IntN(len(t.keys))
	least := t.weight(t.entries[best])
	for range picks - 1 {
		i := rand.IntN(len(t.keys))
		if w := t.weight(t.entries[i]); w < least {
			best, least = i, w
		}
	}
	return best
}

// len is the number of subjects.
func (t *table[E]) len() int {
	t.mu.Lock()
	defer t.mu.Unlock()
	return len(t.keys)
}
