package cutover

import (
	"time"

	"crossfade/backfill"
	"crossfade/router"
)

// Phase is what the conductor does for a user just now.
type Phase string

// The phases, in order.
const (
	PhaseWaiting Phase = "waiting" // for a free place, its wave or its time
	PhaseCopy    Phase = "copy"    // backfill passes
	PhaseReady   Phase = "ready"   // in sync, waiting for the word
	PhaseDrain   Phase = "drain"   // held; deliveries under the old epoch end
	PhaseFinal   Phase = "final"   // held; the last difference is copied
	PhaseFlip    Phase = "flip"    // held; verified, being set to new, or to old by a rollback
	PhaseDone    Phase = "done"
	PhaseLimit   Phase = "limit"  // a daily limit is used up, see Limit; goes on at Next
	PhaseFailed  Phase = "failed" // see Err; tried again at Next when that is set
)

// Request asks for a user to be moved.
type Request struct {
	User   string // address
	By     string // who asks, for the history
	Reason string
	// Sync stops at ready; otherwise the user goes all the way to new.
	Sync bool
	// AllowDeletions lifts the ceiling on deletions, and RetryRefused offers the
	// messages again that new refused: for the next pass that ends well, see
	// [backfill.Options]. The first ends a day after it was said, whatever passes do.
	AllowDeletions, RetryRefused bool
	// At is when it was asked; Start fills it in.
	At time.Time
	// Mirror keeps old current for this user after his flip; see Config.Mirror.
	Mirror bool
	// Rollback takes the user back to old instead; Epoch is that of the user when
	// it was asked for. Both are [Conductor.Rollback]'s.
	Rollback bool
	Epoch    uint64
}

// Status is where the conductor stands with one user.
type Status struct {
	User     string             `json:"user"`
	Node     string             `json:"node,omitempty"` // works on him; empty: none does just now, or there is but one
	State    router.State       `json:"state"`
	Phase    Phase              `json:"phase"`
	Progress backfill.Progress  `json:"progress"`
	Passes   int                `json:"passes"`
	Copied   int                `json:"copied"`
	Bytes    int64              `json:"bytes"`
	Problems []backfill.Problem `json:"problems,omitempty"`
	// Classes count what has a problem, by its class, where Problems is cut short
	// too.
	Classes map[string]int `json:"classes,omitempty"`
	// Throttled is how long passes waited because a server wanted it.
	Throttled time.Duration `json:"throttled_ns,omitempty"`
	// Synced is when the last pass began that ended without an error: what reached
	// old before it is on new. While old is watched, a later time says that nothing
	// came since.
	Synced   time.Time     `json:"synced,omitzero"`
	HoldTime time.Duration `json:"hold_ns,omitempty"` // of the last flip, from held to released
	Err      string        `json:"error,omitempty"`
	Attempts int           `json:"attempts,omitempty"` // failed since the last one that went well
	Failures int           `json:"failures,omitempty"` // failed since the beginning
	Started  time.Time     `json:"started"`
	Updated  time.Time     `json:"updated"`
	Next     time.Time     `json:"next,omitzero"`
	Flip     bool          `json:"flip"` // asked to go on to new
	// Rollback: asked to go back to old.
	Rollback bool `json:"rollback,omitempty"`
	// ETA is when the pass under way will be through, by how fast it was so far;
	// zero when that cannot be said.
	ETA time.Time `json:"eta,omitzero"`
	// Wave is the user's, as read last.
	Wave string `json:"wave,omitempty"`
	// Limit says whose daily limit the user waits for. It is no error.
	Limit string `json:"limit,omitempty"`
	// Size and Messages are what is to copy for a user who waits for his first pass,
	// and LimitWaits how long daily limits make that wait; zero when nobody looked.
	Size       int64         `json:"size_bytes,omitempty"`
	Messages   int           `json:"messages,omitempty"`
	LimitWaits time.Duration `json:"limit_waits_ns,omitempty"`
	// Sweep is how the mailbox does that the user does not read; nil: nobody looked.
	Sweep *Sweep `json:"sweep,omitempty"`
	// Paused says who paused the copying for this user, and why.
	Paused string `json:"paused,omitempty"`
}

// Active tells whether the conductor still works on the user.
func (s Status) Active() bool {
	return s.Phase != PhaseDone && s.Phase != PhaseFailed && s.Phase != PhaseReady
}

// quiet tells whether there is nothing to say of a user who is old: nobody moves
// him, and nothing was found on new.
func (s Status) quiet() bool {
	return s.State == router.StateOld && s.Phase == PhaseDone && s.Passes == 0 &&
		(s.Sweep == nil || s.Sweep.Err == "" && s.Sweep.New.Count == 0 && s.Sweep.Old.Count == 0)
}

// classes counts problems.
func classes(problems []backfill.Problem) map[string]int {
	if len(problems) == 0 {
		return nil
	}
	out := map[string]int{}
	for _, p := range problems {
		out[p.Class] += max(p.Count, 1)
	}
	return out
}

// unseen gives the problems that are not among those of before. A server's words
// do not count: Dovecot puts into them how long the command took.
func unseen(now, before []backfill.Problem) (out []backfill.Problem) {
	known := make(map[backfill.Problem]bool, len(before))
	for _, p := range before {
		p.Text = wordsOf(p)
		known[p] = true
	}
	for _, p := range now {
		same := p
		if same.Text = wordsOf(p); !known[same] {
			out = append(out, p)
		}
	}
	return out
}

// wordsOf is the text of a problem when nothing else tells what it is about.
func wordsOf(p backfill.Problem) string {
	if p.UID != 0 || p.UIDs != "" {
		return ""
	}
	return p.Text
}
