package daemon

import (
	"cmp"
	"context"
	"encoding/json"
	"fmt"
	"log/slog"
	"slices"
	"strings"
	"sync"
	"time"

	"crossfade/dnswatch"
)

// Bounds of what is kept of stragglers.
const (
	strayDays    = 60
	straySources = 50 // of one day; what comes from more counts for "others"
	otherSources = "others"
	unknownHost  = "unknown"
)

// strayBook counts, by day and source, the mail that came to the old side of
// users who have left it. It is kept in the ledger, a record for each node. A
// count that was not saved when the process died is missing: it is a figure for
// people, and the mail itself was carried over.
type strayBook struct {
	ledger interface {
		LoadLedger(ctx context.Context, user string) (map[string][]byte, error)
		SaveLedger(ctx context.Context, user, name string, data []byte) error
	}
	node string
	log  *slog.Logger
	now  func() time.Time

	mu   sync.Mutex
	days map[string]map[string]int // by day, then source; what is not saved yet
	wake chan struct{}
}

const strayRecord = "stragglers/" // the node's name follows

func newStrayBook(d *Daemon) *strayBook {
	return &strayBook{ledger: d.store, node: d.nodeName(), log: d.log, now: time.Now, days: map[string]map[string]int{}, wake: make(chan struct{}, 1)}
}

// note counts messages, n of them, and the hosts of which that is known. It does
// not block, and may be called on a nil book.
func (b *strayBook) note(n int, hosts []string) {
	if b == nil || n <= 0 {
		return
	}
	b.mu.Lock()
	day := b.now().UTC().Format(time.DateOnly)
	if b.days[day] == nil {
		b.days[day] = map[string]int{}
	}
	for _, h := range hosts[:min(len(hosts), n)] {
		addTo(b.days[day], cmp.Or(h, unknownHost), 1)
	}
	addTo(b.days[day], unknownHost, n-min(len(hosts), n))
	b.mu.Unlock()
	select {
	case b.wake <- struct{}{}:
	default:
	}
}

// addTo adds to a source, within the bound of sources.
func addTo(sources map[string]int, host string, n int) {
	if n == 0 {
		return
	}
	if _, known := sources[host]; !known && len(sources) >= straySources {
		host = otherSources
	}
	sources[host] += n
}

// run saves what is noted until ctx ends, and then what is left.
func (b *strayBook) run(ctx context.Context) error {
	for {
		select {
		case <-ctx.Done():
			last, cancel := context.WithTimeout(context.WithoutCancel(ctx), scrapeTime)
			defer cancel()
			b.flush(last)
			return nil
		case <-b.wake:
			b.flush(ctx)
		}
	}
}

// flush adds what is not saved yet to this node's record.
func (b *strayBook) flush(ctx context.Context) {
	b.mu.Lock()
	fresh := b.days
	b.days = map[string]map[string]int{}
	b.mu.Unlock()
	if len(fresh) == 0 {
		return
	}
	err := b.save(ctx, fresh)
	if err == nil {
		return
	}
	b.log.Warn("stragglers: the counts cannot be saved now; they are with the next ones", "err", err)
	b.mu.Lock()
	defer b.mu.Unlock()
	b.days = joined(fresh, b.days)
}

func (b *strayBook) save(ctx context.Context, fresh map[string]map[string]int) error {
	records, err := b.ledger.LoadLedger(ctx, dnsRecords)
	if err != nil {
		return err
	}
	kept := map[string]map[string]int{}
	if data := records[strayRecord+b.node]; data != nil {
		if err := json.Unmarshal(data, &kept); err != nil {
			b.log.Error("stragglers: the counts of before cannot be read and are begun anew", "err", err)
			kept = map[string]map[string]int{}
		}
	}
	kept = joined(kept, fresh)
	first := b.now().UTC().AddDate(0, 0, -strayDays).Format(time.DateOnly)
	for day := range kept {
		if day < first {
			delete(kept, day)
		}
	}
	data, err := json.Marshal(kept)
	if err != nil {
		return err
	}
	return b.ledger.SaveLedger(ctx, dnsRecords, strayRecord+b.node, data)
}

// joined adds the counts of b to those of a.
func joined(a, b map[string]map[string]int) map[string]map[string]int {
	for day, sources := range b {
		if a[day] == nil {
			a[day] = map[string]int{}
		}
		for host, n := range sources {
			addTo(a[day], host, n)
		}
	}
	return a
}

// Stragglers implements dnswatch.Stragglers, for all nodes.
func (b *strayBook) Stragglers(ctx context.Context, since time.Time) ([]dnswatch.StragglerCount, error) {
	records, err := b.ledger.LoadLedger(ctx, dnsRecords)
	if err != nil {
		return nil, err
	}
	all := map[string]map[string]int{}
	for name, data := range records {
		var days map[string]map[string]int
		if !strings.HasPrefix(name, strayRecord) {
			continue
		}
		if err := json.Unmarshal(data, &days); err != nil {
			return nil, fmt.Errorf("the record %s is damaged: %w", name, err)
		}
		all = joined(all, days)
	}
	b.mu.Lock()
	all = joined(all, b.days)
	b.mu.Unlock()
	var out []dnswatch.StragglerCount
	for day, sources := range all {
		for host, n := range sources {
			if day >= since.UTC().Format(time.DateOnly) {
				out = append(out, dnswatch.StragglerCount{Day: day, Source: host, Messages: n})
			}
		}
	}
	slices.SortFunc(out, func(a, b dnswatch.StragglerCount) int {
		return cmp.Or(strings.Compare(a.Day, b.Day), b.Messages-a.Messages, strings.Compare(a.Source, b.Source))
	})
	return out, nil
}
