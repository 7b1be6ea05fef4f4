package backfill

import "time"

// speedWindow is the time over which a rate is taken: long enough that batches do
// not show, short enough that a server that slows down does.
const speedWindow = 10 * time.Second

// speed is how fast a pass goes just now.
type speed struct{ seen []speedPoint }

type speedPoint struct {
	at       time.Time
	messages int
	bytes    int64
}

// note takes the present state of a pass and writes the rates into it.
func (s *speed) note(now time.Time, g *Progress) {
	s.seen = append(s.seen, speedPoint{now, g.MessagesDone, g.BytesDone})
	for len(s.seen) > 2 && now.Sub(s.seen[1].at) >= speedWindow {
		s.seen = s.seen[1:]
	}
	first := s.seen[0]
	span := now.Sub(first.at).Seconds()
	if span <= 0 {
		return
	}
	g.MessagesPerSecond = float64(g.MessagesDone-first.messages) / span
	g.BytesPerSecond = float64(g.BytesDone-first.bytes) / span
}

// Left gives how long the pass takes yet at its present speed; false when that
// cannot be told. It includes what daily limits make it wait.
func (g Progress) Left() (time.Duration, bool) {
	left := g.Messages - g.MessagesDone
	if left <= 0 || g.MessagesPerSecond <= 0 {
		return 0, false
	}
	seconds := float64(left)/g.MessagesPerSecond + g.LimitWaits.Seconds()
	if seconds > longestLook.Seconds() {
		return 0, false
	}
	return time.Duration(seconds * float64(time.Second)), true
}

// bytesLeft is what is to copy yet. Folders that were not listed yet count with
// the size of the messages so far.
func (g Progress) bytesLeft() int64 {
	left := max(g.Bytes-g.BytesDone, 0)
	if g.MessagesDone > 0 {
		left = max(left, int64(float64(g.BytesDone)/float64(g.MessagesDone)*float64(max(g.Messages-g.MessagesDone, 0))))
	}
	return left
}
