//go:build race

package authn

// large and mega are sizes of messages.
const (
	large = 1 << 20
	mega  = 2 << 20
)

// slowness is how much more time tests get: the race detector makes hashing many times slower.
const slowness = 10
