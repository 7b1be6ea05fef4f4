//go:build !race

package authn

// large and mega are sizes of messages.
const (
	large = 10 << 20
	mega  = 50 << 20
)

// slowness is how much more time tests get.
const slowness = 3
