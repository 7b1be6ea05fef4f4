package disk

import (
	"time"

	"crossfade/mail"
	"crossfade/queue"
)

// lane is where a recipient is filed: under one of the three routes, or under
// what it waits for. The numbers are stored; schema.go explains them to people.
type lane int64

const (
	laneNone lane = iota
	laneOld
	laneNew
	laneOut
	laneHeld   // by its user's state
	laneOpHeld // by an operator
	laneParked
	laneCount // how many there are
)

func laneOf(r mail.Route) lane {
	switch r {
	case mail.Old:
		return laneOld
	case mail.New:
		return laneNew
	case mail.Out:
		return laneOut
	}
	return laneNone
}

// route is the opposite of laneOf; empty for what is no route.
func (l lane) route() mail.Route {
	switch l {
	case laneOld:
		return mail.Old
	case laneNew:
		return mail.New
	case laneOut:
		return mail.Out
	}
	return ""
}

func (l lane) isRoute() bool { return l >= laneOld && l <= laneOut }

// state gives a recipient's state and who holds it.
func (l lane) state() (queue.State, string) {
	switch l {
	case laneHeld:
		return queue.Held, "user"
	case laneOpHeld:
		return queue.Held, "operator"
	case laneParked:
		return queue.Parked, ""
	}
	return queue.Queued, ""
}

// row is one recipient as it stands in the database.
type row struct {
	id       mail.ID
	n        int
	lane     lane // where it is filed; place says where it belongs
	user     string
	addr     string // only where it differs from user
	hint     lane   // for a user in no table
	fixed    lane   // of a copy, or forced; 0: by the user
	copy     bool
	due      int64 // Unix milliseconds; 0: never left memory since it was put
	gen      uint64
	attempts int
	crashes  int
	since    int64 // Unix milliseconds
	noticed  bool
	unknown  uint8 // bit 1<<lane for each side that does not know the user
	reply    string
	doubt    *queue.Doubt // nil: none; never changed in place
}

// place says where a recipient belongs now, by its user's present state. An
// operator's hold and a parked recipient stay where they are.
func place(r *row, u *ustate) lane {
	if r.lane == laneOpHeld || r.lane == laneParked {
		return r.lane
	}
	return wayOf(r, u)
}

// wayOf is place without an operator's word: held by the user, or the route.
func wayOf(r *row, u *ustate) lane {
	l, held := u.way()
	switch {
	case held:
		return laneHeld
	case r.copy:
		return r.fixed
	case r.fixed != laneNone && r.gen == u.generation():
		return r.fixed
	case l != laneNone:
		return l
	case r.hint != laneNone:
		return r.hint
	case r.user == "":
		return laneOut
	}
	return laneOld
}

// fresh forgets what belonged to an earlier route of the user (queue.Item): a
// row of another generation starts again.
func (r *row) fresh(u *ustate) {
	gen := u.generation()
	if r.gen == gen {
		return
	}
	r.gen, r.attempts, r.unknown = gen, 0, 0
	if !r.copy {
		r.fixed = laneNone
	}
	if t := u.since(); t > r.since {
		r.since = t
	}
}

// unknownRoutes spells the bits out.
func (r *row) unknownRoutes() []mail.Route {
	var out []mail.Route
	for l := laneOld; l <= laneOut; l++ {
		if r.unknown&(1<<l) != 0 {
			out = append(out, l.route())
		}
	}
	return out
}

func millis(t time.Time) int64 {
	if t.IsZero() {
		return 0
	}
	return t.UnixMilli()
}

func fromMillis(ms int64) time.Time {
	if ms == 0 {
		return time.Time{}
	}
	return time.UnixMilli(ms)
}
