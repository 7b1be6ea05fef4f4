//go:build !unix

package backfill

func newSlab() []byte { return make([]byte, slabSize) }

func freeSlab([]byte) {}
