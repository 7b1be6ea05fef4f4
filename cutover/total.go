package cutover

import (
	"slices"
	"strings"
	"time"

	"crossfade/router"
)

// Total adds up the users who are not in sync yet: all of them, or those of a
// wave.
type Total struct {
	Wave    string `json:"wave,omitempty"`
	Users   int    `json:"users"`
	AtWork  int    `json:"at_work,omitempty"` // a pass runs
	Limited int    `json:"limited,omitempty"` // wait for a daily limit
	Paused  int    `json:"paused,omitempty"`
	Failed  int    `json:"failed,omitempty"` // are tried again later
	// Unknown are users of whom nobody knows yet how much is to copy, by address;
	// at most 20 are named. They are missing in all that follows.
	Unknown      int      `json:"unknown,omitempty"`
	UnknownUsers []string `json:"unknown_users,omitempty"`
	// The rest is that of the passes under way, and of first passes to come.
	Messages          int     `json:"messages"`
	MessagesDone      int     `json:"messages_done"`
	Bytes             int64   `json:"bytes"`
	BytesDone         int64   `json:"bytes_done"`
	MessagesPerSecond float64 `json:"messages_per_second,omitempty"`
	BytesPerSecond    float64 `json:"bytes_per_second,omitempty"`
	// ETA is when the last of them will be through, by how fast all are together
	// just now and by what daily limits allow each; zero when that cannot be said.
	ETA time.Time `json:"eta,omitzero"`
}

// mostNamed is how many users a Total names.
const mostNamed = 20

// Totals adds statuses up: over all, and by wave in the order in which waves are
// copied, when there is any.
func Totals(statuses []Status, now time.Time) (all Total, waves []Total) {
	by := map[string][]Status{}
	for _, s := range statuses {
		if s.State == router.StateSyncing && s.Phase != PhaseDone {
			by[s.Wave] = append(by[s.Wave], s)
		}
	}
	var every []Status
	for wave, of := range by {
		every = append(every, of...)
		waves = append(waves, total(wave, of, now))
	}
	slices.SortFunc(waves, func(a, b Total) int {
		if c := compareWaves(a.Wave, b.Wave); c != 0 {
			return c
		}
		return strings.Compare(a.Wave, b.Wave)
	})
	all = total("", every, now)
	if len(waves) == 1 && waves[0].Wave == "" {
		waves = nil
	}
	return all, waves
}

func total(wave string, statuses []Status, now time.Time) Total {
	t := Total{Wave: wave, Users: len(statuses)}
	var waits time.Duration // until the last one of them can be through
	for _, s := range statuses {
		if d := t.add(s, now); d > waits {
			waits = d
		}
	}
	slices.Sort(t.UnknownUsers)
	t.UnknownUsers = t.UnknownUsers[:min(len(t.UnknownUsers), mostNamed)]
	if left, ok := t.left(); ok && max(left, waits) < longestETA {
		t.ETA = now.Add(max(left, waits)).UTC().Truncate(time.Second)
	}
	return t
}

// add counts one user, and gives how long he takes at least.
func (t *Total) add(s Status, now time.Time) time.Duration {
	p := s.Progress
	switch {
	case s.Paused != "":
		t.Paused++
	case s.Phase == PhaseLimit:
		t.Limited++
	case s.Phase == PhaseFailed:
		t.Failed++
	case s.Phase != PhaseWaiting:
		t.AtWork++
		if p.MessagesDone < p.Messages {
			t.MessagesPerSecond += p.MessagesPerSecond
			t.BytesPerSecond += p.BytesPerSecond
		}
	}
	switch {
	case p.Messages > 0 || s.Phase == PhaseCopy && p.Folders > 0:
		t.Messages, t.MessagesDone = t.Messages+p.Messages, t.MessagesDone+p.MessagesDone
		t.Bytes, t.BytesDone = t.Bytes+max(p.Bytes, p.BytesDone), t.BytesDone+p.BytesDone
	case s.Messages > 0:
		t.Messages, t.Bytes = t.Messages+s.Messages, t.Bytes+s.Size
		return s.LimitWaits
	case s.Passes == 0 || s.Synced.IsZero():
		t.Unknown++
		t.UnknownUsers = append(t.UnknownUsers, s.User)
	}
	if s.ETA.IsZero() {
		return p.LimitWaits
	}
	return s.ETA.Sub(now)
}

// left gives how long the copying takes at the present speed of all. Octets say
// it better than messages, where they are known.
func (t *Total) left() (time.Duration, bool) {
	messages, octets := t.Messages-t.MessagesDone, t.Bytes-t.BytesDone
	var seconds float64
	switch {
	case messages <= 0:
		return 0, t.Users > 0 && t.Unknown == 0 && t.Messages > 0
	case octets > 0 && t.BytesPerSecond > 0:
		seconds = float64(octets) / t.BytesPerSecond
	case t.MessagesPerSecond > 0:
		seconds = float64(messages) / t.MessagesPerSecond
	case t.Limited > 0 && t.Limited+t.Paused == t.Users:
		return 0, true // nobody has anything to do but wait
	default:
		return 0, false
	}
	if seconds > longestETA.Seconds() {
		return 0, false
	}
	return time.Duration(seconds * float64(time.Second)), true
}
