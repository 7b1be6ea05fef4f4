package relay

import (
	"bytes"
	"context"
	"fmt"
	"io"
	"slices"
	"sync"
	"testing"
	"time"

	"crossfade/internal/mailtest"
	"crossfade/mail"
	"crossfade/queue"
	"crossfade/relay/smtpclient"

	"go.uber.org/goleak"
)

// outRcpt is a recipient in an outQueue.
type outRcpt struct {
	item  queue.Item
	route mail.Route
	due   time.Time
	state queue.State // empty: gone
	kind  queue.Kind  // the last outcome
	last  string
}

type outMessage struct {
	env   *mail.Envelope
	body  []byte
	rcpts []outRcpt
}

// outQueue is a queue.Deliverer in memory that keeps what it was told.
type outQueue struct {
	mu         sync.Mutex
	msgs       map[mail.ID]*outMessage
	order      []mail.ID
	changed    chan struct{}
	added      []queue.NewMessage
	renewErr   error // of Renew(sending)
	renewLost  bool  // renewErr is for every Renew
	settleErr  []error
	settleFull time.Time // Settle says ErrFull until then
	openErr    error
	corrupt    bool
	claims     int
	late       int       // so many of Renew(sending) answer too late
	renewals   []bool    // the argument sending of each Renew
	renewed    time.Time // the last Renew
}

func newOutQueue() *outQueue {
	return &outQueue{msgs: make(map[mail.ID]*outMessage), changed: make(chan struct{})}
}

// wake is called with q.mu held.
func (q *outQueue) wake() {
	close(q.changed)
	q.changed = make(chan struct{})
}

// put queues a message for one route; change may alter it before.
func (q *outQueue) put(body string, route mail.Route, change func(m *outMessage), rcpts ...string) mail.ID {
	q.mu.Lock()
	defer q.mu.Unlock()
	env := &mail.Envelope{ID: mail.NewID(), From: outAddr("sender@far.test"), Received: time.Now(), Size: int64(len(body))}
	m := &outMessage{env: env, body: []byte(body)}
	for i, r := range rcpts {
		a := outAddr(r)
		env.Recipients = append(env.Recipients, mail.Recipient{Addr: a, User: a.Key()})
		m.rcpts = append(m.rcpts, outRcpt{item: queue.Item{N: i, User: a.Key(), Since: time.Now()}, route: route, state: queue.Queued})
	}
	if change != nil {
		change(m)
	}
	q.msgs[env.ID] = m
	q.order = append(q.order, env.ID)
	q.wake()
	return env.ID
}

func outAddr(s string) mail.Address {
	a, err := mail.ParseAddress(s)
	if err != nil {
		panic(err) // a test's own text
	}
	return a
}

func (q *outQueue) Claim(ctx context.Context, route mail.Route, maxRcpts int) (*queue.Lease, error) {
	for {
		q.mu.Lock()
		if ctx.Err() != nil {
			q.mu.Unlock()
			return nil, ctx.Err()
		}
		lease, next := q.claim(route, maxRcpts)
		changed := q.changed
		q.mu.Unlock()
		if lease != nil {
			return lease, nil
		}
		timer := time.NewTimer(next)
		select {
		case <-changed:
		case <-timer.C:
		case <-ctx.Done():
		}
		timer.Stop()
	}
}

func (q *outQueue) claim(route mail.Route, maxRcpts int) (*queue.Lease, time.Duration) {
	next := time.Hour
	for _, id := range q.order {
		m := q.msgs[id]
		l := &queue.Lease{Token: string(mail.NewID()), Route: route, Envelope: m.env, Until: time.Now().Add(queue.LeaseTime)}
		for i := range m.rcpts {
			r := &m.rcpts[i]
			if r.state != queue.Queued || r.route != route || len(l.Items) == maxRcpts {
				continue
			}
			if wait := time.Until(r.due); wait > 0 {
				next = min(next, wait)
				continue
			}
			if len(l.Items) > 0 && l.InDoubt() == r.item.Doubt.IsZero() {
				continue
			}
			r.state = queue.Leased
			l.Items = append(l.Items, r.item)
		}
		if len(l.Items) > 0 {
			q.claims++
			return l, 0
		}
	}
	return nil, next
}

func (q *outQueue) Renew(_ context.Context, l *queue.Lease, sending bool) error {
	q.mu.Lock()
	defer q.mu.Unlock()
	q.renewals, q.renewed = append(q.renewals, sending), time.Now()
	q.wake()
	if (sending || q.renewLost) && q.renewErr != nil {
		return q.renewErr
	}
	l.Until = time.Now().Add(queue.LeaseTime)
	if sending && q.late > 0 {
		q.late--
		l.Until = time.Now()
	}
	return nil
}

func (q *outQueue) Settle(_ context.Context, l *queue.Lease, outcomes []queue.Outcome, msgs ...queue.NewMessage) error {
	q.mu.Lock()
	defer q.mu.Unlock()
	if len(q.settleErr) > 0 {
		err := q.settleErr[0]
		q.settleErr = q.settleErr[1:]
		return err
	}
	if time.Now().Before(q.settleFull) {
		return queue.ErrFull
	}
	m := q.msgs[l.Envelope.ID]
	for _, o := range outcomes {
		r := &m.rcpts[o.N]
		r.kind, r.last, r.item.LastReply = o.Kind, o.Reply, o.Reply
		r.item.Noticed = r.item.Noticed || o.Noticed
		switch {
		case o.Doubt && r.item.Doubt.IsZero():
			r.item.Doubt = queue.Doubt{Route: l.Route, At: time.Now(), Since: time.Now()}
		case !o.Doubt && o.Kind != queue.Release:
			r.item.Doubt = queue.Doubt{}
		}
		switch o.Kind {
		case queue.Done, queue.Fail:
			r.state = ""
		case queue.Park:
			r.state = queue.Parked
		case queue.Retry:
			r.state, r.due = queue.Queued, o.At
			r.item.Attempts++
		case queue.Defer:
			r.state, r.due = queue.Queued, o.At
		case queue.Reroute:
			r.state, r.item.Unknown, r.route, r.item.Attempts = queue.Queued, append(r.item.Unknown, r.route), o.To, 0
		case queue.Release:
			r.state = queue.Queued
		}
	}
	q.added = append(q.added, msgs...)
	q.wake()
	return nil
}

func (q *outQueue) Open(_ context.Context, id mail.ID) (io.ReadCloser, error) {
	q.mu.Lock()
	defer q.mu.Unlock()
	if q.openErr != nil {
		return nil, q.openErr
	}
	r := io.Reader(bytes.NewReader(q.msgs[id].body))
	if q.corrupt {
		r = io.MultiReader(r, errReader{queue.ErrCorrupt})
	}
	return io.NopCloser(r), nil
}

type errReader struct{ err error }

func (e errReader) Read([]byte) (int, error) { return 0, e.err }

// wait polls until the message's recipients are as f wants them.
func (q *outQueue) wait(t testing.TB, id mail.ID, f func(rs []outRcpt) bool) []outRcpt {
	t.Helper()
	timeout := time.NewTimer(8 * time.Second)
	defer timeout.Stop()
	for {
		q.mu.Lock()
		rs, changed := slices.Clone(q.msgs[id].rcpts), q.changed
		q.mu.Unlock()
		if f(rs) {
			return rs
		}
		select {
		case <-changed:
		case <-timeout.C:
			t.Fatalf("the message did not get there: %+v", rs)
		}
	}
}

// outKinds waits for one outcome each and gives them in order.
func (q *outQueue) outKinds(t testing.TB, id mail.ID) []outRcpt {
	t.Helper()
	return q.wait(t, id, func(rs []outRcpt) bool {
		return !slices.ContainsFunc(rs, func(r outRcpt) bool { return r.kind == "" })
	})
}

func (q *outQueue) notices() []queue.NewMessage {
	q.mu.Lock()
	defer q.mu.Unlock()
	return slices.Clone(q.added)
}

// outSite is a running Deliverer with sinks for its backends.
type outSite struct {
	t        testing.TB
	q        *outQueue
	d        *Deliverer
	sinks    map[mail.Route]*mailtest.Sink
	log      *inLog
	mu       sync.Mutex
	alarms   []DeliverAlarm
	doubts   []DeliverDoubt
	stop     context.CancelFunc
	finished chan error
}

func outTarget(s *mailtest.Sink) smtpclient.Target {
	const d = 500 * time.Millisecond
	return smtpclient.Target{Address: s.Addr(), Mode: smtpclient.Insecure, Hello: "relay.test", Timeouts: smtpclient.Timeouts{
		Greeting: d, Hello: d, Mail: d, Rcpt: d, Data: d, Block: d, Dot: d, Quit: d,
	}}
}

// newOutSite starts a deliverer; change may alter what it is made of.
func newOutSite(t testing.TB, change func(c *DelivererConfig, b map[mail.Route]*BackendConfig)) *outSite {
	t.Helper()
	s := &outSite{t: t, q: newOutQueue(), sinks: make(map[mail.Route]*mailtest.Sink), finished: make(chan error, 1)}
	backends := make(map[mail.Route]*BackendConfig)
	for _, route := range []mail.Route{mail.Old, mail.New, mail.Out} {
		sink, err := mailtest.NewSink(mailtest.SinkConfig{Extensions: []string{"PIPELINING", "8BITMIME", "SIZE"}})
		if err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() { _ = sink.Close() })
		s.sinks[route] = sink
		backends[route] = &BackendConfig{Name: route, Target: outTarget(sink), FirstProbe: 20 * time.Millisecond, MaxProbe: 100 * time.Millisecond}
	}
	cfg := DelivererConfig{
		Queue: s.q, Hostname: "relay.test", Backends: make(map[mail.Route]*Backend), Grace: 5 * time.Second,
		Schedule: queue.Schedule{First: time.Hour, Max: time.Hour, Expire: 5 * 24 * time.Hour, Notice: 4 * time.Hour},
		Metrics: DelivererMetrics{Alarm: func(a DeliverAlarm) {
			s.mu.Lock()
			defer s.mu.Unlock()
			s.alarms = append(s.alarms, a)
		}, Doubt: func(d DeliverDoubt) {
			s.mu.Lock()
			defer s.mu.Unlock()
			s.doubts = append(s.doubts, d)
		}},
	}
	if change != nil {
		change(&cfg, backends)
	}
	for route, bc := range backends {
		b, err := NewBackend(*bc)
		if err != nil {
			t.Fatal(err)
		}
		cfg.Backends[route] = b
	}
	d, err := NewDeliverer(cfg)
	if err != nil {
		t.Fatal(err)
	}
	s.d = d
	ctx, cancel := context.WithCancel(context.Background())
	s.stop = cancel
	go func() { s.finished <- d.Run(ctx) }()
	t.Cleanup(s.end)
	return s
}

func (s *outSite) end() {
	s.stop()
	if err, ok := <-s.finished; ok && err != nil {
		s.t.Errorf("Run: %v", err)
	}
}

func (s *outSite) alarmCount() int {
	s.mu.Lock()
	defer s.mu.Unlock()
	return len(s.alarms)
}

func outNoLeaks(t *testing.T) {
	t.Helper()
	ignore := goleak.IgnoreCurrent()
	t.Cleanup(func() { goleak.VerifyNone(t, ignore) })
}

func outWaitState(t testing.TB, b *Backend, want BackendState) BackendStatus {
	t.Helper()
	var st BackendStatus
	inPoll(t, fmt.Sprintf("backend to be %s", want), func() bool {
		st = b.Status()
		return st.State == want
	})
	return st
}
