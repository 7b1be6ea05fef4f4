package faults

import (
	"cmp"
	"fmt"
	"maps"
	"slices"
	"strconv"
	"strings"
	"sync"
	"time"

	"crossfade/mail"
	"crossfade/queue"
	"crossfade/router"
	"crossfade/store/storetest"
)

// event is a step that a node noted. Its text form is one line:
//
//	UNIXNANO WHAT ID N USER REST
//
// with "-" for what a kind of event lacks.
type event struct {
	at   time.Time
	who  string // the life of a node
	what string
	id   mail.ID
	n    int
	user string
	rest string
}

// The kinds of event.
const (
	evOffer   = "offer"   // before a Put of n recipients
	evAck     = "ack"     // it returned nil
	evFull    = "full"    // it returned ErrFull
	evRefused = "refused" // it returned another error; rest says which
	evAllow   = "allow"   // Renew allowed the final dot
	evDot     = "dot"     // the final dot; rest is the route
	evSettled = "settled" // Settle of done returned nil
	evFail    = "fail"    // before a Settle that fails the recipient; rest is the bounce
	evAltered = "altered" // the body is not what was put; rest says how
	evIn      = "in"      // a user is in the state rest, for certain
	evLeaving = "leaving" // and now he may be in another
	evUp      = "up"      // a node opened the store
)

func (e event) line() string {
	dash := func(s string) string { return cmp.Or(s, "-") }
	return fmt.Sprintf("%d %s %s %d %s %s\n", e.at.UnixNano(), e.what, dash(string(e.id)), e.n, dash(e.user), dash(e.rest))
}

func readEvent(line string) (event, error) {
	f := strings.SplitN(strings.TrimSpace(line), " ", 6)
	if len(f) != 6 {
		return event{}, fmt.Errorf("event %q", line)
	}
	ns, err := strconv.ParseInt(f[0], 10, 64)
	if err != nil {
		return event{}, fmt.Errorf("event %q: %w", line, err)
	}
	n, err := strconv.Atoi(f[3])
	if err != nil {
		return event{}, fmt.Errorf("event %q: %w", line, err)
	}
	bare := func(s string) string {
		if s == "-" {
			return ""
		}
		return s
	}
	return event{at: time.Unix(0, ns), what: f[1], id: mail.ID(bare(f[2])), n: n, user: bare(f[4]), rest: bare(f[5])}, nil
}

// fault is a time in which something was broken. who is the life of the node
// it hit; empty: everybody.
type fault struct {
	from, to time.Time
	who      string
	what     string
}

// account is all that was noted in a run.
type account struct {
	mu     sync.Mutex
	events []event
	faults []fault
	counts map[string]int
}

func newAccount() *account { return &account{counts: map[string]int{}} }

func (a *account) note(e event) {
	a.mu.Lock()
	defer a.mu.Unlock()
	a.events = append(a.events, e)
	a.counts[e.what]++
}

// count says how many events of a kind there are so far.
func (a *account) count(what string) int {
	a.mu.Lock()
	defer a.mu.Unlock()
	return a.counts[what]
}

// fault notes one that lasted from a time until now.
func (a *account) fault(who, what string, from time.Time) {
	a.mu.Lock()
	defer a.mu.Unlock()
	a.faults = append(a.faults, fault{from, time.Now(), who, what})
}

type rcpt struct {
	id mail.ID
	n  int
}

// delivery is what one life of a node did with one recipient.
type delivery struct {
	who           string
	allow, settle time.Time // settle is zero when it was never recorded
	dots          int
}

// verdict is what a run comes to.
type verdict struct {
	storetest.Report
	left      int
	refused   int
	why       map[string]int // explained duplicates, by their explanation
	altered   []string
	wrongSide []string
	forgotten []string // user states that were acknowledged and are others
}

func (v *verdict) bad() []string {
	out := slices.Clone(v.altered)
	for _, list := range []struct {
		what string
		all  []string
	}{{"lost", v.Lost}, {"unexpected", v.Unexpected}, {"twice", v.Duplicates}, {"wrong side", v.wrongSide}, {"forgotten", v.forgotten}} {
		for _, s := range list.all {
			out = append(out, list.what+": "+s)
		}
	}
	return out
}

// judge compares what was noted with what is left in the queue. lease is how
// long leases last.
func (a *account) judge(left []queue.Entry, lease time.Duration) (*verdict, error) {
	a.mu.Lock()
	defer a.mu.Unlock()
	slices.SortStableFunc(a.events, func(x, y event) int { return x.at.Compare(y.at) })
	v := &verdict{left: len(left), why: map[string]int{}}
	c := storetest.NewChecker()
	for _, e := range a.events {
		text := ""
		switch e.what {
		case evOffer, evDot, evSettled:
			text = fmt.Sprintf("%s %s %d", e.what, e.id, e.n)
		case evAck:
			text = fmt.Sprintf("ack %s", e.id)
		case evFail:
			text = fmt.Sprintf("fail %s %d %s", e.id, e.n, e.rest)
		case evRefused, evFull:
			v.refused++
		case evAltered:
			v.altered = append(v.altered, fmt.Sprintf("altered: %s: %s", e.id, e.rest))
		}
		if text != "" {
			if err := c.Note(text); err != nil {
				return nil, err
			}
		}
	}
	if err := a.explain(c, v, lease); err != nil {
		return nil, err
	}
	v.Report = c.Check(left)
	a.sides(v)
	return v, nil
}

// explain tells the checker of each delivery that a fault may have made two.
func (a *account) explain(c *storetest.Checker, v *verdict, lease time.Duration) error {
	all := map[rcpt][]*delivery{}
	last := map[string]*delivery{} // of a life and recipient
	for _, e := range a.events {
		k := rcpt{e.id, e.n}
		key := fmt.Sprint(e.who, e.id, e.n)
		switch e.what {
		case evAllow:
			d := &delivery{who: e.who, allow: e.at}
			all[k], last[key] = append(all[k], d), d
		case evDot:
			if d := last[key]; d != nil {
				d.dots++
			}
		case evSettled:
			if d := last[key]; d != nil {
				d.settle = e.at
			}
		}
	}
	for k, ds := range all {
		dots := 0
		for _, d := range ds {
			dots += d.dots
		}
		for _, d := range ds {
			why := a.why(d, lease)
			if why == "" {
				continue
			}
			if err := c.Note(fmt.Sprintf("doubt %s %d", k.id, k.n)); err != nil {
				return err
			}
			if dots > 1 && d.dots > 0 {
				v.why[why]++
				dots--
			}
		}
	}
	return nil
}

// why finds the fault between the permission for a dot and its record. A
// record that only came late explains a second dot when the lease could run
// out meanwhile.
func (a *account) why(d *delivery, lease time.Duration) string {
	if why := a.whyOf(d, d.who, lease); why != "" {
		return why
	}
	return a.whyOf(d, "", lease)
}

// whyOf looks among the faults that hit one node, or everybody.
func (a *account) whyOf(d *delivery, who string, lease time.Duration) string {
	for _, f := range a.faults {
		if f.who != who || f.to.Before(d.allow) || !d.settle.IsZero() && f.from.After(d.settle) {
			continue
		}
		if d.settle.IsZero() || d.settle.Sub(d.allow) > lease*9/10 {
			return f.what + " between dot and settle"
		}
	}
	return ""
}

// sides finds final dots on a side that the user was not on (I3, I4).
func (a *account) sides(v *verdict) {
	type now struct {
		state router.State
		sure  bool
	}
	users := map[string]now{}
	for _, e := range a.events {
		u := users[e.user]
		switch e.what {
		case evIn:
			if u.sure && string(u.state) != e.rest {
				v.forgotten = append(v.forgotten, fmt.Sprintf("%s was set to %s, acknowledged, and is %s", e.user, u.state, e.rest))
			}
			users[e.user] = now{router.State(e.rest), true}
		case evLeaving:
			if u.sure && e.rest != "" && string(u.state) != e.rest {
				v.forgotten = append(v.forgotten, fmt.Sprintf("%s was set to %s, acknowledged, and is %s", e.user, u.state, e.rest))
			}
			users[e.user] = now{u.state, false}
		case evDot:
			if route, held := u.state.Route(); u.sure && (held || string(route) != e.rest) {
				v.wrongSide = append(v.wrongSide, fmt.Sprintf("%s/%d of %s went to %s at %s while he was %s", e.id, e.n, e.user, e.rest,
					e.at.Format(time.StampMicro), u.state))
			}
		}
	}
}

func (v *verdict) reasons() string {
	var out []string
	for _, k := range slices.Sorted(maps.Keys(v.why)) {
		out = append(out, fmt.Sprintf("%s: %d", k, v.why[k]))
	}
	if v.left > 0 {
		out = append(out, fmt.Sprintf("still queued: %d", v.left))
	}
	return strings.Join(out, ", ")
}

func (v *verdict) twice() (n int) {
	for _, k := range v.why {
		n += k
	}
	return n + len(v.Duplicates)
}
