package daemon

import (
	"context"
	"encoding/json"
	"fmt"

	"crossfade/admin"
	"crossfade/backfill"
)

// openAuditLog opens the log of what operators did. Its lines are signed with the
// key of the installation, and the store knows the last one.
func (d *Daemon) openAuditLog(ctx context.Context, counts *admin.APIMetrics) error {
	key, err := d.audits.key(ctx)
	if err != nil {
		return err
	}
	node := "local" // an embedded store has one log, whatever the machine is called
	if shared(d.cfg) {
		node = d.nodeName()
	}
	d.audit, err = admin.OpenAuditLog(auditPath(d.cfg), admin.AuditOptions{
		Key: key, Node: node, Heads: headBook{d.store, node}, Log: d.log,
		Grown: func(seq uint64) { counts.Sequence.Set(float64(seq)) },
	})
	if err != nil {
		return fmt.Errorf("audit log: %w", err)
	}
	d.log.Info("the audit log is open", "file", auditPath(d.cfg), "last_line", d.audit.Head())
	return nil
}

// headRecords is the user, who is none, under whom the store keeps the last line of
// each node's audit log.
const headRecords = "audit-log"

// headBook keeps the last line of an audit log in the store.
type headBook struct {
	ledger backfill.Ledger
	name   string
}

var _ admin.HeadKeeper = headBook{}

// LoadHead implements admin.HeadKeeper.
func (b headBook) LoadHead(ctx context.Context) (h admin.AuditHead, err error) {
	records, err := b.ledger.LoadLedger(ctx, headRecords)
	if err != nil || len(records[b.name]) == 0 {
		return h, err
	}
	if err := json.Unmarshal(records[b.name], &h); err != nil {
		return h, fmt.Errorf("the record of the audit log of %s is damaged: %w", b.name, err)
	}
	return h, nil
}

// SaveHead implements admin.HeadKeeper.
func (b headBook) SaveHead(ctx context.Context, h admin.AuditHead) error {
	data, err := json.Marshal(h)
	if err != nil {
		return err
	}
	return b.ledger.SaveLedger(ctx, headRecords, b.name, data)
}
