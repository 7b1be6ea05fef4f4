//go:build race

package storetest

import "time"

// slow says that the race detector makes everything ten times slower.
const slow = true

// shortLease is a lease that tests let run out. What a test does while it is
// good takes a few milliseconds; the machine may be busy.
const shortLease = 700 * time.Millisecond
