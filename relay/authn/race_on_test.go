//go:build race

package authn

// mega is the size of large messages.
const mega = 4 << 20

// slowness is how much more time tests get: the race detector makes hashing many times slower.
const slowness = 10
