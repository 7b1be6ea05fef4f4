//go:build !race

package storetest

// slow says that the race detector makes everything ten times slower.
const slow = false
