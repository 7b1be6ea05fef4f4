package backfill

import (
	"encoding/json"
	"fmt"
	"slices"
	"sync"
	"time"
)

// Point is how much of a mailbox was copied at one time, counted from the first
// pass on.
type Point struct {
	At       time.Time `json:"at"`
	Messages int       `json:"messages"` // appended
	Bytes    int64     `json:"bytes"`    // of them
}

const (
	historyName = "history" // of its record
	maxPoints   = 200
	chartEvery  = 10 * time.Second
)

// pointData is a Point in the ledger: milliseconds of Unix time, messages, octets.
type pointData [3]int64

// history gives the points of the passes so far.
func (b *book) history() ([]Point, error) {
	data := b.known(historyName)
	if len(data) == 0 {
		return nil, nil
	}
	var raw []pointData
	if err := json.Unmarshal(data, &raw); err != nil {
		return nil, fmt.Errorf("ledger of %s, history of the copy: %w (remove the record: nothing but a plot depends on it)", b.user, err)
	}
	out := make([]Point, len(raw))
	for i, d := range raw {
		out[i] = Point{At: time.UnixMilli(d[0]).UTC(), Messages: int(d[1]), Bytes: d[2]}
	}
	return out, nil
}

func encodeHistory(points []Point) ([]byte, error) {
	raw := make([]pointData, len(points))
	for i, p := range points {
		raw[i] = pointData{p.At.UnixMilli(), int64(p.Messages), p.Bytes}
	}
	return json.Marshal(raw)
}

// thin takes out the points that are nearest to their neighbours until there are
// few enough. The first and the last one stay.
func thin(points []Point, most int) []Point {
	for len(points) > most {
		at, least := 1, time.Duration(1<<63-1)
		for i := 1; i < len(points)-1; i++ {
			if d := points[i+1].At.Sub(points[i-1].At); d < least {
				at, least = i, d
			}
		}
		points = slices.Delete(points, at, at+1)
	}
	return points
}

// chart keeps the history of a copy. Nothing of the copy depends on it: what is
// wrong with it is logged.
type chart struct {
	mu     sync.Mutex
	began  time.Time // of the pass
	points []Point
	read   bool
	broken bool
	base   Point // at the end of the passes before
	last   time.Time
}

// mark notes what was copied so far, now and then, and at the end of a pass.
func (p *pass) mark(end bool) {
	h := &p.chart
	if p.o.Back || !h.mu.TryLock() {
		return // another lane does it
	}
	defer h.mu.Unlock()
	now := time.Now()
	if h.broken || !end && now.Sub(h.last) < chartEvery {
		return
	}
	h.last = now
	var copied int
	var octets int64
	p.tally(func(r *Report, _ *Progress) { copied, octets = r.Copied, r.Bytes })
	if copied == 0 || h.read && copied == h.points[len(h.points)-1].Messages-h.base.Messages {
		return
	}
	if err := h.write(p, Point{At: now, Messages: copied, Bytes: octets}); err != nil {
		h.broken = true
		p.log.Warn("the history of a copy is not kept", "user", p.job.User, "error", err)
	}
}

// write adds a point; its figures are those of this pass.
func (h *chart) write(p *pass, next Point) error {
	if !h.read {
		points, err := p.book.history()
		if err != nil {
			return err
		}
		if n := len(points); n > 0 {
			h.base = points[n-1]
		}
		// A line that is level until this pass began, not a slope from the last one.
		h.points, h.read = append(points, Point{At: h.began, Messages: h.base.Messages, Bytes: h.base.Bytes}), true
	}
	next.Messages += h.base.Messages
	next.Bytes += h.base.Bytes
	h.points = thin(append(h.points, next), maxPoints)
	data, err := encodeHistory(h.points)
	if err != nil {
		return err
	}
	return p.book.write(p.ctx, historyName, data)
}
