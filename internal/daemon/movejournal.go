package daemon

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"

	"crossfade/config"
	"crossfade/journal"
	"crossfade/store/transfer"
)

// newest is a store that is read as a whole, and still has the newest of the journal.
type newest interface {
	Pending(ctx context.Context, after uint64, max int) ([]journal.Batch, error)
}

// restOutbox is an outbox that is only read: what it has stays, as when a process dies
// when a block is on the shelf, and the next start forgets it.
type restOutbox struct{ newest }

// Forget implements journal.Outbox.
func (restOutbox) Forget(context.Context, uint64) error { return nil }

// finishJournal moves the newest of the journal, which a process that was killed left in
// the database, into the journal's files: these are what goes along with a copy of the
// store. It gives where they are and how many batches were moved; a store in Redis, which
// has its journal in itself, and one without anything to move give nothing.
func finishJournal(ctx context.Context, cfg *config.Config, store string, src transfer.Source) (dir string, moved int, err error) {
	box, ok := src.(newest)
	if !ok {
		return "", 0, nil
	}
	first, err := box.Pending(ctx, 0, 1)
	if err != nil || len(first) == 0 {
		return "", 0, err
	}
	dir = journalOf(cfg, store)
	fail := func(err error) (string, int, error) {
		return dir, 0, fmt.Errorf("the newest of the journal is in the store's database, and cannot be moved into the files in %s: %w "+
			"(name the configuration with -c when audit.dir is set; else start crossfade on this store and stop it again, and copy then)", dir, err)
	}
	if _, err := os.Stat(dir); errors.Is(err, fs.ErrNotExist) && first[0].Number > 1 {
		return fail(errors.New("the files that came before are not there"))
	}
	shelf, err := journal.OpenDir(dir)
	if err != nil {
		return fail(err)
	}
	defer func() { err = errors.Join(err, shelf.Close()) }()
	head, err := shelf.Head(ctx)
	if err == nil && first[0].Number > head.Last+1 {
		err = fmt.Errorf("the files end with batch %d, and the database goes on with %d", head.Last, first[0].Number)
	}
	if err != nil {
		return fail(err)
	}
	if moved, err = (&journal.Journal{Outbox: restOutbox{box}, Shelf: shelf}).Drain(ctx, 0); err != nil {
		return fail(err)
	}
	return dir, moved, nil
}

// journalOf is where the journal of an embedded store is. cfg counts when it is that
// store's.
func journalOf(cfg *config.Config, store string) string {
	if cfg != nil && cfg.Audit.Dir != "" {
		mine, err1 := filepath.Abs(cfg.Store)
		this, err2 := filepath.Abs(store)
		if err1 == nil && err2 == nil && mine == this {
			return cfg.Audit.Dir
		}
	}
	return filepath.Join(store, "journal")
}
