package admin

import (
	"bytes"
	"cmp"
	"context"
	"errors"
	"io"
	"log"
	"maps"
	"net/http"
	"net/http/httptest"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"crossfade/backfill"
	"crossfade/cutover"
	"crossfade/mail"
	"crossfade/queue"
	"crossfade/router"
)

// memTable is a router.Table in memory.
type memTable struct {
	mu      sync.Mutex
	users   map[string]router.User
	changes []router.Change
}

func (t *memTable) User(_ context.Context, key string) (router.User, error) {
	t.mu.Lock()
	defer t.mu.Unlock()
	u, ok := t.users[key]
	if !ok {
		return u, router.ErrNoUser
	}
	return u, nil
}

func (t *memTable) Users(_ context.Context, f router.Filter, cursor string, limit int) ([]router.User, string, error) {
	t.mu.Lock()
	defer t.mu.Unlock()
	var out []router.User
	for _, key := range slices.Sorted(maps.Keys(t.users)) {
		u := t.users[key]
		if key <= cursor || f.State != "" && u.State != f.State || f.Wave != "" && u.Wave != f.Wave || !strings.Contains(key, f.Query) || f.Kind != "" && f.Kind != u.Kind {
			continue
		}
		if len(out) == limit {
			return out, out[limit-1].Address, nil
		}
		out = append(out, u)
	}
	return out, "", nil
}

func (t *memTable) CountUsers(context.Context) (map[router.State]int, error) {
	t.mu.Lock()
	defer t.mu.Unlock()
	n := map[router.State]int{}
	for _, u := range t.users {
		n[u.State]++
	}
	return n, nil
}

func (t *memTable) SetUser(_ context.Context, u router.User, c router.Change) (router.User, int, error) {
	t.mu.Lock()
	defer t.mu.Unlock()
	if have := t.users[u.Address].Epoch; have != u.Epoch {
		return u, 0, &router.EpochError{User: u.Address, Have: have, Want: u.Epoch}
	}
	u.Epoch++
	t.users[u.Address] = u
	c.User, c.Epoch, c.At = u.Address, u.Epoch, time.Now()
	t.changes = append(t.changes, c)
	return u, 0, nil
}

func (t *memTable) Busy(context.Context, string) (int, error) { return 0, nil }

func (t *memTable) DeleteUser(_ context.Context, key string, epoch uint64, c router.Change) error {
	t.mu.Lock()
	defer t.mu.Unlock()
	delete(t.users, key)
	c.User = key
	t.changes = append(t.changes, c)
	return nil
}

func (t *memTable) ImportUsers(_ context.Context, users []router.User, c router.Change) (created, updated int, err error) {
	t.mu.Lock()
	defer t.mu.Unlock()
	for _, u := range users {
		if have, ok := t.users[u.Address]; ok {
			u.State, u.Epoch = have.State, have.Epoch
			updated++
		} else {
			u.State = cmp.Or(u.State, router.StateOld)
			u.Epoch = 1
			created++
		}
		t.users[u.Address] = u
	}
	return created, updated, nil
}

func (t *memTable) History(_ context.Context, key string, limit int) ([]router.Change, error) {
	t.mu.Lock()
	defer t.mu.Unlock()
	var out []router.Change
	for _, c := range slices.Backward(t.changes) {
		if c.User == key && len(out) < limit {
			out = append(out, c)
		}
	}
	return out, nil
}

// memQueue is a queue.Inspector in memory that notes what is asked of it.
type memQueue struct {
	mu      sync.Mutex
	entries []queue.Entry
	bodies  map[mail.ID]string
	damaged mail.ID
	applied []queue.Action
	filters []queue.Filter
	err     error
}

func (q *memQueue) List(_ context.Context, f queue.Filter, cursor string, limit int) ([]queue.Entry, string, error) {
	q.mu.Lock()
	defer q.mu.Unlock()
	q.filters = append(q.filters, f)
	var out []queue.Entry
	for _, e := range q.entries {
		if string(e.Envelope.ID) <= cursor {
			continue
		}
		if len(out) == limit {
			return out, string(out[limit-1].Envelope.ID), q.err
		}
		out = append(out, e)
	}
	return out, "", q.err
}

func (q *memQueue) Get(_ context.Context, id mail.ID) (queue.Entry, error) {
	for _, e := range q.entries {
		if e.Envelope.ID == id {
			return e, q.err
		}
	}
	return queue.Entry{}, queue.ErrNotFound
}

func (q *memQueue) Apply(_ context.Context, f queue.Filter, a queue.Action) (queue.Applied, error) {
	q.mu.Lock()
	defer q.mu.Unlock()
	q.applied, q.filters = append(q.applied, a), append(q.filters, f)
	return queue.Applied{Changed: 1}, q.err
}

func (q *memQueue) Stats(context.Context) (queue.Stats, error) {
	return queue.Stats{Messages: len(q.entries), States: map[queue.State]int{queue.Queued: 2}, Routes: map[mail.Route]int{mail.Old: 2},
		Oldest: time.Now().Add(-time.Minute), Free: -1}, q.err
}

func (q *memQueue) Open(_ context.Context, id mail.ID) (io.ReadCloser, error) {
	text, ok := q.bodies[id]
	if !ok {
		return nil, queue.ErrNotFound
	}
	var r io.Reader = strings.NewReader(text)
	if id == q.damaged {
		r = io.MultiReader(r, failing{queue.ErrCorrupt})
	}
	return io.NopCloser(r), nil
}

type failing struct{ err error }

func (f failing) Read([]byte) (int, error) { return 0, f.err }

// memConductor notes what is asked of it.
type memConductor struct {
	mu       sync.Mutex
	requests []cutover.Request
	paused   []cutover.Pause
	err      error
}

func (c *memConductor) Start(_ context.Context, r cutover.Request) error {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.err == nil {
		c.requests = append(c.requests, r)
	}
	return c.err
}
func (c *memConductor) Rollback(ctx context.Context, r cutover.Request) error {
	r.Rollback = true
	return c.Start(ctx, r)
}
func (c *memConductor) MayBeDone(_ context.Context, user string) error  { return c.err }
func (c *memConductor) Cancel(_ context.Context, user, by string) error { return c.err }
func (c *memConductor) Status() (out []cutover.Status) {
	c.mu.Lock()
	defer c.mu.Unlock()
	for _, r := range c.requests {
		out = append(out, cutover.Status{User: r.User, Phase: cutover.PhaseCopy, Flip: !r.Sync})
	}
	return out
}
func (c *memConductor) StatusOf(user string) (cutover.Status, bool) {
	for _, s := range c.Status() {
		if s.User == user {
			return s, true
		}
	}
	return cutover.Status{}, false
}
func (c *memConductor) RunBackfill(ctx context.Context, user, by string) error {
	return c.Start(ctx, cutover.Request{User: user, By: by, Sync: true})
}
func (c *memConductor) Pause(_ context.Context, p cutover.Pause) error {
	c.paused = append(c.paused, p)
	return c.err
}
func (c *memConductor) Resume(_ context.Context, wave string) (bool, error) {
	n := len(c.paused)
	c.paused = slices.DeleteFunc(c.paused, func(p cutover.Pause) bool { return p.Wave == wave })
	return len(c.paused) < n, c.err
}
func (c *memConductor) Pauses() []cutover.Pause { return c.paused }
func (c *memConductor) Plan(_ context.Context, user string) (backfill.Plan, error) {
	return backfill.Plan{User: user, Messages: 3, Folders: []backfill.PlanFolder{{Source: "INBOX", Dest: "INBOX", Messages: 3}}}, c.err
}
func (c *memConductor) Inventory(_ context.Context, user string) (backfill.Inventory, error) {
	return backfill.Inventory{User: user, Folders: []backfill.Holding{{Folder: "INBOX", Messages: 3}}}, c.err
}
func (c *memConductor) Verify(ctx context.Context, user string) (backfill.Verification, error) {
	return backfill.Verification{User: user, Folders: []backfill.FolderCheck{{Source: "INBOX", Dest: "INBOX"}}}, c.err
}

// memWaves is what the conductor says of waves: there is one, "one".
type memWaves struct {
	*memConductor
	wave cutover.Wave
}

func (w *memWaves) Waves(_ context.Context, name string) ([]cutover.Wave, error) {
	if name != "" && name != "one" {
		return nil, cutover.ErrNoWave
	}
	return []cutover.Wave{w.wave}, w.err
}
func (w *memWaves) SetWave(_ context.Context, name string, at time.Time) (cutover.Wave, error) {
	if name != "one" {
		return cutover.Wave{}, cutover.ErrNoWave
	}
	w.wave.NotBefore = at
	return w.wave, w.err
}
func (w *memWaves) ApproveWave(_ context.Context, name, by string) (cutover.Wave, error) {
	if name != "one" {
		return cutover.Wave{}, cutover.ErrNoWave
	}
	w.wave.ApprovedBy = by
	return w.wave, w.err
}
func (w *memWaves) ResumeFlips(ctx context.Context, wave string) (bool, error) {
	return w.Resume(ctx, wave)
}
func (w *memWaves) PlanMoves(_ context.Context, users []string, wave string) (cutover.MovePlan, error) {
	p := cutover.MovePlan{Wave: wave, Concurrency: 4, Users: []cutover.PlannedMove{}}
	for i, u := range users {
		if slices.Contains(users[:i], u) {
			return p, cutover.ErrTwice
		}
		p.Users = append(p.Users, cutover.PlannedMove{User: u, State: router.StateOld})
	}
	return p, w.err
}
func (w *memWaves) Report(_ context.Context, wave string) (cutover.MoveReport, error) {
	if wave != "" && wave != "one" {
		return cutover.MoveReport{}, cutover.ErrNoWave
	}
	return cutover.MoveReport{Wave: wave, Users: []cutover.UserReport{{User: "bert@example.org"}}}, w.err
}

const (
	readToken    = "read-0123456789abcdef"
	operateToken = "operate-0123456789abcdef"
	adminToken   = "admin-0123456789abcdef"
)

// rig is a server with everything fake behind it, on a loopback socket.
type rig struct {
	t         *testing.T
	table     *memTable
	queue     *memQueue
	conductor *memConductor
	audit     *AuditLog
	server    *Server
	url       string
}

var (
	id1 = mail.NewID()
	id2 = mail.NewID()
)

func newRig(t *testing.T, edit func(*Config)) *rig {
	t.Helper()
	r := &rig{t: t, table: &memTable{users: map[string]router.User{}}, conductor: &memConductor{}}
	for _, u := range []router.User{
		{Address: "anna@example.org", Kind: router.KindMailbox, State: router.StateOld, Epoch: 3, Wave: "one"},
		{Address: "bert@example.org", Kind: router.KindMailbox, State: router.StateNew, Epoch: 7, Wave: "one"},
		{Address: "cleo@example.org", Kind: router.KindMailbox, State: router.StateReady, Epoch: 2},
		{Address: "info@example.org", Kind: router.KindAlias, Targets: []string{"anna@example.org"}, Epoch: 1},
	} {
		r.table.users[u.Address] = u
	}
	rcpt := mail.Recipient{Addr: mail.Address{Local: "anna", Domain: "example.org"}, User: "anna@example.org"}
	entry := func(id mail.ID) queue.Entry {
		return queue.Entry{Envelope: &mail.Envelope{ID: id, Recipients: []mail.Recipient{rcpt}, Received: time.Now()},
			Rcpts: []queue.Rcpt{{Recipient: rcpt, State: queue.Queued, Route: mail.Old, LastReply: "451 4.3.0 busy"}}}
	}
	r.queue = &memQueue{entries: []queue.Entry{entry(id1), entry(id2)}, bodies: map[mail.ID]string{id1: "Subject: x\r\n\r\nbody\r\n", id2: "Subject: y\r\n\r\n"}, damaged: id2}
	rt, err := router.New(router.Config{Hostname: "mx.example.org", Domains: []string{"example.org"}, Subaddress: "+"}, r.table)
	check(t, err)
	r.audit, err = OpenAuditLog(filepath.Join(t.TempDir(), "audit.log"), AuditOptions{})
	check(t, err)
	t.Cleanup(func() { r.audit.Close() })
	tokens, err := ParseTokens("rita read " + readToken + "\nolga operate " + operateToken + "\nada admin " + adminToken)
	check(t, err)
	cfg := Config{Version: "1.2.3", Tokens: tokens, Users: r.table, Router: rt, Queue: r.queue, Bodies: r.queue, Audit: r.audit, Conductor: r.conductor,
		Waves: &memWaves{memConductor: r.conductor, wave: cutover.Wave{Name: "one", State: cutover.WavePlanned, Members: 2}}}
	if edit != nil {
		edit(&cfg)
	}
	r.server, err = New(cfg)
	check(t, err)
	web := httptest.NewUnstartedServer(r.server.Handler())
	web.Config.ErrorLog = log.New(io.Discard, "", 0)
	web.Start()
	t.Cleanup(web.Close)
	r.url = web.URL
	return r
}

func check(t *testing.T, err error) {
	t.Helper()
	if err != nil {
		t.Fatal(err)
	}
}

// ask makes a request. path may begin with "TYPE " for a content type.
func (r *rig) ask(token, method, path, body string) (*http.Response, string) {
	r.t.Helper()
	contentType := ""
	if head, rest, ok := strings.Cut(path, " "); ok {
		contentType, path = head, rest
	}
	req, err := http.NewRequestWithContext(r.t.Context(), method, r.url+path, bytes.NewReader([]byte(body)))
	check(r.t, err)
	if token != "" {
		req.Header.Set("Authorization", "Bearer "+token)
	}
	if contentType == "" && body != "" {
		contentType = "application/json"
		if strings.HasPrefix(path, "/v1/users:import") {
			contentType = "text/csv"
		}
	}
	if contentType != "" {
		req.Header.Set("Content-Type", contentType)
	}
	resp, err := http.DefaultClient.Do(req)
	check(r.t, err)
	defer resp.Body.Close()
	text, err := io.ReadAll(resp.Body)
	check(r.t, err)
	return resp, string(text)
}

func (r *rig) client(token string) *Client {
	r.t.Helper()
	c, err := NewClient(r.url, token)
	check(r.t, err)
	r.t.Cleanup(c.Close)
	return c
}

func (r *rig) records() []Record {
	r.t.Helper()
	records, _, err := r.audit.Read(AuditFilter{}, 0, 1000)
	check(r.t, err)
	return slices.DeleteFunc(records, func(rec Record) bool { return rec.By == logItself })
}

func wantProblem(t *testing.T, err error, kind string) *Problem {
	t.Helper()
	var p *Problem
	if !errors.As(err, &p) {
		t.Fatalf("got %v, want the problem %s", err, kind)
	}
	if p.Type != kind {
		t.Fatalf("got the problem %s (%v), want %s", p.Type, err, kind)
	}
	return p
}
