//go:build unix

package backfill

import "golang.org/x/sys/unix"

// newSlab gets memory from the system, or from the heap when it has none.
func newSlab() []byte {
	b, err := unix.Mmap(-1, 0, slabSize, unix.PROT_READ|unix.PROT_WRITE, unix.MAP_ANON|unix.MAP_PRIVATE)
	if err != nil {
		return make([]byte, slabSize)
	}
	return b
}

// freeSlab gives it back; one of the heap is not known to Munmap, and collected.
func freeSlab(b []byte) { _ = unix.Munmap(b) }
