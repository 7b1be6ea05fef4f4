package audit

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"slices"
	"strings"
	"sync"
	"time"

	"crossfade/audit/seal"
	"crossfade/journal"
	"crossfade/mail"
	"crossfade/queue"
	"crossfade/router"

	"github.com/oklog/ulid/v2"
)

// Queue is what an audit asks of the queue.
type Queue interface {
	List(ctx context.Context, f queue.Filter, cursor string, limit int) (entries []queue.Entry, next string, err error)
	Get(ctx context.Context, id mail.ID) (queue.Entry, error)
}

// Users is what an audit asks of the state table.
type Users interface {
	User(ctx context.Context, key string) (router.User, error)
	Users(ctx context.Context, f router.Filter, cursor string, limit int) (users []router.User, next string, err error)
	History(ctx context.Context, key string, limit int) ([]router.Change, error)
	CountUsers(ctx context.Context) (map[router.State]int, error)
}

// Sweeps counts what came to mailboxes past the relay and was found there.
type Sweeps interface {
	// Swept gives, for each user, how many messages sweeps found, and how many of them
	// they copied to the side that the user reads.
	Swept(ctx context.Context) (map[string]SweptCount, error)
}

// SweptCount is what sweeps found of one user.
type SweptCount struct {
	Found, Copied int
	// Left of Found cannot be carried, and Why not. At Grew there were last more of them
	// than before.
	Left int
	Why  string
	Grew time.Time
}

// sweeps enters what sweeps found. What they could not carry may be settled.
func (r *run) sweeps(a *Account) {
	s := r.swept[a.User]
	a.Found, a.Swept = s.Found, s.Copied
	if s.Left == 0 {
		return
	}
	if by := r.settled[a.User]; by.CoversLeft(s.Left, s.Grew) {
		a.Removed += s.Left
		a.Differences = append(a.Differences, Difference{Kind: Removed, N: s.Left,
			Text: fmt.Sprintf("found in the mailbox that the user does not read, not carried (%s), and settled by %s: %s", s.Why, by.By, by.Reason)})
		return
	}
	a.Left = s.Left
	a.Differences = append(a.Differences, Difference{Kind: NotCarried, N: s.Left,
		Text: fmt.Sprintf("%d found in the mailbox that the user does not read and not carried to the one that he reads: %s", s.Left, s.Why)})
}

// Auditor makes audits. Fill in the exported fields; it is safe for concurrent use
// then.
type Auditor struct {
	Journal   *journal.Journal
	Queue     Queue
	Users     Users
	Mailboxes Mailboxes // nil: they cannot be looked into
	Sweeps    Sweeps    // nil: nobody counts what sweeps find
	Key       seal.Key
	Name      string // of the audit: Document.Run
	Hostname  string
	Version   string
	TempDir   string
	Log       *slog.Logger // nil: silent
	// LooksAtOnce is how many users' mailboxes are read at once; 0 means 4.
	LooksAtOnce int
	// FindTime bounds how long Why reads the journal; 0 means a minute.
	FindTime time.Duration
}

// Request says what is audited.
type Request struct {
	Users     []string `json:"users,omitempty"` // keys; empty: all
	Mailboxes bool     `json:"mailboxes"`       // look into them
}

func (r Request) wants(user string) bool { return len(r.Users) == 0 || slices.Contains(r.Users, user) }

// Progress is how far an audit has come.
type Progress struct {
	Step  string `json:"step"` // queue, journal, users
	Done  int    `json:"done"`
	Total int    `json:"total,omitempty"` // 0: not known
}

// Run makes an audit: a signed document. It may be made at any time, also while
// mail flows. progress may be nil.
func (a *Auditor) Run(ctx context.Context, req Request, progress func(Progress)) (*Document, error) {
	if progress == nil {
		progress = func(Progress) {}
	}
	s, err := newSpill(a.TempDir)
	if err != nil {
		return nil, err
	}
	r := &run{a: a, req: req, spill: s, progress: progress, states: map[string]string{}}
	doc, err := r.run(ctx)
	return doc, errors.Join(err, s.close())
}

// run is one audit.
type run struct {
	a        *Auditor
	req      Request
	spill    *spill
	progress func(Progress)
	report   journal.Report
	states   map[string]string
	swept    map[string]SweptCount
	settled  map[string]Settled
	seen     int

	mu    sync.Mutex
	users []Account
}

func (r *run) run(ctx context.Context) (*Document, error) {
	// The queue comes first: what leaves it meanwhile is in the journal, and what
	// comes meanwhile is asked for one by one.
	if err := r.readQueue(ctx); err != nil {
		return nil, err
	}
	var err error
	if r.report, err = r.a.Journal.Scan(ctx, r.entry); err != nil {
		return nil, fmt.Errorf("audit: read the journal: %w", err)
	}
	if r.a.Sweeps != nil {
		if r.swept, err = r.a.Sweeps.Swept(ctx); err != nil {
			return nil, fmt.Errorf("audit: ask what sweeps found: %w", err)
		}
	}
	if r.a.Mailboxes != nil {
		if r.settled, err = r.a.Mailboxes.Settled(ctx); err != nil {
			return nil, fmt.Errorf("audit: ask which mailboxes were settled: %w", err)
		}
	}
	if err := r.readUsers(ctx); err != nil {
		return nil, err
	}
	for i := range buckets {
		if err := r.bucket(ctx, i); err != nil {
			return nil, err
		}
	}
	r.quiet()
	if err := r.strangers(); err != nil {
		return nil, err
	}
	return r.document()
}

// strangers refuses users who were asked for and of whom nothing is known: an audit
// without them would look clean.
func (r *run) strangers() error {
	for _, user := range r.req.Users {
		if !slices.ContainsFunc(r.users, func(a Account) bool { return a.User == user }) {
			return fmt.Errorf("audit: %s is in no table, and neither the journal nor the queue tells of mail for this address: is it written as in `crossfade user list`?", user)
		}
	}
	return nil
}

func (r *run) readQueue(ctx context.Context) error {
	for cursor := ""; ; {
		page, next, err := r.a.Queue.List(ctx, queue.Filter{}, cursor, 500)
		if err != nil {
			return fmt.Errorf("audit: read the queue: %w", err)
		}
		for i := range page {
			if err := r.keep(waiting(&page[i])); err != nil {
				return err
			}
		}
		r.seen += len(page)
		r.progress(Progress{Step: "queue", Done: r.seen})
		if cursor = next; next == "" {
			r.seen = 0
			return nil
		}
	}
}

// waiting gives what a queued message says.
func waiting(e *queue.Entry) (facts []fact) {
	for i := range e.Rcpts {
		rc := &e.Rcpts[i]
		f := fact{user: rc.User, id: e.Envelope.ID, n: rc.N, kind: factQueued, copy: rc.Copy}
		if rc.State == queue.Parked {
			f.kind = factParked
		}
		facts = append(facts, f)
	}
	return facts
}

// entry takes a line of the journal.
func (r *run) entry(e journal.Entry) error {
	if r.seen++; r.seen%10_000 == 0 {
		r.progress(Progress{Step: "journal", Done: r.seen})
	}
	return r.keep(factsOf(e))
}

// keep takes facts about the users who are asked for.
func (r *run) keep(facts []fact) error {
	for _, f := range facts {
		if !r.req.wants(f.user) {
			continue
		}
		if err := r.spill.put(f); err != nil {
			return err
		}
	}
	return nil
}

// factsOf gives what a line says of recipients, where that decides something.
func factsOf(e journal.Entry) (facts []fact) {
	switch e.Kind {
	case journal.Accepted, journal.Withdrawn:
		for n, rc := range e.Rcpts {
			facts = append(facts, fact{user: rc.User, id: e.ID, n: n, kind: e.Kind})
		}
	case journal.Delivered:
		facts = []fact{{user: e.User, id: e.ID, n: e.N, kind: e.Kind, copy: e.Copy, at: e.At, route: e.Route}}
	case journal.Bounced:
		text := fmt.Sprintf("bounced to the sender by %s: %s", e.Notice, e.Reply)
		facts = []fact{{user: e.User, id: e.ID, n: e.N, kind: e.Kind, copy: e.Copy, text: text}}
	case journal.Deleted:
		text := "deleted by " + e.By
		if e.Reason != "" {
			text += ": " + e.Reason
		}
		facts = []fact{{user: e.User, id: e.ID, n: e.N, kind: e.Kind, copy: e.Copy, text: text}}
	}
	return facts
}

func (r *run) readUsers(ctx context.Context) error {
	for cursor := ""; ; {
		page, next, err := r.a.Users.Users(ctx, router.Filter{Kind: router.KindMailbox}, cursor, 500)
		if err != nil {
			return fmt.Errorf("audit: read the users: %w", err)
		}
		for _, u := range page {
			r.states[u.Address] = string(u.State)
		}
		if cursor = next; next == "" {
			return nil
		}
	}
}

// bucket judges the users of one file.
func (r *run) bucket(ctx context.Context, i int) error {
	list, err := r.spill.ledgers(i)
	if err != nil {
		return err
	}
	places := make(chan struct{}, max(r.a.LooksAtOnce, 4))
	var wg sync.WaitGroup
	defer wg.Wait()
	for _, l := range list {
		acct, err := r.account(ctx, l)
		if err != nil {
			return err
		}
		places <- struct{}{}
		wg.Go(func() {
			defer func() { <-places }()
			if r.req.Mailboxes && r.a.Mailboxes != nil && l.user != "" {
				acct.Look = look(ctx, r.a.Mailboxes, l, r.settled)
			}
			r.add(*acct)
		})
	}
	wg.Wait()
	return ctx.Err()
}

func (r *run) add(acct Account) {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.users = append(r.users, acct)
	r.progress(Progress{Step: "users", Done: len(r.users), Total: max(len(r.states), len(r.users))})
}

// account judges one user. What seems to be missing is asked for again: it may have
// come, or gone on, since the queue was read.
func (r *run) account(ctx context.Context, l *ledger) (*Account, error) {
	for _, it := range l.items {
		if !it.accepted || !it.empty() {
			continue
		}
		if err := r.again(ctx, l, it); err != nil {
			return nil, err
		}
	}
	acct := l.account(r.before)
	acct.State = r.states[l.user]
	r.sweeps(acct)
	return acct, nil
}

func (r *run) again(ctx context.Context, l *ledger, it *item) error {
	e, err := r.a.Queue.Get(ctx, it.id)
	switch {
	case err == nil:
		for _, f := range waiting(&e) {
			if f.n == it.n {
				l.take(f)
			}
		}
	case !errors.Is(err, queue.ErrNotFound):
		return fmt.Errorf("audit: ask the queue for %s: %w", it.id, err)
	}
	if !it.empty() {
		return nil
	}
	lines, _, err := r.a.Journal.Find(ctx, string(it.id))
	if err != nil {
		return fmt.Errorf("audit: look for %s in the journal: %w", it.id, err)
	}
	for _, e := range lines {
		for _, f := range factsOf(e) {
			if f.n == it.n && f.kind != journal.Accepted {
				l.take(f)
			}
		}
		if e.Kind == journal.Withdrawn { // it names no recipients
			it.withdrawn = true
		}
	}
	return nil
}

// before tells whether a message was accepted before the journal begins, by the
// time in its id.
func (r *run) before(id mail.ID) bool {
	u, err := ulid.ParseStrict(string(id))
	return err == nil && (r.report.From.IsZero() || ulid.Time(u.Time()).Before(r.report.From.Add(time.Second)))
}

// quiet adds the users without any mail, so that nobody is left out.
func (r *run) quiet() {
	there := map[string]bool{}
	for i := range r.users {
		there[r.users[i].User] = true
	}
	for user, state := range r.states {
		if !there[user] && r.req.wants(user) {
			a := Account{User: user, State: state}
			r.sweeps(&a)
			r.users = append(r.users, a)
		}
	}
	slices.SortFunc(r.users, func(x, y Account) int { return strings.Compare(x.User, y.User) })
}
