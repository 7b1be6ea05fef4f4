package daemon

import (
	"context"
	"fmt"
	"path/filepath"
	"time"

	"crossfade/config"
	"crossfade/journal"
	"crossfade/store/redis"
)

// journalDir is where the journal lies beside the embedded store.
func journalDir(cfg *config.Config) string {
	if cfg.Audit.Dir != "" {
		return cfg.Audit.Dir
	}
	return filepath.Join(cfg.Store, "journal")
}

// openJournal makes the journal ready before anything new is accepted: what an
// earlier process left in the outbox is known to belong behind its last block.
func (d *Daemon) openJournal(ctx context.Context) error {
	d.journal = &journal.Journal{Outbox: d.store, Keep: time.Duration(d.cfg.Audit.Keep), Log: d.log, CrashPoint: d.opts.CrashPoint}
	if s, ok := d.store.(*redis.Store); ok {
		d.journal.Shelf = s.Shelf()
	} else {
		dir, err := journal.OpenDir(journalDir(d.cfg))
		if err != nil {
			return fmt.Errorf("audit.dir: %w", err)
		}
		d.journal.Shelf, d.closeJournal = dir, dir.Close
	}
	// No more than that: a full disk of the journal must not keep mail out, which
	// the queue has a reserve for.
	if err := d.journal.Begin(ctx); err != nil {
		return fmt.Errorf("audit: the journal: %w", err)
	}
	return nil
}
