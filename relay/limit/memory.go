package limit

import "time"

// failures are the recipients of a network that do not exist, less those of the
// messages that were taken from it. They fade with time.
type failures struct {
	n    float64
	last time.Time
}

// fade is how long it takes to forget as many as cut a connection, or a hundred
// where nothing does.
const fade = time.Hour

// now is what is left of them.
func (f failures) now(cutAfter int) float64 {
	if cutAfter <= 0 {
		cutAfter = 100
	}
	return max(0, f.n-float64(cutAfter)*float64(time.Since(f.last))/float64(fade))
}

// acquaintance is what is remembered of a network that sent good mail.
type acquaintance struct {
	n    float64 // messages, of which a half is forgotten each day
	last time.Time
}

// knownFor is how long a network is known after its last good message.
const knownFor = 7 * 24 * time.Hour

func (a acquaintance) now() float64 {
	days := int(time.Since(a.last).Hours() / 24)
	return a.n / float64(uint64(1)<<min(max(days, 0), 60))
}

// known tells whether a network sent good mail in the last days.
func (g *Guard) known(net []byte) bool {
	a, there := g.book.look(net)
	return there && time.Since(a.last) < knownFor
}
