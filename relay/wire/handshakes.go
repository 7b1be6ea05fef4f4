package wire

import (
	"sync"
	"time"
)

// Counts are the handshakes that MaxHandshakes bounds. Listeners that share them
// share the limit.
type Counts struct {
	mu      sync.Mutex
	shaking chan struct{} // a token for each handshake under way
}

// beginHandshake takes one of limit places, and waits for one for a while.
func (n *Counts) beginHandshake(limit int, wait time.Duration) bool {
	if limit == noLimit {
		limit = 1 << 20
	}
	n.mu.Lock()
	if n.shaking == nil {
		n.shaking = make(chan struct{}, limit)
	}
	n.mu.Unlock()
	select {
	case n.shaking <- struct{}{}:
		return true
	default:
	}
	t := time.NewTimer(wait)
	defer t.Stop()
	select {
	case n.shaking <- struct{}{}:
		return true
	case <-t.C:
		return false
	}
}

func (n *Counts) endHandshake() { <-n.shaking }
