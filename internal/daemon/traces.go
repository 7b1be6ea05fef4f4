package daemon

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"strings"
	"time"

	"crossfade/admin"
	"crossfade/audit"
	"crossfade/backfill"
	"crossfade/mail"
	"crossfade/router"
)

// traces looks into mailboxes for what was delivered.
type traces struct{ d *Daemon }

// user gives a user; who is in no table reads old.
func (t traces) user(ctx context.Context, user string) (router.User, error) {
	u, err := t.d.store.User(ctx, user)
	if errors.Is(err, router.ErrNoUser) {
		return router.User{Address: user, Kind: router.KindMailbox, State: router.StateOld}, nil
	}
	return u, err
}

// Reads implements audit.Mailboxes.
func (t traces) Reads(ctx context.Context, user string) (mail.Route, error) {
	u, err := t.user(ctx, user)
	if err != nil {
		return "", err
	}
	if readsNew(u) {
		return mail.New, nil
	}
	return mail.Old, nil
}

func readsNew(u router.User) bool {
	switch u.State {
	case router.StateNew, router.StateDone, router.StateRollback:
		return true
	}
	return false
}

// lookTime bounds the look into one mailbox: one that hangs must not hold up an audit
// of thousands.
const lookTime = 30 * time.Minute

// Traced implements audit.Mailboxes.
func (t traces) Traced(ctx context.Context, user string, side mail.Route, keep func(string) bool) (backfill.Traced, error) {
	u, err := t.user(ctx, user)
	if err != nil {
		return backfill.Traced{}, err
	}
	job, err := t.d.mailboxes.Job(u)
	if err != nil {
		return backfill.Traced{}, err
	}
	in := backfill.SideDest
	if side == mail.Old {
		in = backfill.SideSource
	}
	ctx, cancel := context.WithTimeoutCause(ctx, lookTime, fmt.Errorf("it took longer than %s", lookTime))
	defer cancel()
	return t.d.copier.now.Load().Traced(ctx, job, in, keep)
}

// settledPrefix begins the names of the records of what operators settled, among
// auditRecords.
const settledPrefix = "settled/"

// Settled implements audit.Mailboxes.
func (t traces) Settled(ctx context.Context) (map[string]audit.Settled, error) {
	records, err := t.d.store.LoadLedger(ctx, auditRecords)
	if err != nil {
		return nil, err
	}
	out := map[string]audit.Settled{}
	for name, data := range records {
		user, ok := strings.CutPrefix(name, settledPrefix)
		if !ok {
			continue
		}
		var s audit.Settled
		if err := json.Unmarshal(data, &s); err != nil {
			return nil, fmt.Errorf("the record %q is damaged: %w", name, err)
		}
		out[user] = s
	}
	return out, nil
}

// Settle implements admin.AuditsAPI. It holds for what the last audit found of the
// mailbox: when it is made anew again that is asked for again.
func (a *audits) Settle(ctx context.Context, user, by, reason string) (audit.Settled, error) {
	doc, err := a.Last(ctx)
	if err != nil {
		return audit.Settled{}, err
	}
	acct, _ := doc.Account(user)
	s := audit.Settled{At: time.Now().UTC().Truncate(time.Second), By: by, Reason: reason, Left: acct.Left, LeftAt: doc.Issued}
	if acct.Look != nil {
		s.Anew = acct.Look.Anew
	}
	if len(s.Anew) == 0 && s.Left == 0 {
		return audit.Settled{}, fmt.Errorf("%w: the last audit does not say that the mailbox of %s was made anew, or that mail is left in the one that he does not read", admin.ErrNothingToSettle, user)
	}
	before, err := traces{a.d}.Settled(ctx)
	if err != nil {
		return s, fmt.Errorf("read what was said of the mailbox of %s: %w", user, err)
	}
	if acct.Look == nil { // what was settled before of what it did not find stays so
		s.Anew = before[user].Anew
	}
	if s.Left == 0 {
		s.Left, s.LeftAt = before[user].Left, before[user].LeftAt
		if s.LeftAt.IsZero() {
			s.LeftAt = before[user].At
		}
	}
	data, err := json.Marshal(s)
	if err == nil {
		err = a.d.store.SaveLedger(ctx, auditRecords, settledPrefix+user, data)
	}
	if err != nil {
		return s, fmt.Errorf("keep what was said of the mailbox of %s: %w", user, err)
	}
	a.d.log.Warn("an operator settled a mailbox: what was lost or left there is not asked for any more", "user", user, "by", by, "reason", reason)
	return s, nil
}
