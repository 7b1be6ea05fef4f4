package relay

import (
	"context"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"sync"
	"time"

	"crossfade/mail"
	"crossfade/queue"
	"crossfade/relay/smtpclient"
)

// delivery is one lease on its way.
type delivery struct {
	w      *deliverWorker
	lease  *queue.Lease
	ctx    context.Context // ends when the lease is lost, or the relay cuts it
	cancel context.CancelCauseFunc
	body   lazyBody

	mu      sync.Mutex // guards the lease's renewal
	sending bool
	ended   bool
	timer   *time.Timer
}

// deliver takes one lease to its end and says what that tells of the backend.
func (w *deliverWorker) deliver(work context.Context, lease *queue.Lease) gateReport {
	if len(lease.Items) == 0 {
		w.settle(work, settling{lease: lease})
		return gateReport{}
	}
	if vs := loopVerdicts(lease, w.route, w.d.cfg.Now()); vs != nil {
		w.settle(work, settling{lease: lease, verdicts: vs})
		return gateReport{}
	}
	started := time.Now()
	x := &delivery{w: w, lease: lease}
	x.ctx, x.cancel = context.WithCancelCause(work)
	defer x.cancel(nil)
	x.body = lazyBody{ctx: x.ctx, queue: w.d.cfg.Queue, env: lease.Envelope}
	x.mu.Lock() // the timer may run before the assignment is seen
	x.timer = time.AfterFunc(w.d.cfg.renewEvery, x.renew)
	x.mu.Unlock()
	conn, answers, err := x.send()
	x.stopRenewing()
	x.body.close()
	verdicts, report := x.verdicts(conn, answers, err), deliverReport(conn, answers, err)
	if conn != nil { // answers belong to it
		w.b.sends.put(x.ctx, conn)
	}
	if attempt := w.d.cfg.Metrics.Attempt; attempt != nil {
		attempt(w.route, time.Since(started))
	}
	w.settle(work, settling{lease, x.sending, verdicts, w.notices(work, lease, verdicts)})
	if errors.Is(err, smtpclient.ErrWithheld) && !errors.Is(err, queue.ErrLost) {
		deliverPause(x.ctx, claimPause) // the queue is in trouble: it would be claimed again at once
	}
	return report
}

// send runs the transaction over a kept connection, or over a new one when
// there is none or its server left it in the meantime.
func (x *delivery) send() (*backendConn, []smtpclient.Answer, error) {
	b, o := x.w.b, x.origin()
	if c := b.sends.take(o); c != nil && x.become(c, o) {
		if err := x.unprotected(c); err != nil {
			return c, nil, err
		}
		answers, err := c.Send(x.ctx, x.transaction(c))
		if !x.stale(err) {
			return c, answers, x.cut(err)
		}
	}
	c, err := b.dialAs(x.ctx, o)
	if errors.Is(err, smtpclient.ErrPolicy) && x.lease.Envelope.TLSOptional {
		c, err = b.dialFree(x.ctx, o)
	}
	if err != nil {
		return nil, nil, x.cut(err)
	}
	if err := x.unprotected(c); err != nil {
		return c, nil, err
	}
	answers, err := c.Send(x.ctx, x.transaction(c))
	return c, answers, x.cut(err)
}

// origin is the client that the message came from.
func (x *delivery) origin() smtpclient.Origin {
	c := x.lease.Envelope.Client
	return smtpclient.Origin{Addr: c.Addr, Helo: c.Helo, ESMTP: c.ESMTP, ID: string(x.lease.Envelope.ID)}
}

// become has a kept connection speak for o; when it cannot, it is closed.
func (x *delivery) become(c *backendConn, o smtpclient.Origin) bool {
	return c.Become(x.ctx, o) == nil // a new connection will tell why
}

// stale tells whether a kept connection failed in the way that it does when its
// server had left it: at the first command, before anything was said about the
// message.
func (x *delivery) stale(err error) bool {
	var e *smtpclient.Error
	return errors.As(err, &e) && (e.Step == smtpclient.StepMail || e.Step == smtpclient.StepOrigin) && e.Sent == smtpclient.SentNothing && x.ctx.Err() == nil
}

// cut names the end of the delivery's own context as what it is: not the
// backend's fault. In doubt stays in doubt.
func (x *delivery) cut(err error) error {
	var e *smtpclient.Error
	if err == nil || x.ctx.Err() == nil || errors.As(err, &e) && e.InDoubt() {
		return err
	}
	return fmt.Errorf("%w: %w", smtpclient.ErrWithheld, context.Cause(x.ctx))
}

func (x *delivery) transaction(c *backendConn) *smtpclient.Transaction {
	env := x.lease.Envelope
	t := &smtpclient.Transaction{
		From: env.From, Body: &x.body, Size: env.WholeSize(), EightBit: env.Body == mail.Body8BitMIME, UTF8: env.UTF8,
		Ret: env.Ret, EnvID: env.EnvID, RequireTLS: env.RequireTLS && c.Encrypted(), BeforeDot: x.beforeDot,
	}
	if env.RequireTLS {
		t.Ret = mail.RetHdrs // whatever it said (RFC 8689, 5)
	}
	if o := x.origin(); o.Addr.IsValid() {
		t.Origin = &o
	}
	t.Rcpts = make([]smtpclient.Rcpt, len(x.lease.Items))
	dsn := c.Caps().DSN
	for i, item := range x.lease.Items {
		rcpt := &env.Recipients[item.N]
		t.Rcpts[i].Addr = rcpt.Addr
		if !dsn {
			continue
		}
		t.Rcpts[i].Notify, t.Rcpts[i].ORcpt = rcpt.Notify, rcpt.ORcpt
		if rcpt.ORcpt == "" && !rcpt.Orig.IsNull() && rcpt.Orig.IsASCII() {
			t.Rcpts[i].ORcpt = "rfc822;" + rcpt.Orig.String()
		}
		if item.Copy {
			t.Rcpts[i].Notify = mail.NotifyNever // the first delivery reports
		}
	}
	return t
}

// beforeDot asks the queue for the permission to send the final dot (I3). A
// process that was stopped, or a slow store, can make it come too late.
func (x *delivery) beforeDot() error {
	x.mu.Lock()
	defer x.mu.Unlock()
	if x.ctx.Err() != nil {
		return context.Cause(x.ctx)
	}
	if err := x.w.d.cfg.Queue.Renew(x.ctx, x.lease, true); err != nil {
		return err
	}
	x.sending = true
	if !time.Now().Before(x.lease.Until) {
		return fmt.Errorf("the renewal came too late: %w", queue.ErrLost)
	}
	return nil
}

// renew keeps the lease while the backend is slow. When it is lost before the
// final dot the delivery is cut; behind the dot only the answer is left to do.
func (x *delivery) renew() {
	x.mu.Lock()
	defer x.mu.Unlock()
	if x.ended {
		return
	}
	err := x.w.d.cfg.Queue.Renew(x.ctx, x.lease, x.sending)
	if errors.Is(err, queue.ErrLost) && !x.sending {
		x.cancel(err)
		return
	}
	x.timer.Reset(x.w.d.cfg.renewEvery)
}

func (x *delivery) stopRenewing() {
	x.mu.Lock()
	defer x.mu.Unlock()
	x.ended = true
	x.timer.Stop()
}

// verdicts decides about each recipient of the lease.
func (x *delivery) verdicts(c *backendConn, answers []smtpclient.Answer, err error) []deliverVerdict {
	if errors.Is(err, queue.ErrLost) {
		return releaseAll(x.lease, "not sent: "+err.Error())
	}
	cfg := &x.w.d.cfg
	rules := deliverRules{
		schedule: cfg.Schedule, route: x.w.route, null: x.lease.Envelope.From.IsNull(),
		passedOn: c != nil && c.Caps().DSN, searched: cfg.Finder != nil, now: cfg.Now(), jitter: cfg.Jitter(),
	}
	accepted := 0
	for _, a := range answers {
		if a.Step == smtpclient.StepDot || a.Step == smtpclient.StepData || a.Reply.Code == 0 {
			accepted++
		}
	}
	vs := make([]deliverVerdict, len(x.lease.Items))
	for i, item := range x.lease.Items {
		res := deliverResult{err: err, others: accepted > 0}
		if i < len(answers) {
			res.answer = answers[i]
		}
		vs[i] = rules.outcome(item, x.lease.Envelope.Recipients[item.N], res)
	}
	return vs
}

// deliverReport is what a transaction over c tells of its backend. Where the backend
// takes the session for a client's, a refusal of the sender is about that client:
// strangers must not take a backend out of service.
func deliverReport(c *backendConn, answers []smtpclient.Answer, err error) gateReport {
	switch {
	case errors.Is(err, smtpclient.ErrWithheld), errors.Is(err, smtpclient.ErrSource):
		return gateReport{}
	case errors.Is(err, errUnprotected):
		return gateReport{ok: true} // the server is there
	case err != nil:
		return gateReport{err: err}
	}
	for _, a := range answers {
		switch {
		case a.Reply.Positive():
			return gateReport{ok: true}
		case a.Reply.Code == 421, a.Step == smtpclient.StepMail && misconfigured(a) && !c.ForClient():
			return gateReport{err: fmt.Errorf("in reply to %s: %w", a.Step, &a.Reply)}
		}
	}
	return gateReport{ok: true}
}

// settling is what is recorded about a lease.
type settling struct {
	lease    *queue.Lease
	sending  bool // the lease was renewed for the final dot
	verdicts []deliverVerdict
	notices  []queue.NewMessage
}

// settle records what became of a lease. An error with unknown outcome is
// answered by the same call again, as the queue allows: a "done" that is never
// recorded means a duplicate. So the worker stays with it, and keeps the lease,
// for as long as the store is in trouble (a full disk may take hours); behind the
// end of work, for settleTime.
func (w *deliverWorker) settle(work context.Context, s settling) {
	outcomes := make([]queue.Outcome, len(s.verdicts))
	for i := range s.verdicts {
		outcomes[i] = s.verdicts[i].Outcome
	}
	ctx := context.WithoutCancel(work)
	var end time.Time // zero as long as work goes on
	var err error
	for wait := 50 * time.Millisecond; ; wait = min(2*wait, 5*time.Second) {
		if err = w.settleOnce(ctx, s, outcomes); err == nil || errors.Is(err, queue.ErrLost) || errors.Is(err, queue.ErrClosed) {
			break
		}
		w.log.Warn("the outcome of a delivery could not be recorded, trying again", "id", string(s.lease.Envelope.ID), "error", err)
		if end.IsZero() && work.Err() != nil {
			end = time.Now().Add(settleTime)
		}
		if !end.IsZero() && time.Now().After(end) {
			break
		}
		deliverPause(ctx, wait)
		_ = w.d.cfg.Queue.Renew(ctx, s.lease, s.sending) // when it is lost, Settle says so
	}
	if err != nil {
		w.log.Warn("the outcome of a delivery was not recorded", "id", string(s.lease.Envelope.ID), "error", err)
	}
	w.report(ctx, s.lease, s.verdicts, err)
}

func (w *deliverWorker) settleOnce(ctx context.Context, s settling, outcomes []queue.Outcome) error {
	ctx, cancel := context.WithTimeout(ctx, settleTime)
	defer cancel()
	return w.d.cfg.Queue.Settle(ctx, s.lease, outcomes, s.notices...)
}

// report logs each recipient's outcome and tells the metrics.
func (w *deliverWorker) report(ctx context.Context, lease *queue.Lease, verdicts []deliverVerdict, settled error) {
	metrics := &w.d.cfg.Metrics
	for i := range verdicts {
		v := &verdicts[i]
		if settled != nil && v.Kind != queue.Done {
			continue // ignored by the queue
		}
		if metrics.Outcome != nil {
			metrics.Outcome(w.route, v.Kind)
		}
		rcpt := lease.Envelope.Recipients[v.N].Addr
		level := slog.LevelInfo
		if v.doubt != nil && metrics.Doubt != nil {
			metrics.Doubt(*v.doubt)
		}
		if v.alarm != "" {
			level = slog.LevelWarn
			if metrics.Alarm != nil {
				metrics.Alarm(DeliverAlarm{ID: lease.Envelope.ID, Route: w.route, Rcpt: rcpt, Text: v.alarm, Reply: v.Reply})
			}
		}
		if !w.log.Enabled(ctx, level) {
			continue
		}
		attrs := [...]slog.Attr{slog.String("id", string(lease.Envelope.ID)), slog.String("rcpt", rcpt.String()),
			slog.String("outcome", string(v.Kind)), slog.String("reply", v.Reply), slog.String("alarm", v.alarm)}
		n := len(attrs)
		if v.alarm == "" {
			n--
		}
		w.log.LogAttrs(ctx, level, "attempt", attrs[:n]...)
	}
}

// lazyBody opens a message when the backend wants it: a refused recipient and a
// dead connection cost no read.
type lazyBody struct {
	ctx   context.Context
	queue queue.Deliverer
	env   *mail.Envelope
	rc    io.ReadCloser
	whole io.Reader // Trace, and then rc
}

func (l *lazyBody) Read(p []byte) (int, error) {
	if l.rc == nil {
		rc, err := l.queue.Open(l.ctx, l.env.ID)
		if err != nil {
			return 0, fmt.Errorf("open the stored message: %w", err)
		}
		l.rc, l.whole = rc, l.env.Whole(rc)
	}
	return l.whole.Read(p)
}

func (l *lazyBody) close() {
	if l.rc != nil {
		_ = l.rc.Close() // it was only read
	}
}
