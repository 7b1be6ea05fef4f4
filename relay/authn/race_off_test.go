//go:build !race

package authn

// mega is the size of large messages.
const mega = 50 << 20

// slowness is how much more time tests get.
const slowness = 3
