package daemon

import (
	"context"
	"net"
	"sync"
	"sync/atomic"
	"time"

	"crossfade/backfill"
	"crossfade/backfill/imapconn"
	"crossfade/config"
)

// copiers is the Copier of the configuration in force. A reload puts another one
// in its place; passes that run end with the one they began with.
type copiers struct {
	shared *backfill.Shared
	now    atomic.Pointer[backfill.Copier]
}

// Pass implements cutover.Copier.
func (c *copiers) Pass(ctx context.Context, job backfill.Job, o backfill.Options) (backfill.Report, error) {
	return c.now.Load().Pass(ctx, job, o)
}

// Verify implements cutover.Copier.
func (c *copiers) Verify(ctx context.Context, job backfill.Job) (backfill.Verification, error) {
	return c.now.Load().Verify(ctx, job)
}

// Plan implements cutover.Looker.
func (c *copiers) Plan(ctx context.Context, job backfill.Job) (backfill.Plan, error) {
	return c.now.Load().Plan(ctx, job)
}

// Inventory implements cutover.Looker.
func (c *copiers) Inventory(ctx context.Context, job backfill.Job) (backfill.Inventory, error) {
	return c.now.Load().Inventory(ctx, job)
}

func (d *Daemon) openCopier() {
	b := d.cfg.Backfill
	d.copier = &copiers{shared: backfill.NewShared(int64(b.Memory), rates(b.Rates.Old).All, rates(b.Rates.New).All)}
	d.copier.shared.SetConnections(d.cfg.Backends.Old.MaxIMAPConnections, d.cfg.Backends.New.MaxIMAPConnections)
	d.copier.now.Store(d.newCopier(d.cfg))
}

// retune puts the section backfill of a configuration into force.
func (d *Daemon) retune(cfg *config.Config) {
	if d.copier == nil {
		return // nothing runs yet
	}
	d.copier.shared.SetRates(rates(cfg.Backfill.Rates.Old).All, rates(cfg.Backfill.Rates.New).All)
	d.copier.now.Store(d.newCopier(cfg))
}

func (d *Daemon) newCopier(cfg *config.Config) *backfill.Copier {
	b := cfg.Backfill
	return &backfill.Copier{
		Ledger: d.store, Log: d.log, CrashPoint: d.opts.CrashPoint, Shared: d.copier.shared,
		Connections: b.Connections, Patience: time.Duration(b.Patience),
		SourceRates: rates(b.Rates.Old), DestRates: rates(b.Rates.New),
		Daily:  backfill.Daily{Source: int64(b.Daily.Old), Dest: int64(b.Daily.New)},
		Filter: filter(b.Filter), DeleteCeiling: ceiling(b.DeleteCeiling),
		Dialer: imapconn.Dialer{NetDial: d.dialIMAP}, TempDir: d.tempDir(),
	}
}

// newTail makes what listens for changes on old, nil when nothing is to listen.
func (d *Daemon) newTail() *backfill.Tail {
	n := d.cfg.Backfill.TailConns
	if n <= 0 {
		return nil
	}
	polls := min(max(n/10, 1), 4)
	standing := n - polls
	if standing == 0 {
		standing = -1 // none; 0 is the default of the Tail
	}
	return backfill.NewTail(backfill.TailConfig{
		Standing: standing, Polls: polls, Log: d.log, Dialer: imapconn.Dialer{NetDial: d.dialIMAP},
	})
}

// dialIMAP connects to a mailbox and counts the connection until it is closed.
func (d *Daemon) dialIMAP(ctx context.Context, network, address string) (net.Conn, error) {
	nd := net.Dialer{Timeout: dialTime}
	conn, err := nd.DialContext(ctx, network, address)
	if err != nil {
		return nil, err
	}
	side := "old"
	if s := d.mailboxes.sides.Load(); address == s.new.server.Address && address != s.old.server.Address {
		side = "new"
	}
	d.metrics.IMAPConnections(side, 1)
	return &countedConn{Conn: conn, closed: sync.OnceFunc(func() { d.metrics.IMAPConnections(side, -1) })}, nil
}

// dialTime is how long a server may take to answer a connection.
const dialTime = 30 * time.Second

// countedConn tells when it is closed.
type countedConn struct {
	net.Conn
	closed func()
}

// Close closes the connection.
func (c *countedConn) Close() error {
	c.closed()
	return c.Conn.Close()
}

func filter(f config.BackfillFilter) backfill.Filter {
	return backfill.Filter{
		Since: f.Since.Time(), Before: f.Before.Time(), MaxSize: int64(f.MaxSize), Include: f.Folders, Exclude: f.Exclude,
	}
}

// ceiling turns never into the Copier's way to say so.
func ceiling(s config.Share) float64 {
	if s.Percent <= 0 {
		return -1
	}
	return float64(s.Percent) / 100
}

func rates(r config.BackfillRate) backfill.Rates {
	return backfill.Rates{
		All:  backfill.Rate{Bytes: int64(r.Bytes), Messages: float64(r.Messages)},
		User: backfill.Rate{Bytes: int64(r.UserBytes), Messages: float64(r.UserMessages)},
	}
}
