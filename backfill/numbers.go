package backfill

import (
	"cmp"
	"context"
	"crypto/sha256"
	"encoding/base64"
	"encoding/json"
	"errors"
	"fmt"
	"maps"
	"slices"
	"strconv"
	"time"
)

// ErrFolder marks an error of a source that is one of a single folder: the
// others are copied all the same.
var ErrFolder = errors.New("this folder cannot be read")

// Numbers gives messages the UIDs that their store does not, and keeps them in
// the ledger of one user: a name once numbered has its number in every later
// pass, whatever is renamed, added or deleted around it.
type Numbers struct {
	ctx  context.Context
	book *book
	dry  bool // a plan writes nothing
}

// NewNumbers opens the numbers of one user. A pass hands its own to Source.Open.
func NewNumbers(ctx context.Context, l Ledger, user string) (*Numbers, error) {
	b, err := openBook(ctx, l, user)
	if err != nil {
		return nil, err
	}
	return &Numbers{ctx: ctx, book: b}, nil
}

// StoreUIDs are the UIDs that a store itself gives, as in dovecot-uidlist.
type StoreUIDs struct {
	Validity uint32            // UIDVALIDITY; 0 when the store gives no UIDs
	Next     uint32            // UIDNEXT as the store says
	UIDs     map[string]uint32 // by name; names may be missing
	// Sizes, of stores that may give the name of a message that is gone to another
	// one: a name with another size than before is another message.
	Sizes map[string]int64
	// Proven is for stores whose UIDs lie where strangers can write them: in the
	// messages. A UID then counts for a name only until another name had it.
	Proven bool
}

// Numbered are the UIDs of one folder. Those that this package gives where the
// store gives some too begin at 1<<31, out of reach of the store's own.
type Numbered struct {
	Validity uint32
	Next     uint32
	UIDs     map[string]uint32 // by name, each another
}

const (
	numbersPrefix = "numbers/"
	shardSize     = 4096
	ownBase       = 1 << 31
	// keepGone is how many names without a message are remembered at least. They
	// are: a name that is forgotten and comes back would be another message.
	keepGone = 100000
	// fewNames are not enough to call them names of messages that were there before.
	fewNames = 10
)

// numberHead is the record of one folder's numbers; the names are in shards.
type numberHead struct {
	Validity uint32 `json:"validity"`
	// Store is the UIDVALIDITY of the store where that is not Validity: numbers of
	// that one began anew.
	Store uint32 `json:"store,omitempty"`
	// Own tells that the store gave no UIDs when numbering began. It stays so when
	// it gives some later: the pairs rest on ours.
	Own    bool     `json:"own"`
	Next   uint32   `json:"next"` // the first UID that was never given
	Shards []uint32 `json:"shards,omitempty"`
	// Present are the UIDs of the last look that found a message, with Own.
	Present uidSet `json:"present,omitempty"`
	// Note is the source's own, see [Numbers.Note].
	Note json.RawMessage `json:"note,omitempty"`
}

// numberShard has the names of shardSize UIDs, "" where none is known, and their
// sizes where the store tells them.
type numberShard struct {
	Validity uint32     `json:"validity"`
	Names    []nameHash `json:"names"`
	Sizes    []int64    `json:"sizes,omitempty"`
}

// nameHash stands for a name: 96 bits of its SHA-256.
type nameHash string

func hashName(name string) nameHash {
	sum := sha256.Sum256([]byte(name))
	return nameHash(base64.RawURLEncoding.EncodeToString(sum[:12]))
}

// numbering is the work on one folder's numbers.
type numbering struct {
	n      *Numbers
	wire   string
	head   numberHead
	shards map[uint32]*numberShard
	byName map[nameHash]uint32
	dirty  map[uint32]bool
}

// Assign gives each of names, in their order, its UID in the folder with this
// Wire. What is new is in the ledger when it returns, before any pair can be.
// Names have to be told apart by the caller.
func (n *Numbers) Assign(wire string, names []string, store StoreUIDs) (Numbered, error) {
	w := &numbering{n: n, wire: wire, shards: map[uint32]*numberShard{}, byName: map[nameHash]uint32{}, dirty: map[uint32]bool{}}
	changed, err := w.load(store)
	if err != nil {
		return Numbered{}, err
	}
	if w.renumbered(names, store) || w.reused(names, store) || w.crowded(names) {
		w.reset(store, w.head.Own)
		changed = true
	}
	if w.head.Own {
		store.Validity, store.Next, store.UIDs = 0, 0, nil
	}
	out := Numbered{Validity: w.head.Validity, UIDs: make(map[string]uint32, len(names))}
	given := make(map[uint32]bool, len(names))
	var left []string
	for _, name := range names {
		if uid := w.known(name, store); uid != 0 && !given[uid] {
			out.UIDs[name], given[uid] = uid, true
			continue
		}
		left = append(left, name)
	}
	for _, name := range left {
		uid, err := w.give(hashName(name))
		if err != nil {
			return Numbered{}, err
		}
		out.UIDs[name] = uid
	}
	if w.see(out.UIDs, store) || changed || len(w.dirty) > 0 {
		if err := w.save(); err != nil {
			return Numbered{}, err
		}
	}
	out.Next = w.next(store)
	return out, nil
}

// load reads what is known of the folder. UIDs of another UIDVALIDITY of the
// store mean nothing any more, but those of our own stay what they are.
func (w *numbering) load(store StoreUIDs) (fresh bool, err error) {
	if w.head, err = w.n.head(w.wire); err != nil {
		return false, err
	}
	if w.head.Validity == 0 || !w.head.Own && cmp.Or(w.head.Store, w.head.Validity) != store.Validity {
		w.reset(store, store.Validity == 0)
		return true, nil
	}
	for _, k := range w.head.Shards {
		err := w.loadShard(k)
		if errors.Is(err, errHalfBegun) {
			w.reset(store, w.head.Own)
			return true, nil
		}
		if err != nil {
			return false, err
		}
	}
	return false, nil
}

// reset begins anew: all UIDs mean other messages.
func (w *numbering) reset(store StoreUIDs, own bool) {
	for _, k := range w.head.Shards {
		w.dirty[k] = true // removed, or written anew
	}
	last := w.head.Validity
	w.head = numberHead{Validity: store.Validity, Next: ownBase}
	switch {
	case own:
		w.head = numberHead{Validity: newValidity(last), Next: 1, Own: true}
	case store.Validity == last:
		w.head.Validity, w.head.Store = newValidity(last), store.Validity
	}
	w.shards, w.byName = map[uint32]*numberShard{}, map[nameHash]uint32{}
}

// renumbered tells whether a store that was not empty now has other names for
// its messages. A server that names them in another way (UIDLs after an upgrade,
// files from a backup) shows no new mail but the old under new names. A user
// whose own program fetches his mail and deletes it shows new mail only too, but
// not as much of it as there was, and of other sizes.
func (w *numbering) renumbered(names []string, store StoreUIDs) bool {
	gone := len(w.head.Present)
	if gone == 0 || 2*len(names) < gone || slices.ContainsFunc(names, func(name string) bool { return w.byName[hashName(name)] != 0 }) {
		return false
	}
	if len(names) >= fewNames || len(store.Sizes) == 0 {
		return true
	}
	had, same := map[int64]int{}, 0
	for _, uid := range w.head.Present {
		had[w.size(uid)]++
	}
	for _, name := range names {
		if size := store.Sizes[name]; size > 0 && had[size] > 0 {
			had[size]--
			same++
		}
	}
	return same > 0 && 2*same >= min(len(names), gone)
}

// reused tells whether the store gave a name to another message. Which of them
// are others is not known: all are matched by their content again.
func (w *numbering) reused(names []string, store StoreUIDs) bool {
	if len(store.Sizes) == 0 {
		return false
	}
	return slices.ContainsFunc(names, func(name string) bool {
		was, is := w.size(w.byName[hashName(name)]), store.Sizes[name]
		return was > 0 && is > 0 && was != is
	})
}

// crowded tells whether there are too many names without a message. None of them
// may be forgotten by itself. A folder without messages is one that cannot be
// seen right now, perhaps: what is known of it stays.
func (w *numbering) crowded(names []string) bool {
	return len(names) > 0 && len(w.byName) > 2*len(names)+keepGone
}

// see notes what is there, and tells whether the head has changed by it.
func (w *numbering) see(uids map[string]uint32, store StoreUIDs) (changed bool) {
	for name, size := range store.Sizes {
		if uid := uids[name]; uid != 0 && size > 0 && w.size(uid) != size {
			w.setSize(uid, size)
		}
	}
	if !w.head.Own || len(uids) == 0 {
		return false
	}
	present := uidSet(slices.Sorted(maps.Values(uids)))
	changed = !slices.Equal(present, w.head.Present)
	w.head.Present = present
	return changed
}

// errHalfBegun says that the process died while it wrote numbers that began anew:
// some are there, and the head that names them is not.
var errHalfBegun = errors.New("the shard is of another UIDVALIDITY than its head")

func (w *numbering) loadShard(k uint32) error {
	s := &numberShard{}
	data := w.n.book.known(w.shardName(k))
	if len(data) == 0 {
		return w.broken(fmt.Errorf("shard %d is missing", k))
	}
	if err := json.Unmarshal(data, s); err != nil {
		return w.broken(err)
	}
	if s.Validity != w.head.Validity {
		return errHalfBegun
	}
	if len(s.Names) > shardSize || len(s.Sizes) > len(s.Names) {
		return w.broken(fmt.Errorf("shard %d has too many names or sizes", k))
	}
	w.shards[k] = s
	for i, name := range s.Names {
		if name == "" {
			continue
		}
		uid := k*shardSize + uint32(i)
		w.byName[name] = uid
		if w.head.Own || uid >= ownBase {
			w.head.Next = max(w.head.Next, uid+1)
		}
	}
	return nil
}

func (w *numbering) broken(err error) error {
	return fmt.Errorf("ledger of %s, numbers of folder %q: %w (remove its records that begin with %q to have the messages matched by content again)",
		w.n.book.user, w.wire, err, recordName(numbersPrefix, w.wire))
}

func (w *numbering) shardName(k uint32) string {
	return recordName(numbersPrefix, w.wire) + "/" + strconv.FormatUint(uint64(k), 10)
}

// newValidity is later than any before: the seconds of the clock, or one more
// than the last.
func newValidity(last uint32) uint32 {
	return max(uint32(time.Now().Unix()), last+1)
}

// known gives the UID that a name has already, 0 when it has none. Our own
// number comes first: it was given before the store gave one, and a pair may
// rest on it.
func (w *numbering) known(name string, store StoreUIDs) uint32 {
	h := hashName(name)
	if uid, ok := w.byName[h]; ok {
		return uid
	}
	uid := store.UIDs[name]
	if uid == 0 || uid >= ownBase || !store.Proven {
		if uid >= ownBase {
			return 0
		}
		return uid
	}
	if by := w.at(uid); by != "" && by != h {
		return 0
	}
	w.put(uid, h)
	return uid
}

// at gives the name that has a UID.
func (w *numbering) at(uid uint32) nameHash {
	s := w.shards[uid/shardSize]
	if s == nil || int(uid%shardSize) >= len(s.Names) {
		return ""
	}
	return s.Names[uid%shardSize]
}

// size gives the size that the message with a UID had, 0 when it is not known.
func (w *numbering) size(uid uint32) int64 {
	s := w.shards[uid/shardSize]
	if s == nil || int(uid%shardSize) >= len(s.Sizes) {
		return 0
	}
	return s.Sizes[uid%shardSize]
}

// setSize is for UIDs that have a name.
func (w *numbering) setSize(uid uint32, size int64) {
	k, i := uid/shardSize, int(uid%shardSize)
	s := w.shards[k]
	if s == nil || i >= len(s.Names) {
		return // the store's own number, which is not kept here
	}
	for len(s.Sizes) <= i {
		s.Sizes = append(s.Sizes, 0)
	}
	s.Sizes[i] = size
	w.dirty[k] = true
}

func (w *numbering) put(uid uint32, h nameHash) {
	k, i := uid/shardSize, int(uid%shardSize)
	s := w.shards[k]
	if s == nil {
		s = &numberShard{Validity: w.head.Validity}
		w.shards[k] = s
	}
	for len(s.Names) <= i {
		s.Names = append(s.Names, "")
	}
	s.Names[i] = h
	w.byName[h] = uid
	w.dirty[k] = true
}

// give gives a name the next number of our own.
func (w *numbering) give(h nameHash) (uint32, error) {
	if w.head.Next == 1<<32-1 {
		return 0, fmt.Errorf("folder %q: there are no UIDs left", w.wire)
	}
	uid := w.head.Next
	w.head.Next++
	w.put(uid, h)
	return uid, nil
}

// save writes the shards that changed and then the head. Shards that the head
// does not name yet are written again by the next pass, with the same names or
// others: nothing rests on them.
func (w *numbering) save() error {
	if w.n.dry {
		return nil
	}
	for _, k := range sortedKeys(w.dirty) {
		s := w.shards[k]
		if s == nil {
			continue
		}
		data, err := json.Marshal(s)
		if err != nil {
			return err
		}
		if err := w.n.book.write(w.n.ctx, w.shardName(k), data); err != nil {
			return err
		}
	}
	w.head.Shards = sortedKeys(w.shards)
	data, err := json.Marshal(w.head)
	if err != nil {
		return err
	}
	if err := w.n.book.write(w.n.ctx, recordName(numbersPrefix, w.wire), data); err != nil {
		return err
	}
	for _, k := range sortedKeys(w.dirty) {
		if w.shards[k] == nil {
			if err := w.n.book.write(w.n.ctx, w.shardName(k), nil); err != nil {
				return err
			}
		}
	}
	return nil
}

// next gives the UIDNEXT that is told: above all that was ever given. A store
// from a backup says a lower one than before, which is how it is found out;
// with numbers of our own in the folder that cannot be told.
func (w *numbering) next(store StoreUIDs) uint32 {
	if w.head.Own || w.head.Next > ownBase {
		return w.head.Next
	}
	next := store.Next
	for _, uid := range store.UIDs {
		if uid < ownBase {
			next = max(next, uid+1)
		}
	}
	return next
}
