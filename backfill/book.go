package backfill

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"maps"
	"net/url"
	"slices"
	"strings"
	"sync"
	"time"
)

// agreed are the flags that both sides had last, by UID of the source: sorted
// and joined by spaces.
type agreed map[uint32]string

func encodeAgreed(a agreed) ([]byte, error) {
	sets := map[string]uidSet{}
	for uid, flags := range a {
		sets[flags] = append(sets[flags], uid)
	}
	for _, s := range sets {
		slices.Sort(s)
	}
	return json.Marshal(sets)
}

func decodeAgreed(data []byte) (agreed, error) {
	a := agreed{}
	if len(data) == 0 {
		return a, nil
	}
	var sets map[string]uidSet
	if err := json.Unmarshal(data, &sets); err != nil {
		return nil, err
	}
	for flags, uids := range sets {
		for _, u := range uids {
			a[u] = flags
		}
	}
	return a, nil
}

// through gives the flags by the UIDs of the other side.
func (a agreed) through(p pairs) agreed {
	out := make(agreed, len(a))
	for uid, flags := range a {
		if to, ok := p.dest(uid); ok {
			out[to] = flags
		}
	}
	return out
}

// book reads and writes the records of one user. One for passes back gives and
// takes records as these see them.
type book struct {
	ledger Ledger
	user   string
	back   bool

	anewMu sync.Mutex // for a change of that record

	mu   sync.Mutex // the lanes of a pass write at once
	data map[string][]byte
	keys map[string]string // of a book for passes back: the name in the ledger by that on the source
}

func (b *book) known(name string) []byte {
	b.mu.Lock()
	defer b.mu.Unlock()
	return b.data[name]
}

func openBook(ctx context.Context, l Ledger, user string) (*book, error) {
	data, err := l.LoadLedger(ctx, user)
	if err != nil {
		return nil, fmt.Errorf("load the ledger of %s: %w", user, err)
	}
	return &book{ledger: l, user: user, data: data}, nil
}

// turn makes it a book for passes back: its records are found by their names on
// the other side.
func (b *book) turn() error {
	recs, err := b.all()
	if err != nil {
		return err
	}
	b.back, b.keys = true, map[string]string{}
	// Where several folders had one counterpart, the one that was there last counts.
	slices.SortStableFunc(recs, func(x, y *record) int {
		if x.Missed == y.Missed {
			return 0
		} else if x.Missed {
			return -1
		}
		return 1
	})
	for _, r := range recs {
		if r.Dest != "" {
			b.keys[r.Dest] = r.Source
		}
	}
	return nil
}

// record gives what is known of a folder of the source, an empty record when it
// is new.
func (b *book) record(wire string) (*record, error) {
	if !b.back || isAttic(wire) {
		return b.read(wire)
	}
	b.mu.Lock()
	key := b.keys[wire]
	b.mu.Unlock()
	if key == "" {
		return &record{Source: wire, back: true}, nil
	}
	r, err := b.read(key)
	if err != nil {
		return nil, err
	}
	return r.inverted(), nil
}

// at gives the record of a folder of the source whose place on the destination is
// known: that place may have been another folder's, which is gone.
func (b *book) at(wire, dest string) (*record, error) {
	r, err := b.record(wire)
	if err != nil || !b.back || r.Dest != "" || len(b.known(recordName(folderPrefix, dest))) == 0 {
		return r, err
	}
	if r, err = b.read(dest); err != nil {
		return nil, err
	}
	r = r.inverted()
	r.Source = wire
	return r, nil
}

// read gives a record as it stands in the ledger.
func (b *book) read(key string) (*record, error) {
	r := &record{Source: key}
	data := b.known(recordName(folderPrefix, key))
	if len(data) == 0 {
		return r, nil
	}
	if err := json.Unmarshal(data, r); err != nil {
		return nil, fmt.Errorf("ledger of %s, folder %q: %w (remove the record to have the folder matched by content again)", b.user, key, err)
	}
	return r, nil
}

// all gives the records of all folders, in the order of their names in the ledger.
func (b *book) all() ([]*record, error) {
	b.mu.Lock()
	names := slices.Sorted(maps.Keys(b.data))
	b.mu.Unlock()
	var out []*record
	for _, name := range names {
		escaped, ok := strings.CutPrefix(name, folderPrefix)
		if !ok {
			continue
		}
		key, err := url.PathUnescape(escaped)
		if err != nil {
			return nil, fmt.Errorf("ledger of %s: the record %q has no name of a folder: %w", b.user, name, err)
		}
		if isAttic(key) {
			continue
		}
		r, err := b.read(key)
		if err != nil {
			return nil, err
		}
		if b.back {
			r = r.inverted()
		}
		out = append(out, r)
	}
	return out, nil
}

// folders gives the names on the wire of the folders that have a record, on the
// source and on the destination.
func (b *book) folders() (src, dst []string, err error) {
	recs, err := b.all()
	for _, r := range recs {
		if r.SrcValidity != 0 {
			src, dst = append(src, r.Source), append(dst, r.Dest)
		}
	}
	return src, dst, err
}

// others gives the folders of the source that the ledger knows beside those,
// sorted.
func (b *book) others(listed map[string]bool) ([]string, error) {
	recs, err := b.all()
	var out []string
	for _, r := range recs {
		if r.Source != "" && !listed[r.Source] {
			out = append(out, r.Source)
		}
	}
	slices.Sort(out)
	return slices.Compact(out), err
}

// agreed gives the flags that both sides of a folder had last.
func (b *book) agreed(r *record) (agreed, error) {
	a, err := decodeAgreed(b.known(recordName(flagsPrefix, r.key())))
	if err != nil {
		return nil, fmt.Errorf("ledger of %s, flags of folder %q: %w (remove the record to have them compared again)", b.user, r.key(), err)
	}
	if r.back {
		a = a.through(r.Pairs.inverted())
	}
	return a, nil
}

// key is the name of the folder in the ledger.
func (r *record) key() string {
	if r.back {
		return r.Dest
	}
	return r.Source
}

// saveTime bounds the writing of a record after the pass was called off.
const saveTime = 10 * time.Second

var errNoPlace = errors.New("a folder without a place on the other side has no record")

// save writes a record even when ctx is over: what was done is to be known.
func (b *book) save(ctx context.Context, r *record) error {
	if r.back {
		if r.Dest == "" {
			return errNoPlace
		}
		b.mu.Lock()
		if b.keys != nil {
			b.keys[r.Source] = r.Dest
		}
		b.mu.Unlock()
		r = r.inverted()
	}
	data, err := json.Marshal(r)
	if err != nil {
		return err
	}
	return b.write(ctx, recordName(folderPrefix, r.Source), data)
}

func (b *book) saveAgreed(ctx context.Context, r *record, a agreed) error {
	if r.back {
		a = a.through(r.Pairs)
	}
	name := recordName(flagsPrefix, r.key())
	if len(a) == 0 && len(b.known(name)) == 0 {
		return nil // no record says the same
	}
	data, err := encodeAgreed(a)
	if err != nil {
		return err
	}
	return b.write(ctx, name, data)
}

func (b *book) write(ctx context.Context, name string, data []byte) error {
	if string(b.known(name)) == string(data) {
		return nil
	}
	ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), saveTime)
	defer cancel()
	if err := b.ledger.SaveLedger(ctx, b.user, name, data); err != nil {
		return fmt.Errorf("write the ledger of %s: %w", b.user, err)
	}
	b.mu.Lock()
	defer b.mu.Unlock()
	if b.data == nil {
		b.data = map[string][]byte{}
	}
	b.data[name] = data
	return nil
}
