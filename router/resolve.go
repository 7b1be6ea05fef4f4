package router

import (
	"context"
	"errors"
	"fmt"
	"strings"

	"crossfade/mail"
)

// Limits of a resolution.
const (
	// MaxHops is how many aliases may follow one another.
	MaxHops = 16
	// MaxMembers is how many addresses one address may stand for, groups in
	// groups included.
	MaxMembers = 20000
)

// Status says how an address stands to us.
type Status string

// The statuses.
const (
	NotOurs Status = "not ours" // no domain of ours, or a route to elsewhere: 550 5.7.1
	Known   Status = "known"    // Resolution.Recipients is what to queue
	Unknown Status = "unknown"  // ours, in no table: Resolution.Policy decides
)

// Resolution is what an address stands for.
type Resolution struct {
	Status Status
	// Recipients are the final ones, each once, in the order of the table. Each
	// has its Hint where it is in no table. When Status is Unknown it is the
	// one address in question, without a Hint.
	Recipients []mail.Recipient
	// Policy is what to do when Status is Unknown: PolicyVerify or
	// PolicyReject, the other two are applied already.
	Policy Policy
}

// LoopError says that aliases or groups lead back to themselves, or on and on.
type LoopError struct {
	Chain []string // keys, the last of which closes the loop or is one too many
}

func (e *LoopError) Error() string {
	last := e.Chain[len(e.Chain)-1]
	for _, key := range e.Chain[:len(e.Chain)-1] {
		if key == last {
			return "the aliases form a loop: " + strings.Join(e.Chain, " -> ")
		}
	}
	return fmt.Sprintf("more than %d aliases follow one another: %s", MaxHops, strings.Join(e.Chain, " -> "))
}

// ErrTooMany means that an address stands for more than MaxMembers addresses.
var ErrTooMany = fmt.Errorf("the group has more than %d members", MaxMembers)

// Resolve finds the recipients that addr stands for. An error is temporary
// (I10): the table could not be read, or its aliases need an operator.
func (r *Router) Resolve(ctx context.Context, addr mail.Address) (Resolution, error) {
	s := r.site.Load()
	w := walk{site: s, user: r.table.User, given: addr}
	res, err := w.resolve(ctx)
	if err != nil {
		s.log.ErrorContext(ctx, "cannot resolve a recipient", "rcpt", addr.String(), "error", err)
		return Resolution{}, fmt.Errorf("resolve %s: %w", addr, err)
	}
	return res, nil
}

// Locate is [Router.Resolve], and reads the users behind the recipients: beside
// each recipient its line of the table, the zero User where it is in none.
func (r *Router) Locate(ctx context.Context, addr mail.Address) (Resolution, []User, error) {
	s := r.site.Load()
	var steps []Step
	w := walk{site: s, user: r.table.User, given: addr, trace: &steps}
	res, err := w.resolve(ctx)
	if err != nil {
		s.log.ErrorContext(ctx, "cannot resolve an address", "address", addr.String(), "error", err)
		return Resolution{}, nil, fmt.Errorf("resolve %s: %w", addr, err)
	}
	return res, w.users, nil
}

// routeMarks are what a mail system may take for a route to another host when
// it stands in a local part: <ann%example.com@ours>, <example.com!ann@ours>,
// <"ann@example.com"@ours> (RFC 5321, appendix F.2). The backends trust us, and
// Postfix follows all three for those it trusts: we would be an open relay.
const routeMarks = "@%!"

// lookup reads one line of the table.
type lookup func(ctx context.Context, key string) (User, error)

// walk is one resolution.
type walk struct {
	site  *site
	user  lookup
	given mail.Address

	chain []string        // keys above the present one
	done  map[string]bool // keys of addresses that were expanded; made with the first alias
	out   []mail.Recipient
	users []User // beside out: the line of the table, zero when in none
	trace *[]Step
}

func (w *walk) resolve(ctx context.Context) (Resolution, error) {
	a := w.given
	if a.IsNull() {
		w.step(StepDomain, "", "", "the null reverse-path is no recipient")
		return Resolution{Status: NotOurs}, nil
	}
	if !w.site.domains[a.Domain] {
		if a.Domain != w.site.hostname || !role(a.Local) {
			w.step(StepDomain, a.String(), "", a.Domain+" is none of our domains")
			return Resolution{Status: NotOurs}, nil
		}
		to := mail.Address{Local: a.Local, Domain: w.site.first}
		w.step(StepRole, a.String(), to.String(), "mail for "+a.Local+" at our host name goes to our first domain")
		a = to
	}
	if strings.ContainsAny(a.Local, routeMarks) {
		// The exact address counts: in front of a tag the same marks are no one's.
		if _, found, err := w.read(ctx, a.Key()); err != nil || !found {
			w.step(StepDomain, a.String(), "", "the local part names a route to elsewhere, and no such address is in the table")
			return Resolution{Status: NotOurs}, err
		}
	}
	known, err := w.expand(ctx, a, false)
	if err != nil {
		return Resolution{}, err
	}
	if known {
		return Resolution{Status: Known, Recipients: w.out}, nil
	}
	return Resolution{Status: Unknown, Recipients: w.out, Policy: w.site.unknown}, nil
}

// expand follows a to its final recipients. named tells that an operator wrote
// a into the table as a target; such an address is never refused. known is
// false when a is in no table and the policy has to decide.
func (w *walk) expand(ctx context.Context, a mail.Address, named bool) (known bool, err error) {
	key := a.Key()
	if err := w.enter(key); err != nil {
		return false, err
	}
	defer w.leave()
	if len(w.chain) > 1 {
		if w.done[key] {
			return true, nil
		}
		w.done[key] = true
	}
	u, tag, found, err := w.find(ctx, a, key)
	switch {
	case err != nil:
		return false, err
	case !found:
		return w.byDomain(ctx, a, named)
	case u.Kind == KindAlias || u.Kind == KindGroup:
		return true, w.targets(ctx, a, u, tag)
	}
	return true, w.add(a, u.Address, "", u)
}

// find looks for a in the table: as it is, then without its tag.
func (w *walk) find(ctx context.Context, a mail.Address, key string) (u User, tag string, found bool, err error) {
	u, found, err = w.read(ctx, key)
	if err != nil || found {
		return u, "", found, err
	}
	base, tag, ok := w.site.split(a)
	if !ok {
		return User{}, "", false, nil
	}
	baseKey := base.Key()
	w.step(StepSubaddress, key, baseKey, "the tag "+tag+" is set aside")
	u, found, err = w.read(ctx, baseKey)
	return u, tag, found, err
}

func (w *walk) read(ctx context.Context, key string) (User, bool, error) {
	u, err := w.user(ctx, key)
	switch {
	case errors.Is(err, ErrNoUser):
		w.step(StepLookup, key, "", "not in the table")
		return User{}, false, nil
	case err != nil:
		return User{}, false, fmt.Errorf("read the user %s: %w", key, err)
	}
	w.step(StepLookup, key, "", "in the table: "+describe(u))
	return u, true, nil
}

// byDomain is for an address in no table: its domain may be an alias.
func (w *walk) byDomain(ctx context.Context, a mail.Address, named bool) (known bool, err error) {
	u, found, err := w.read(ctx, "@"+a.Domain)
	if err != nil {
		return false, err
	}
	if !found {
		return w.stray(a, named)
	}
	domain, ok := domainTarget(u)
	if !ok || !w.site.domains[domain] {
		return false, fmt.Errorf("the domain alias @%s has the target %q, which is no domain of ours", a.Domain, strings.Join(u.Targets, " "))
	}
	to := mail.Address{Local: a.Local, Domain: domain}
	w.step(StepDomainAlias, a.String(), to.String(), "@"+a.Domain+" stands for @"+domain)
	w.begin()
	return w.expand(ctx, to, named)
}

// targets follows an alias or a group.
func (w *walk) targets(ctx context.Context, a mail.Address, u User, tag string) error {
	if len(u.Targets) == 0 {
		return fmt.Errorf("the %s %s has no target", u.Kind, u.Address)
	}
	w.begin()
	for _, target := range u.Targets {
		to, err := mail.ParseAddress(target)
		if err != nil || to.IsNull() {
			return fmt.Errorf("the %s %s has the target %q, which is no address", u.Kind, u.Address, target)
		}
		if !w.site.domains[to.Domain] {
			return fmt.Errorf("the %s %s leads to %s, which is outside of our domains", u.Kind, u.Address, to)
		}
		if u.Kind == KindAlias {
			to = w.site.withTag(to, tag)
			w.step(StepAlias, a.String(), to.String(), u.Address+" is an alias")
		} else {
			w.step(StepGroup, a.String(), to.String(), "a member of the group "+u.Address)
		}
		if _, err := w.expand(ctx, to, true); err != nil {
			return err
		}
	}
	return nil
}

// withTag gives a the tag of the alias that led to it, unless it has its own
// or would grow too long.
func (s *site) withTag(a mail.Address, tag string) mail.Address {
	if tag == "" {
		return a
	}
	if _, _, has := s.split(a); has {
		return a
	}
	tagged, err := mail.FromUnquoted(a.Local + tag + "@" + a.Domain)
	if err != nil {
		return a
	}
	return tagged
}

// stray ends the walk at an address of ours that is in no table.
func (w *walk) stray(a mail.Address, named bool) (known bool, err error) {
	base, _, _ := w.site.split(a)
	hint, why := mail.Old, ""
	switch {
	case w.site.unknown == PolicyNew:
		hint, why = mail.New, "in no table: routing.unknown sends it to new"
	case w.site.unknown == PolicyOld:
		why = "in no table: routing.unknown sends it to old"
	case named:
		why = "in no table, but an alias or group names it: it is treated as a user of old"
	case isPostmaster(base.Local):
		why = "in no table, but postmaster is always accepted (RFC 5321, 4.5.1): old is asked first"
	case w.site.unknown == PolicyReject:
		w.step(StepPolicy, a.String(), "", "in no table: routing.unknown refuses it (550 5.1.1)")
		return false, w.add(a, base.Key(), "", User{})
	default:
		w.step(StepPolicy, a.String(), "", "in no table: routing.unknown asks both sides")
		return false, w.add(a, base.Key(), "", User{})
	}
	w.step(StepPolicy, a.String(), "", why)
	return true, w.add(a, base.Key(), hint, User{})
}

// add takes a final recipient. u is the zero User when it is in no table.
func (w *walk) add(a mail.Address, key string, hint mail.Route, u User) error {
	if len(w.out) >= MaxMembers {
		return ErrTooMany
	}
	rcpt := mail.Recipient{Addr: a, User: key, Hint: hint}
	if a != w.given {
		rcpt.Orig = w.given
	}
	w.out = append(w.out, rcpt)
	if w.trace != nil {
		w.users = append(w.users, u)
	}
	return nil
}

// begin is called where a walk branches: from then on addresses are counted.
func (w *walk) begin() {
	if w.done == nil {
		w.done = make(map[string]bool)
	}
}

// enter notes that key is being expanded and refuses what would not end.
func (w *walk) enter(key string) error {
	loop := len(w.chain) > MaxHops
	for _, above := range w.chain {
		loop = loop || above == key
	}
	w.chain = append(w.chain, key)
	if loop {
		return &LoopError{Chain: append([]string(nil), w.chain...)}
	}
	if len(w.done) > MaxMembers {
		return ErrTooMany
	}
	return nil
}

func (w *walk) leave() { w.chain = w.chain[:len(w.chain)-1] }

// domainTarget is the domain that the domain alias u stands for.
func domainTarget(u User) (string, bool) {
	if u.Kind != KindAlias || len(u.Targets) != 1 {
		return "", false
	}
	name, ok := strings.CutPrefix(u.Targets[0], "@")
	if !ok {
		return "", false
	}
	d, err := mail.NormalDomain(name)
	return d, err == nil
}
