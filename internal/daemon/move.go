package daemon

import (
	"context"
	"errors"
	"fmt"
	"path/filepath"
	"strings"

	"crossfade/config"
	"crossfade/store/disk"
	"crossfade/store/redis"
	"crossfade/store/transfer"
)

// What CopyStore and AuditStore give; see package transfer.
type (
	CopyReport   = transfer.Report
	CopyProgress = transfer.Progress
	CopyStep     = transfer.Step
	StoreAudit   = transfer.Audit
)

// Errors of stores that are moved or looked at.
var (
	ErrStoreInUse    = transfer.ErrInUse
	ErrStoreNotEmpty = transfer.ErrNotEmpty
	ErrStorePartial  = transfer.ErrPartial
)

// redisAt makes the way to the Redis of a URL. The section redis of cfg says
// the rest; nil stands for the defaults.
func redisAt(cfg *config.Config, url string) (*redis.Server, error) {
	c := *config.Default()
	if cfg != nil {
		c = *cfg
	}
	c.Store = url
	server, err := DialRedis(&c, nil)
	if err != nil {
		return nil, fmt.Errorf("%s://...: %w", strings.SplitN(url, "://", 2)[0], err)
	}
	return server, nil
}

func isURL(store string) bool { return strings.Contains(store, "://") }

// nameOf is how people know a store; it holds no secret.
func nameOf(cfg *config.Config, store string) (string, error) {
	if !isURL(store) {
		return filepath.Abs(store)
	}
	server, err := redisAt(cfg, store)
	if err != nil {
		return "", err
	}
	return server.String(), server.Close()
}

// StoreCopy says what is copied where: directories, or URLs of Redis.
type StoreCopy struct {
	From, To string
	Config   *config.Config // its section redis counts; nil: the defaults
	Discard  bool           // what an earlier copy that was killed left is removed first
	Progress CopyProgress   // nil: none
}

// CopyStore copies a store to a new one: all or nothing, compared record by
// record in the end. Neither may be in use. The source is not changed, but for its
// journal: what a process that was killed left of it in the database is put into the
// journal's files, as the next start would do.
func CopyStore(ctx context.Context, c StoreCopy) (CopyReport, error) {
	cfg, from, to := c.Config, c.From, c.To
	name, err := nameOf(cfg, from)
	if err != nil {
		return CopyReport{}, err
	}
	target, err := nameOf(cfg, to)
	if err != nil {
		return CopyReport{}, err
	}
	if name == target {
		return CopyReport{}, errors.New("source and target are the same store")
	}
	src, err := openSource(ctx, cfg, from)
	if err != nil {
		return CopyReport{}, err
	}
	defer src.Close()
	if c.Discard {
		if err := discardPartial(ctx, cfg, to); err != nil {
			return CopyReport{}, err
		}
	}
	dir, moved, err := finishJournal(ctx, cfg, from, src)
	if err != nil {
		return CopyReport{}, err
	}
	sink, err := openSink(ctx, cfg, to, name)
	if err != nil {
		return CopyReport{}, err
	}
	rep, err := transfer.Copy(ctx, src, sink, c.Progress)
	rep.Journal, rep.JournalMoved = dir, moved
	return rep, err
}

func openSource(ctx context.Context, cfg *config.Config, store string) (transfer.Source, error) {
	if !isURL(store) {
		return disk.OpenSource(store)
	}
	server, err := redisAt(cfg, store)
	if err != nil {
		return nil, err
	}
	return redis.OpenSource(ctx, server)
}

func openSink(ctx context.Context, cfg *config.Config, store, from string) (transfer.Sink, error) {
	if !isURL(store) {
		return disk.OpenSink(store)
	}
	server, err := redisAt(cfg, store)
	if err != nil {
		return nil, err
	}
	return redis.OpenSink(ctx, server, from)
}

func discardPartial(ctx context.Context, cfg *config.Config, store string) error {
	if !isURL(store) {
		_, err := disk.DiscardPartial(store)
		return err
	}
	server, err := redisAt(cfg, store)
	if err != nil {
		return err
	}
	_, err = redis.DiscardPartial(ctx, server)
	return err
}

// AuditStore looks whether a store is whole and, with repair, makes it so as
// far as that is possible. An embedded store must not be in use; nodes on Redis
// may go on.
func AuditStore(ctx context.Context, cfg *config.Config, store string, repair bool) (StoreAudit, error) {
	if !isURL(store) {
		return disk.Audit(ctx, store, repair)
	}
	server, err := redisAt(cfg, store)
	if err != nil {
		return StoreAudit{}, err
	}
	return redis.Audit(ctx, server, repair)
}
