package queue

import (
	"fmt"
	"time"

	"crossfade/mail"
)

// Doubt says that a recipient may have the message already: it was being sent,
// between the permission for the final dot and the record of the reply, when
// the node died, the lease ran out or the connection ended (RFC 1047). The zero
// value is no doubt.
//
// A store sets it when a lease ends without a record after Renew(sending), and
// when an Outcome says so; it lasts over restarts, crashes and changes of the
// route until an outcome without Outcome.Doubt is recorded. Release is none.
type Doubt struct {
	Route mail.Route `json:"route"` // where the final dot may have gone
	At    time.Time  `json:"at"`    // nothing of it arrived before; whole milliseconds
	Since time.Time  `json:"since"` // when it came to be known
}

// IsZero tells whether there is no doubt.
func (d Doubt) IsZero() bool { return d.Route == "" }

// InDoubt tells whether the recipients of the lease are in doubt. A claim never
// mixes: all of a lease's items are, or none is.
func (l *Lease) InDoubt() bool { return len(l.Items) > 0 && !l.Items[0].Doubt.IsZero() }

// String gives the form in which both stores keep a doubt: "ROUTE AT SINCE", the
// times in Unix milliseconds; empty when there is none.
func (d Doubt) String() string {
	if d.IsZero() {
		return ""
	}
	return fmt.Sprintf("%s %d %d", d.Route, d.At.UnixMilli(), d.Since.UnixMilli())
}

// ParseDoubt reads what String writes. Of a text that cannot be read a doubt is
// left, about old and without a time: it must not be lost.
func ParseDoubt(s string) Doubt {
	if s == "" {
		return Doubt{}
	}
	var route string
	var at, since int64
	if n, _ := fmt.Sscanf(s, "%s %d %d", &route, &at, &since); n < 3 || !isRoute(mail.Route(route)) {
		return Doubt{Route: mail.Old, At: time.UnixMilli(0), Since: time.UnixMilli(0)}
	}
	return Doubt{Route: mail.Route(route), At: time.UnixMilli(at), Since: time.UnixMilli(since)}
}

// Again is the doubt of a delivery that was sent over a route, at a time or after
// it, which is known since now. An earlier doubt goes on in it: what that one is
// about may still appear.
func (d Doubt) Again(route mail.Route, at, now time.Time) Doubt {
	if !d.IsZero() && d.At.Before(at) {
		at = d.At
	}
	return Doubt{Route: route, At: at, Since: now}
}
