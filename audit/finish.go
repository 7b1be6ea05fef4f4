package audit

import (
	"context"
	"fmt"
	"maps"
	"slices"
	"strings"
	"time"

	"crossfade/journal"
	"crossfade/mail"
	"crossfade/queue"
	"crossfade/router"
)

// Status says how a Condition stands.
type Status string

// The statuses.
const (
	StatusOK      Status = "ok"
	StatusNotYet  Status = "not yet"
	StatusUnknown Status = "unknown"
)

// Condition is one thing that must be true before the old system may be switched
// off.
type Condition struct {
	Name     string   `json:"name"`
	Status   Status   `json:"status"`
	Text     string   `json:"text"`
	Evidence []string `json:"evidence,omitempty"`
	Hint     string   `json:"hint,omitempty"` // what to do when it is not ok
}

// Finish says whether the old system may be switched off.
type Finish struct {
	At         time.Time   `json:"at"`
	Ready      bool        `json:"ready"` // all is ok
	Conditions []Condition `json:"conditions"`
	// Afterwards is what to reset then.
	Afterwards []string `json:"afterwards"`
}

// Stragglers tells of mail that came to old past the relay.
type Stragglers interface {
	// LastStraggler gives the newest of them; the zero value when there was none.
	LastStraggler(ctx context.Context) (Straggler, error)
}

// Straggler is a message that came to a mailbox past the relay.
type Straggler struct {
	At   time.Time
	User string
	From string // where it came from, as far as that is known
	// Left is how many of all that came cannot be carried to the side that their users
	// read, and Of names some of these.
	Left int
	Of   []string
}

// DNS tells whether the domain's records are as they should be after the move.
type DNS interface {
	// After gives what is not, one line each; empty when all is.
	After(ctx context.Context) ([]string, error)
}

// Ending is what Finish is made of. Auditor is required; what is nil is unknown.
type Ending struct {
	Auditor    *Auditor
	Stats      func(ctx context.Context) (queue.Stats, error)
	LastAudit  func(ctx context.Context) (*Document, error) // nil document: none was made
	Stragglers Stragglers
	DNS        DNS
	Window     time.Duration // how long stragglers are swept after a flip
	Quiet      time.Duration // how long no straggler may have come
}

// auditAge is how old the last audit may be.
const auditAge = 24 * time.Hour

// shownNames bounds lists of names.
const shownNames = 10

// Finish looks at every condition. What cannot be asked is unknown, not an error.
func (e *Ending) Finish(ctx context.Context) Finish {
	f := Finish{At: time.Now().UTC().Truncate(time.Second), Ready: true, Afterwards: slices.Clone(afterwards)}
	for _, look := range []func(context.Context) (Condition, error){
		e.users, e.windows, e.stragglers, e.audit, e.queue, e.dns, e.strangers,
	} {
		c, err := look(ctx)
		if err != nil {
			c.Status, c.Text = StatusUnknown, err.Error()
		}
		f.Ready = f.Ready && c.Status == StatusOK
		f.Conditions = append(f.Conditions, c)
	}
	return f
}

// afterwards is what to reset, in this order.
var afterwards = []string{
	"point MX straight at the new system, and keep the relay running until the old TTL of the MX has run out and the queue is empty",
	"set the TTLs of MX, TXT and the hosts' addresses back to hours",
	"take the old system and the relay out of SPF",
	"remove the DKIM selectors of the old system, a week after its last message at the earliest",
	"put the new system into the MTA-STS policy, count its id up, and let go of the relay's name when max_age has run out",
	"take the relay out of the new system's list of trusted senders, and the master logins out of both systems",
	"keep the last audit, its public key (crossfade audit --public-key) and the journal with your records; then the relay may go",
}

func (e *Ending) users(ctx context.Context) (Condition, error) {
	c := Condition{Name: "users", Status: StatusOK, Hint: "crossfade cutover status shows who is where, and why not further"}
	counts, err := e.Auditor.Users.CountUsers(ctx)
	if err != nil {
		return c, fmt.Errorf("count the users: %w", err)
	}
	total, done := 0, counts[router.StateDone]
	for _, s := range slices.Sorted(maps.Keys(counts)) {
		total += counts[s]
		c.Evidence = append(c.Evidence, fmt.Sprintf("%s: %d", s, counts[s]))
	}
	c.Text = fmt.Sprintf("%d of %d users are done", done, total)
	if total == 0 {
		c.Status, c.Text = StatusNotYet, "no user is in the table"
	}
	if done == total {
		return c, nil
	}
	c.Status = StatusNotYet
	names, err := e.named(ctx, func(u router.User) bool { return u.State != router.StateDone })
	c.Evidence = append(c.Evidence, names...)
	return c, err
}

// named gives the first users of whom something is true.
func (e *Ending) named(ctx context.Context, is func(router.User) bool) (names []string, err error) {
	more := 0
	err = e.each(ctx, func(u router.User) {
		if !is(u) {
			return
		}
		if len(names) < shownNames {
			names = append(names, fmt.Sprintf("%s is %s since %s", u.Address, u.State, u.Since.UTC().Format(time.DateOnly)))
		} else {
			more++
		}
	})
	if more > 0 {
		names = append(names, fmt.Sprintf("and %d more", more))
	}
	return names, err
}

func (e *Ending) each(ctx context.Context, f func(router.User)) error {
	for cursor := ""; ; {
		page, next, err := e.Auditor.Users.Users(ctx, router.Filter{Kind: router.KindMailbox}, cursor, 500)
		if err != nil {
			return fmt.Errorf("list the users: %w", err)
		}
		for _, u := range page {
			f(u)
		}
		if cursor = next; next == "" {
			return nil
		}
	}
}

func (e *Ending) windows(ctx context.Context) (Condition, error) {
	c := Condition{Name: "windows", Status: StatusOK, Hint: "wait: a window ends by itself (cutover.window)"}
	var last time.Time
	open, early := 0, 0
	err := e.each(ctx, func(u router.User) {
		switch u.State {
		case router.StateDone:
		case router.StateNew:
			if end := u.Since.Add(e.Window); end.After(time.Now()) {
				open++
				if end.After(last) {
					last = end
				}
			}
		default:
			early++
		}
	})
	c.Text = "no window is open"
	if open > 0 {
		c.Status, c.Text = StatusNotYet, fmt.Sprintf("%d windows are open, the last one until %s", open, last.UTC().Format(time.RFC3339))
	}
	if early > 0 {
		if open == 0 {
			c.Text = "not all windows have begun"
		}
		c.Status = StatusNotYet
		c.Evidence = append(c.Evidence, fmt.Sprintf("%d users have not flipped yet: their windows have not begun", early))
	}
	return c, err
}

func (e *Ending) stragglers(ctx context.Context) (Condition, error) {
	c := Condition{Name: "stragglers", Status: StatusOK, Hint: "find out why mail still goes to old: a forgotten backup MX, a sender with a fixed address, the old system's own users"}
	if e.Stragglers == nil {
		return c, fmt.Errorf("this relay does not count yet what comes to old past it")
	}
	s, err := e.Stragglers.LastStraggler(ctx)
	switch {
	case err != nil:
		return c, fmt.Errorf("ask for the last straggler: %w", err)
	case s.At.IsZero():
		c.Text = "none was found"
	default:
		c.Text = fmt.Sprintf("the last one came %s ago; none for %s is wanted", span(time.Since(s.At)), span(e.Quiet))
		c.Evidence = []string{fmt.Sprintf("%s: for %s, from %s", s.At.UTC().Format(time.RFC3339), s.User, s.From)}
		if time.Since(s.At) < e.Quiet {
			c.Status = StatusNotYet
		}
	}
	if err == nil && s.Left > 0 {
		c.Status = StatusNotYet
		c.Text = fmt.Sprintf("%d were found and cannot be carried to the side that their users read; %s", s.Left, c.Text)
		c.Evidence = append(c.Evidence, s.Of...)
		c.Hint = "mend what it says there (quota, a limit, a message that new refuses), then crossfade cutover status; or settle it: crossfade audit --settle"
	}
	return c, nil
}

func (e *Ending) audit(ctx context.Context) (Condition, error) {
	c := Condition{Name: "audit", Status: StatusNotYet, Hint: "crossfade audit makes one of all users and names what is not as it should be"}
	d, err := e.LastAudit(ctx)
	if err != nil {
		return c, fmt.Errorf("read the last audit: %w", err)
	}
	if d == nil {
		c.Text = "none was made"
		return c, nil
	}
	age := time.Since(d.Issued)
	c.Text = fmt.Sprintf("the last one is %s old: %d accepted, %d delivered, %d missing", span(age), d.Total.Accepted, d.Total.Delivered, d.Total.missing())
	switch {
	case !d.Clean:
		c.Evidence = append(c.Evidence, "it is not clean")
		for i := range d.Users {
			if a := &d.Users[i]; !a.Clean() && len(c.Evidence) <= shownNames {
				c.Evidence = append(c.Evidence, a.User+" is not clean")
			}
		}
	case len(d.Request.Users) > 0:
		c.Evidence = append(c.Evidence, "it is of some users only")
	case age > auditAge:
		c.Evidence = append(c.Evidence, "it is older than a day")
	case !d.Request.Mailboxes && e.Auditor.Mailboxes != nil:
		c.Evidence = append(c.Evidence, "nobody looked into the mailboxes")
	default:
		c.Status = StatusOK
		c.Evidence = []string{fmt.Sprintf("signed %s with the key %s", d.Issued.Format(time.RFC3339), d.Signature.Key)}
	}
	return c, nil
}

func (e *Ending) queue(ctx context.Context) (Condition, error) {
	c := Condition{Name: "queue", Status: StatusOK, Hint: "crossfade queue list shows what waits"}
	st, err := e.Stats(ctx)
	if err != nil {
		return c, fmt.Errorf("count the queue: %w", err)
	}
	c.Text = "nothing waits for old, nothing is held or parked"
	for _, x := range []struct {
		n    int
		what string
	}{{st.Routes[mail.Old], "for old"}, {st.States[queue.Held], "held"}, {st.States[queue.Parked], "parked"},
		{st.States[queue.Leased] + st.States[queue.Sending], "on the way"}} {
		if x.n > 0 {
			c.Status = StatusNotYet
			c.Evidence = append(c.Evidence, fmt.Sprintf("%d %s", x.n, x.what))
		}
	}
	if c.Status != StatusOK {
		c.Text = strings.Join(c.Evidence, ", ")
	}
	return c, nil
}

func (e *Ending) dns(ctx context.Context) (Condition, error) {
	c := Condition{Name: "dns", Status: StatusOK, Text: "all records are as they should be after the move", Hint: "crossfade dns check says what to change, and why"}
	if e.DNS == nil {
		return c, fmt.Errorf("this relay does not look at the DNS yet")
	}
	wrong, err := e.DNS.After(ctx)
	if err != nil {
		return c, fmt.Errorf("look at the DNS: %w", err)
	}
	if len(wrong) > 0 {
		c.Status, c.Text, c.Evidence = StatusNotYet, fmt.Sprintf("%d findings", len(wrong)), wrong
	}
	return c, nil
}

// strangers looks for addresses that got mail lately and are in no table: nobody
// moves them, and their mailbox goes with the old system.
func (e *Ending) strangers(ctx context.Context) (Condition, error) {
	c := Condition{Name: "strangers", Status: StatusOK, Hint: "add them to the table (crossfade user import) and move them, or make aliases of them"}
	known := map[string]bool{}
	if err := e.each(ctx, func(u router.User) { known[u.Address] = true }); err != nil {
		return c, err
	}
	type got struct {
		n    int
		last journal.Entry
	}
	found := map[string]got{}
	_, err := e.Auditor.Journal.Scan(ctx, func(x journal.Entry) error {
		if x.Kind == journal.Delivered && x.User != "" && !known[x.User] && time.Since(x.At) < e.Quiet {
			found[x.User] = got{found[x.User].n + 1, x}
		}
		return nil
	})
	if err != nil {
		return c, fmt.Errorf("read the journal: %w", err)
	}
	c.Text = fmt.Sprintf("nobody who is in no table got mail in the last %s", span(e.Quiet))
	if len(found) == 0 {
		return c, nil
	}
	c.Status, c.Text = StatusNotYet, fmt.Sprintf("%d addresses in no table got mail in the last %s", len(found), span(e.Quiet))
	for i, user := range slices.Sorted(maps.Keys(found)) {
		if i == shownNames {
			c.Evidence = append(c.Evidence, fmt.Sprintf("and %d more", len(found)-i))
			break
		}
		g := found[user]
		c.Evidence = append(c.Evidence, fmt.Sprintf("%s: %d messages, the last one %s to %s", user, g.n, g.last.At.Format(time.RFC3339), g.last.Route))
	}
	return c, nil
}

// span gives a time in words, roughly.
func span(d time.Duration) string {
	switch days := int(d / (24 * time.Hour)); {
	case days > 1:
		return fmt.Sprintf("%d days", days)
	case d >= 2*time.Hour:
		return fmt.Sprintf("%d hours", int(d.Hours()))
	case d >= 2*time.Minute:
		return fmt.Sprintf("%d minutes", int(d.Minutes()))
	}
	return fmt.Sprintf("%d seconds", int(d.Seconds()))
}
