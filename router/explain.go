package router

import (
	"context"
	"fmt"
	"strings"

	"crossfade/mail"
)

// StepKind says what a Step did.
type StepKind string

// The kinds of step, in words that stay as they are: they are part of the API.
const (
	StepDomain      StepKind = "domain"       // is the domain ours
	StepRole        StepKind = "role"         // postmaster or abuse at our host name
	StepLookup      StepKind = "lookup"       // the table was read
	StepSubaddress  StepKind = "subaddress"   // the tag was set aside
	StepDomainAlias StepKind = "domain-alias" //
	StepAlias       StepKind = "alias"        //
	StepGroup       StepKind = "group"        // a member of it
	StepPolicy      StepKind = "policy"       // routing.unknown was applied
)

// Step is one step of a resolution, for people.
type Step struct {
	Kind StepKind `json:"kind"`
	From string   `json:"from,omitempty"`
	To   string   `json:"to,omitempty"`
	Text string   `json:"text"`
}

// Destination is one final recipient and the way that its mail goes now.
type Destination struct {
	Address mail.Address `json:"address"`        // where it is delivered
	User    string       `json:"user"`           // key in the table
	InTable bool         `json:"in_table"`       // false: nobody imported the user
	State   State        `json:"state"`          // old when he is in no table
	Epoch   uint64       `json:"epoch"`          // 0 when he is in no table
	Route   mail.Route   `json:"route"`          // empty while held
	Held    bool         `json:"held"`           // accepted and kept
	Deliver Deliver      `json:"deliver"`        // both: the other side gets a copy
	Wave    string       `json:"wave,omitempty"` //
	Why     string       `json:"why"`
}

// Explanation says what would become of mail for an address, and why.
type Explanation struct {
	Input        string        `json:"input"`
	Status       Status        `json:"status"`
	Steps        []Step        `json:"steps"`
	Destinations []Destination `json:"destinations"`
	// Reply is what a peer would be told: empty when the recipient is accepted.
	Reply string `json:"reply,omitempty"`
	// Error is set when the recipient cannot be resolved now.
	Error string `json:"error,omitempty"`
}

// Explain tells every step that [Router.Resolve] takes for addr. What is wrong
// with the aliases is in the Explanation; the error is for a table that cannot
// be read.
func (r *Router) Explain(ctx context.Context, addr mail.Address) (Explanation, error) {
	e := Explanation{Input: addr.String(), Steps: []Step{}, Destinations: []Destination{}}
	var failed error
	w := walk{site: r.site.Load(), given: addr, trace: &e.Steps}
	w.user = func(ctx context.Context, key string) (User, error) {
		u, err := r.table.User(ctx, key)
		if err != nil && !isNoUser(err) {
			failed = err
		}
		return u, err
	}
	res, err := w.resolve(ctx)
	if failed != nil {
		return e, fmt.Errorf("explain %s: read the table: %w", addr, failed)
	}
	if err != nil {
		e.Status, e.Error = Known, err.Error()
		e.Reply = mail.AsReply(err).String()
		return e, nil
	}
	e.Status = res.Status
	switch {
	case res.Status == NotOurs:
		e.Reply = "550 5.7.1 relaying denied"
	case res.Status == Unknown && res.Policy == PolicyReject:
		e.Reply = "550 5.1.1 no such user"
		return e, nil
	}
	for i, rcpt := range res.Recipients {
		e.Destinations = append(e.Destinations, destination(rcpt, w.users[i], res))
	}
	return e, nil
}

func destination(rcpt mail.Recipient, u User, res Resolution) Destination {
	d := Destination{
		Address: rcpt.Addr, User: rcpt.User, InTable: u.Address != "", State: u.State,
		Epoch: u.Epoch, Deliver: u.Deliver, Wave: u.Wave,
	}
	switch {
	case d.InTable:
		d.Route, d.Held = u.Route()
		d.Why = "the user's state is " + string(u.State)
		if d.Held {
			d.Why += ": mail is accepted and kept until the flip"
		}
		if u.Deliver == DeliverBoth {
			d.Why += "; the other side gets a copy"
		}
	case res.Status == Unknown:
		d.State, d.Route = StateOld, mail.Old
		d.Why = "in no table: both sides are asked when mail arrives; refused when both say no, old wins when both say yes or one cannot be asked"
	default:
		d.State, d.Route = StateOld, rcpt.Hint
		d.Why = "in no table: " + string(rcpt.Hint) + " is asked first, and the other side when it does not know the user"
	}
	return d
}

// step adds to the trace, when somebody wants one.
func (w *walk) step(kind StepKind, from, to, text string) {
	if w.trace != nil {
		*w.trace = append(*w.trace, Step{Kind: kind, From: from, To: to, Text: text})
	}
}

// describe says in a few words what a line of the table is.
func describe(u User) string {
	switch u.Kind {
	case KindAlias:
		return "an alias of " + strings.Join(u.Targets, " ")
	case KindGroup:
		return fmt.Sprintf("a group of %d", len(u.Targets))
	}
	return "a mailbox, " + string(u.State)
}
