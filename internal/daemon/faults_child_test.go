package daemon

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"os"
	"strconv"
	"strings"
	"sync/atomic"
	"syscall"
	"testing"
	"time"

	"crossfade/config"
	"crossfade/mail"
	"crossfade/queue"
	"crossfade/relay"
	"crossfade/router"
)

// The environment of a child: the test binary, started again as the relay.
const (
	childConfig  = "CROSSFADE_FAULTS_CHILD"   // configuration file; set: be the relay
	childLog     = "CROSSFADE_FAULTS_LOG"     // file for the log, JSON lines
	childCrash   = "CROSSFADE_CRASH"          // NAME:COUNT: SIGKILL at the COUNTth passage of that crash point
	childVariant = "CROSSFADE_FAULTS_VARIANT" // broken on purpose; see wrapBroken
)

// TestFaultsChild is the relay that the other tests here kill. It is no test.
func TestFaultsChild(t *testing.T) {
	path := os.Getenv(childConfig)
	if path == "" {
		return
	}
	if err := runChild(path); err != nil {
		fmt.Fprintln(os.Stderr, "child:", err)
		os.Exit(1)
	}
	os.Exit(0)
}

// runChild serves until its standard input ends, as it does with its parent.
func runChild(path string) error {
	cfg, err := config.Load(path)
	if err != nil {
		return err
	}
	logFile, err := os.OpenFile(os.Getenv(childLog), os.O_CREATE|os.O_APPEND|os.O_WRONLY, 0o600)
	if err != nil {
		return err
	}
	log := slog.New(slog.NewJSONHandler(logFile, &slog.HandlerOptions{Level: childLevel(cfg)}))
	d, err := New(cfg, log, Options{CrashPoint: crashFromEnv()})
	if err != nil {
		return err
	}
	ctx, stop := context.WithCancel(context.Background())
	go func() {
		_, _ = io.Copy(io.Discard, os.Stdin)
		stop()
	}()
	go func() {
		<-d.Started()
		fmt.Printf("ready %s %s\n", d.SMTPAddrs()[0], d.AdminURL())
	}()
	if v := os.Getenv(childVariant); v != "" {
		return d.runBroken(ctx, v)
	}
	return d.Run(ctx)
}

func childLevel(cfg *config.Config) slog.Level {
	if cfg.Log.Level == "info" {
		return slog.LevelInfo
	}
	return slog.LevelWarn
}

func crashFromEnv() func(string) {
	point, count, ok := strings.Cut(os.Getenv(childCrash), ":")
	if !ok {
		return nil
	}
	left := &atomic.Int64{}
	n, _ := strconv.Atoi(count)
	left.Store(int64(n))
	return func(name string) {
		if name == point && left.Add(-1) == 0 {
			_ = syscall.Kill(os.Getpid(), syscall.SIGKILL)
			select {} // until the signal has its effect
		}
	}
}

// runBroken is Run with a queue that breaks a promise.
func (d *Daemon) runBroken(ctx context.Context, variant string) error {
	defer func() { _ = d.close() }()
	if err := d.open(context.Background()); err != nil {
		return err
	}
	q, err := wrapBroken(d.store, variant)
	if err != nil {
		return err
	}
	d.server, err = relay.NewServer(relay.ServerConfig{Hostname: d.cfg.Hostname, Router: d.router, Queue: q, Verifier: d.verifier, Logger: d.log})
	if err != nil {
		return err
	}
	d.deliverer, err = relay.NewDeliverer(relay.DelivererConfig{
		Queue: q, Backends: d.backends, Hostname: d.cfg.Hostname, Resolve: d.resolveSender, Logger: d.log,
		Finder: d.brokenFinder(variant), DoubtWait: time.Duration(d.cfg.Queue.DoubtWait),
	})
	if err != nil {
		return err
	}
	p := newParts()
	p.start("delivery", d.deliverer.Run)
	p.start("admin API", func(ctx context.Context) error { return d.admin.Serve(ctx, d.adminListener) })
	for _, l := range d.smtpListeners {
		p.start("SMTP", func(context.Context) error { return d.server.Serve(l) })
	}
	close(d.started)
	select {
	case <-ctx.Done():
	case err = <-p.failed:
	}
	d.stop(p)
	return err
}

// brokenQueue is the store as relay sees it.
type brokenQueue interface {
	queue.Enqueuer
	queue.Deliverer
}

// The variants that must make the checker fail.
const (
	ackEarly     = "ack-early"     // 250 before the message is stored (I1)
	settleEarly  = "settle-early"  // gone from the queue before the backend answered (I2)
	routeEarly   = "route-early"   // the route of the moment of arrival (I3, I4)
	noPermission = "no-permission" // the final dot without asking (I3, I7)
)

func wrapBroken(q brokenQueue, variant string) (brokenQueue, error) {
	switch variant {
	case "none", findsAll, findsNothing:
		return q, nil
	case ackEarly:
		return &earlyAck{q}, nil
	case settleEarly:
		return &earlySettle{q}, nil
	case routeEarly:
		return &earlyRoute{q}, nil
	case noPermission:
		return &unasked{q}, nil
	}
	return nil, errors.New("no such variant: " + variant)
}

type earlyAck struct{ brokenQueue }

func (b *earlyAck) Put(_ context.Context, env *mail.Envelope, body io.Reader) error {
	data, err := io.ReadAll(body)
	if err != nil {
		return err
	}
	mine := *env
	time.AfterFunc(30*time.Millisecond, func() { _ = b.brokenQueue.Put(context.Background(), &mine, bytes.NewReader(data)) })
	return nil
}

type earlySettle struct{ brokenQueue }

func (b *earlySettle) Renew(ctx context.Context, l *queue.Lease, sending bool) error {
	if err := b.brokenQueue.Renew(ctx, l, sending); err != nil || !sending {
		return err
	}
	var out []queue.Outcome
	for _, it := range l.Items {
		out = append(out, queue.Outcome{N: it.N, Kind: queue.Done})
	}
	return b.brokenQueue.Settle(ctx, l, out)
}

func (b *earlySettle) Settle(ctx context.Context, l *queue.Lease, out []queue.Outcome, msgs ...queue.NewMessage) error {
	err := b.brokenQueue.Settle(ctx, l, out, msgs...)
	if errors.Is(err, queue.ErrLost) {
		return nil
	}
	return err
}

// userStates is the part of router.Table that a route needs.
type userStates interface {
	User(ctx context.Context, key string) (router.User, error)
}

type earlyRoute struct{ brokenQueue }

func (b *earlyRoute) Put(ctx context.Context, env *mail.Envelope, body io.Reader) error {
	store, ok := b.brokenQueue.(userStates)
	if !ok {
		return errors.New("the store knows no users")
	}
	for i := range env.Recipients {
		r := &env.Recipients[i]
		r.Hint = mail.Old
		if u, err := store.User(ctx, r.User); err == nil {
			if route, held := u.State.Route(); !held {
				r.Hint = route
			}
		}
		r.User = "" // nobody's: it does not follow its user
	}
	return b.brokenQueue.Put(ctx, env, body)
}

type unasked struct{ brokenQueue }

func (b *unasked) Renew(ctx context.Context, l *queue.Lease, _ bool) error {
	_ = b.brokenQueue.Renew(ctx, l, false)
	return nil
}
