package admin

import (
	"encoding/json"
	"sync"
	"time"

	"crossfade/backfill"
	"crossfade/cutover"
)

// The kinds of event that are published now; more may come.
const (
	EventUser    = "user"    // data is a router.Change
	EventCutover = "cutover" // data is a cutover.Status
	EventBackend = "backend" // data is a BackendStatus
	EventWave    = "wave"    // data is a cutover.Pause (a wave stopped by itself) or a cutover.Wave
	EventPass    = "pass"    // data is a PassEvent
	EventProblem = "problem" // data is a ProblemEvent
	EventDoubt   = "doubt"   // data is a relay.DeliverDoubt: how a doubt about a delivery ended
	EventStray   = "stray"   // data is a cutover.Stray
	EventReload  = "reload"  // data is empty; the daemon publishes it, SIGHUP reloads too
)

// PassEvent is a pass of the backfill that did something or failed.
type PassEvent struct {
	User      string         `json:"user"`
	Folders   int            `json:"folders"`
	Messages  int            `json:"messages" doc:"On the source."`
	Copied    int            `json:"copied"`
	Adopted   int            `json:"adopted,omitempty"`
	Flagged   int            `json:"flagged,omitempty"`
	Bytes     int64          `json:"bytes"`
	Took      time.Duration  `json:"took_ns"`
	Throttled time.Duration  `json:"throttled_ns,omitempty"`
	Problems  map[string]int `json:"problems,omitempty" doc:"New ones, by class."`
	Error     string         `json:"error,omitempty"`
	Back      bool           `json:"back,omitempty" doc:"From new to old; else from old to new."`
}

// ProblemEvent is a message, a folder or a flag that could not be carried over,
// told when it is first met.
type ProblemEvent struct {
	User string `json:"user"`
	backfill.Problem
}

// problemsTold bounds the events of one pass: a mailbox may have thousands, and a
// listener gets no more than the hub keeps.
const problemsTold = 20

// Passed publishes the end of a pass and the problems that it met for the first
// time, at most 20 of them: the pass has the count of all. A pass that found
// nothing to do is no event.
func (h *Events) Passed(p cutover.Passed) {
	r := p.Report
	if p.Err == nil && r.Copied+r.Adopted+r.Flagged == 0 && len(p.New) == 0 {
		return
	}
	e := PassEvent{User: p.User, Folders: r.Folders, Messages: r.Messages, Copied: r.Copied, Adopted: r.Adopted, Flagged: r.Flagged,
		Bytes: r.Bytes, Took: r.Took, Throttled: r.Throttled, Problems: map[string]int{}, Back: p.Back}
	for i, x := range p.New {
		e.Problems[x.Class] += max(x.Count, 1)
		if i < problemsTold {
			h.Publish(EventProblem, ProblemEvent{User: p.User, Problem: x})
		}
	}
	if p.Err != nil {
		e.Error = p.Err.Error()
	}
	h.Publish(EventPass, e)
}

// Event is something that happened. IDs grow by one and start anew with the
// process.
type Event struct {
	ID   uint64          `json:"id"`
	Kind string          `json:"kind"`
	Time time.Time       `json:"time"`
	Data json.RawMessage `json:"data"`
}

// Sizes of the hub.
const (
	eventsKept    = 512 // for a listener that comes back
	eventsWaiting = 256 // for a listener that is slow; beyond it, he is cut off
)

// Events is where parts of the relay tell what happened and the API's event
// streams listen. The zero value is ready for use; a nil *Events drops all.
type Events struct {
	mu        sync.Mutex
	last      uint64
	kept      []Event // the newest eventsKept
	listeners map[*listener]struct{}
}

// listener is one event stream. Its channel is closed when it is too slow.
type listener struct{ ch chan Event }

// Publish tells every listener. It never waits; a listener that does not keep
// up is cut off, and comes back with the id that he saw last.
func (h *Events) Publish(kind string, data any) {
	if h == nil {
		return
	}
	raw, err := json.Marshal(data)
	if err != nil { // a programmer's mistake: an event is no reason to stop
		raw, _ = json.Marshal(map[string]string{"error": err.Error()})
	}
	h.mu.Lock()
	defer h.mu.Unlock()
	h.last++
	e := Event{ID: h.last, Kind: kind, Time: time.Now(), Data: raw}
	if len(h.kept) >= eventsKept {
		h.kept = append(h.kept[:0], h.kept[1:]...)
	}
	h.kept = append(h.kept, e)
	for l := range h.listeners {
		select {
		case l.ch <- e:
		default:
			delete(h.listeners, l)
			close(l.ch)
		}
	}
}

// listen adds a listener. missed are the events after the id since that are
// still kept; since 0 asks for none.
func (h *Events) listen(since uint64) (l *listener, missed []Event) {
	h.mu.Lock()
	defer h.mu.Unlock()
	if since > 0 && since <= h.last {
		for _, e := range h.kept {
			if e.ID > since {
				missed = append(missed, e)
			}
		}
	}
	l = &listener{ch: make(chan Event, eventsWaiting)}
	if h.listeners == nil {
		h.listeners = map[*listener]struct{}{}
	}
	h.listeners[l] = struct{}{}
	return l, missed
}

func (h *Events) leave(l *listener) {
	h.mu.Lock()
	defer h.mu.Unlock()
	delete(h.listeners, l)
}
