package admin

import (
	"bufio"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net/http"
	"net/url"
	"strconv"
	"strings"
	"time"

	"crossfade/backfill"
	"crossfade/cutover"
	"crossfade/mail"
	"crossfade/queue"
	"crossfade/router"
)

// Users lists users from behind cursor; a limit of 0 leaves the number to the
// relay.
func (c *Client) Users(ctx context.Context, f router.Filter, cursor string, limit int) (UserPage, error) {
	q := page(url.Values{}, cursor, limit)
	set(q, "state", string(f.State))
	set(q, "wave", f.Wave)
	set(q, "kind", string(f.Kind))
	set(q, "q", f.Query)
	var out UserPage
	err := c.do(ctx, call{method: http.MethodGet, path: "/v1/users", query: q}, nil, &out)
	return out, err
}

// User reads one user.
func (c *Client) User(ctx context.Context, address string) (router.User, error) {
	var out router.User
	err := c.do(ctx, call{method: http.MethodGet, path: "/v1/users/" + part(address)}, nil, &out)
	return out, err
}

// ChangeUser changes what is known of a user, but not the state.
func (c *Client) ChangeUser(ctx context.Context, address string, p UserPatch) (router.User, error) {
	var out router.User
	err := c.do(ctx, call{method: http.MethodPatch, path: "/v1/users/" + part(address)}, p, &out)
	return out, err
}

// DeleteUser takes a user out of the table; epoch 0 is whatever it is.
func (c *Client) DeleteUser(ctx context.Context, address string, epoch uint64, reason string, force bool) error {
	q := url.Values{}
	if epoch > 0 {
		q.Set("epoch", strconv.FormatUint(epoch, 10))
	}
	set(q, "reason", reason)
	if force {
		q.Set("force", "true")
	}
	return c.do(ctx, call{method: http.MethodDelete, path: "/v1/users/" + part(address), query: q}, nil, nil)
}

// SetState sets a user's state by hand.
func (c *Client) SetState(ctx context.Context, address string, s StateChange) (StateChanged, error) {
	var out StateChanged
	err := c.do(ctx, call{method: http.MethodPut, path: "/v1/users/" + part(address) + "/state"}, s, &out)
	return out, err
}

// History lists the changes of a user, newest first.
func (c *Client) History(ctx context.Context, address string, limit int) ([]router.Change, error) {
	var out UserHistory
	err := c.do(ctx, call{method: http.MethodGet, path: "/v1/users/" + part(address) + "/history", query: page(url.Values{}, "", limit)}, nil, &out)
	return out.Changes, err
}

// ImportOptions are how an import is made.
type ImportOptions struct {
	KeepGoing bool
	DryRun    bool
	Reason    string
}

// ImportUsers sends a CSV file.
func (c *Client) ImportUsers(ctx context.Context, csv io.Reader, o ImportOptions) (Imported, error) {
	q := url.Values{}
	if o.KeepGoing {
		q.Set("keep_going", "true")
	}
	if o.DryRun {
		q.Set("dry_run", "true")
	}
	set(q, "reason", o.Reason)
	var out Imported
	err := c.do(ctx, call{method: http.MethodPost, path: "/v1/users:import", query: q, body: csv, contentType: "text/csv"}, nil, &out)
	return out, err
}

// Explain tells what becomes of mail for an address.
func (c *Client) Explain(ctx context.Context, rcpt string) (router.Explanation, error) {
	var out router.Explanation
	err := c.do(ctx, call{method: http.MethodGet, path: "/v1/route", query: url.Values{"rcpt": {rcpt}}}, nil, &out)
	return out, err
}

// StartCutover asks for a user to be moved.
func (c *Client) StartCutover(ctx context.Context, address string, r MoveRequest) (cutover.Status, error) {
	var out cutover.Status
	err := c.do(ctx, call{method: http.MethodPost, path: "/v1/users/" + part(address) + "/cutover"}, r, &out)
	return out, err
}

// StartWave asks for all users of a wave to be moved.
func (c *Client) StartWave(ctx context.Context, wave string, r MoveRequest) (WaveStarted, error) {
	var out WaveStarted
	err := c.do(ctx, call{method: http.MethodPost, path: "/v1/waves/" + part(wave) + "/cutover"}, r, &out)
	return out, err
}

// CancelCutover takes a user who has not flipped back to old.
func (c *Client) CancelCutover(ctx context.Context, address string) error {
	return c.do(ctx, call{method: http.MethodDelete, path: "/v1/users/" + part(address) + "/cutover"}, nil, nil)
}

// Move tells how the move of a user goes.
func (c *Client) Move(ctx context.Context, address string) (cutover.Status, error) {
	var out cutover.Status
	err := c.do(ctx, call{method: http.MethodGet, path: "/v1/users/" + part(address) + "/cutover"}, nil, &out)
	return out, err
}

// Moves tells how all moves and copies go.
func (c *Client) Moves(ctx context.Context) ([]cutover.Status, error) {
	var out Moves
	err := c.do(ctx, call{method: http.MethodGet, path: "/v1/backfill"}, nil, &out)
	return out.Moves, err
}

// Backfill tells the same with the totals, and what is paused.
func (c *Client) Backfill(ctx context.Context) (Moves, error) {
	var out Moves
	err := c.do(ctx, call{method: http.MethodGet, path: "/v1/backfill"}, nil, &out)
	return out, err
}

// RunBackfill asks for a user's mail to be copied until it is in sync.
func (c *Client) RunBackfill(ctx context.Context, address string) (cutover.Status, error) {
	return c.RunBackfillWith(ctx, address, BackfillRun{})
}

// BackfillRun is what an operator may say for the next pass of a user.
type BackfillRun struct {
	AllowDeletions bool // no ceiling on deletions
	RetryRefused   bool // offer refused messages again as they are
}

// RunBackfillWith is RunBackfill with more to say.
func (c *Client) RunBackfillWith(ctx context.Context, address string, run BackfillRun) (cutover.Status, error) {
	var out cutover.Status
	q := url.Values{}
	if run.AllowDeletions {
		q.Set("allow_deletions", "true")
	}
	if run.RetryRefused {
		q.Set("retry_refused", "true")
	}
	err := c.do(ctx, call{method: http.MethodPost, path: "/v1/backfill/" + part(address) + "/run", query: q}, nil, &out)
	return out, err
}

// Verify compares both mailboxes of a user; it waits for the end.
func (c *Client) Verify(ctx context.Context, address string) (Verified, error) {
	var out Verified
	err := c.do(ctx, call{method: http.MethodPost, path: "/v1/backfill/" + part(address) + "/verify"}, nil, &out)
	return out, err
}

// Plan says what copying a user's mail would do; it waits for the end.
func (c *Client) Plan(ctx context.Context, address string) (backfill.Plan, error) {
	var out backfill.Plan
	err := c.do(ctx, call{method: http.MethodGet, path: "/v1/backfill/" + part(address) + "/plan"}, nil, &out)
	return out, err
}

// Inventory lists what a user's mailbox on new holds, by content keys; it waits
// for the end.
func (c *Client) Inventory(ctx context.Context, address string) (backfill.Inventory, error) {
	var out backfill.Inventory
	err := c.do(ctx, call{method: http.MethodPost, path: "/v1/backfill/" + part(address) + "/inventory"}, nil, &out)
	return out, err
}

// Queue lists queued messages from behind cursor.
func (c *Client) Queue(ctx context.Context, f QueueFilter, cursor string, limit int) (QueuePage, error) {
	q := page(url.Values{}, cursor, limit)
	ids := make([]string, len(f.IDs))
	for i, id := range f.IDs {
		ids[i] = string(id)
	}
	set(q, "id", strings.Join(ids, ","))
	set(q, "state", string(f.State))
	set(q, "route", string(f.Route))
	set(q, "user", f.User)
	set(q, "rcpt", f.Rcpt)
	set(q, "from", f.From)
	set(q, "reason", f.Reason)
	if !f.Before.IsZero() {
		q.Set("before", f.Before.UTC().Format(time.RFC3339Nano))
	}
	var out QueuePage
	err := c.do(ctx, call{method: http.MethodGet, path: "/v1/queue", query: q}, nil, &out)
	return out, err
}

// Message reads one queued message.
func (c *Client) Message(ctx context.Context, id mail.ID) (queue.Entry, error) {
	var out queue.Entry
	err := c.do(ctx, call{method: http.MethodGet, path: "/v1/queue/" + part(string(id))}, nil, &out)
	return out, err
}

// Act does something to one message.
func (c *Client) Act(ctx context.Context, id mail.ID, verb queue.Verb, a QueueAction) (queue.Applied, error) {
	var out queue.Applied
	if verb == queue.DoDelete {
		q := url.Values{}
		set(q, "reason", a.Reason)
		err := c.do(ctx, call{method: http.MethodDelete, path: "/v1/queue/" + part(string(id)), query: q}, nil, &out)
		return out, err
	}
	err := c.do(ctx, call{method: http.MethodPost, path: "/v1/queue/" + part(string(id)) + "/" + part(string(verb))}, a, &out)
	return out, err
}

// Apply does something to every recipient that matches.
func (c *Client) Apply(ctx context.Context, a QueueApply) (queue.Applied, error) {
	var out queue.Applied
	err := c.do(ctx, call{method: http.MethodPost, path: "/v1/queue:apply"}, a, &out)
	return out, err
}

// Export streams a message. Its Read fails when the message is damaged or was
// cut off.
func (c *Client) Export(ctx context.Context, id mail.ID) (io.ReadCloser, error) {
	resp, err := c.send(ctx, call{method: http.MethodGet, path: "/v1/queue/" + part(string(id)) + "/message"})
	if err != nil {
		return nil, err
	}
	return resp.Body, nil
}

// Stats gives the relay's figures.
func (c *Client) Stats(ctx context.Context) (Stats, error) {
	var out Stats
	err := c.do(ctx, call{method: http.MethodGet, path: "/v1/stats"}, nil, &out)
	return out, err
}

// Reload makes the relay read its configuration again; the notices tell what
// needs a restart.
func (c *Client) Reload(ctx context.Context) ([]string, error) {
	var out Reloaded
	err := c.do(ctx, call{method: http.MethodPost, path: "/v1/reload"}, nil, &out)
	return out.Notices, err
}

// Audit lists records of the audit log, newest first.
func (c *Client) Audit(ctx context.Context, f AuditFilter, cursor string, limit int) (AuditPage, error) {
	q := page(url.Values{}, cursor, limit)
	set(q, "by", f.By)
	set(q, "action", f.Action)
	set(q, "object", f.Object)
	var out AuditPage
	err := c.do(ctx, call{method: http.MethodGet, path: "/v1/audit", query: q}, nil, &out)
	return out, err
}

// Backends tells how deliveries over each route go.
func (c *Client) Backends(ctx context.Context) ([]BackendStatus, error) {
	var out BackendList
	err := c.do(ctx, call{method: http.MethodGet, path: "/v1/backends"}, nil, &out)
	return out.Backends, err
}

// PauseBackend stops deliveries over a route until ResumeBackend.
func (c *Client) PauseBackend(ctx context.Context, route mail.Route, reason string) error {
	return c.do(ctx, call{method: http.MethodPost, path: "/v1/backends/" + part(string(route)) + "/pause"}, PauseRequest{Reason: reason}, nil)
}

// ResumeBackend ends what PauseBackend began.
func (c *Client) ResumeBackend(ctx context.Context, route mail.Route) error {
	return c.do(ctx, call{method: http.MethodPost, path: "/v1/backends/" + part(string(route)) + "/resume"}, nil, nil)
}

// Ready tells whether the relay can accept mail now. It needs no token.
func (c *Client) Ready(ctx context.Context) (Readiness, error) {
	req, err := http.NewRequestWithContext(ctx, http.MethodGet, c.base.String()+"/readyz", nil)
	if err != nil {
		return Readiness{}, fmt.Errorf("asking the relay: %w", err)
	}
	resp, err := c.http.Do(req)
	if err != nil {
		return Readiness{}, fmt.Errorf("cannot reach the relay's admin API: %w", err)
	}
	if resp.StatusCode != http.StatusOK && resp.StatusCode != http.StatusServiceUnavailable {
		defer resp.Body.Close()
		return Readiness{}, c.problem(resp)
	}
	var out Readiness
	err = decode(resp, &out)
	return out, err
}

// maxEvent bounds a line of an event stream, in octets.
const maxEvent = 4 << 20

// Listen calls each for every event after the id since (0: from now on), until
// ctx or the stream ends or each returns an error. connected, when not nil, is
// called once the stream is open, so that nothing after it is missed.
func (c *Client) Listen(ctx context.Context, since uint64, connected func(), each func(Event) error) error {
	k := call{method: http.MethodGet, path: "/v1/events", header: http.Header{"Accept": {"text/event-stream"}}}
	if since > 0 {
		k.header.Set("Last-Event-ID", strconv.FormatUint(since, 10))
	}
	resp, err := c.send(ctx, k)
	if err != nil {
		return err
	}
	defer resp.Body.Close()
	lines := bufio.NewScanner(resp.Body)
	lines.Buffer(nil, maxEvent)
	for lines.Scan() {
		if strings.HasPrefix(lines.Text(), ": hello") && connected != nil {
			connected()
		}
		data, ok := strings.CutPrefix(lines.Text(), "data: ")
		if !ok {
			continue
		}
		var e Event
		if err := json.Unmarshal([]byte(data), &e); err != nil {
			return fmt.Errorf("reading an event: %w", err)
		}
		if err := each(e); err != nil {
			return err
		}
	}
	return errors.Join(ctx.Err(), lines.Err())
}
