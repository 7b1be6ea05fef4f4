package backfill

import (
	"context"
	"crypto/sha256"
	"encoding/base64"
	"encoding/json"
	"errors"
	"fmt"
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
	keepGone      = 10000 // names without a message that are remembered at least
)

// numberHead is the record of one folder's numbers; the names are in shards.
type numberHead struct {
	Validity uint32   `json:"validity"`
	Own      bool     `json:"own"`  // the store gives no UIDs
	Next     uint32   `json:"next"` // the first UID that was never given
	Shards   []uint32 `json:"shards,omitempty"`
}

// numberShard has the names of shardSize UIDs, "" where none is known.
type numberShard struct {
	Validity uint32     `json:"validity"`
	Names    []nameHash `json:"names"`
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
	fresh, err := w.load(store)
	if err != nil {
		return Numbered{}, err
	}
	out := Numbered{Validity: w.head.Validity, UIDs: make(map[string]uint32, len(names))}
	if w.head.Own && w.strangers(names) {
		w.reset(newValidity(w.head.Validity), true)
		fresh, out.Validity = true, w.head.Validity
	}
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
	w.forget(out.UIDs)
	if fresh || len(w.dirty) > 0 {
		if err := w.save(); err != nil {
			return Numbered{}, err
		}
	}
	out.Next = w.next(store)
	return out, nil
}

// load reads what is known of the folder. UIDs of another UIDVALIDITY mean
// nothing any more.
func (w *numbering) load(store StoreUIDs) (fresh bool, err error) {
	if data := w.n.book.known(recordName(numbersPrefix, w.wire)); len(data) > 0 {
		if err := json.Unmarshal(data, &w.head); err != nil {
			return false, w.broken(err)
		}
	}
	own := store.Validity == 0
	if w.head.Validity == 0 || own != w.head.Own || !own && w.head.Validity != store.Validity {
		validity := store.Validity
		if own {
			validity = newValidity(w.head.Validity)
		}
		w.reset(validity, own)
		return true, nil
	}
	for _, k := range w.head.Shards {
		if err := w.loadShard(k); err != nil {
			return false, err
		}
	}
	return false, nil
}

// reset begins anew: all UIDs mean other messages.
func (w *numbering) reset(validity uint32, own bool) {
	for _, k := range w.head.Shards {
		w.dirty[k] = true // removed, or written anew
	}
	w.head = numberHead{Validity: validity, Own: own, Next: ownBase}
	if own {
		w.head.Next = 1
	}
	w.shards, w.byName = map[uint32]*numberShard{}, map[nameHash]uint32{}
}

// strangers tells whether a store that was not empty now has other names only. A
// server that names its messages in another way (UIDLs after an upgrade, files
// from a backup) shows no new mail but the old under new names.
func (w *numbering) strangers(names []string) bool {
	if len(w.byName) == 0 || len(names) == 0 {
		return false
	}
	return !slices.ContainsFunc(names, func(name string) bool { return w.byName[hashName(name)] != 0 })
}

func (w *numbering) loadShard(k uint32) error {
	s := &numberShard{}
	data := w.n.book.known(w.shardName(k))
	if len(data) == 0 {
		return w.broken(fmt.Errorf("shard %d is missing", k))
	}
	if err := json.Unmarshal(data, s); err != nil {
		return w.broken(err)
	}
	if s.Validity != w.head.Validity || len(s.Names) > shardSize {
		return w.broken(fmt.Errorf("shard %d is of another UIDVALIDITY", k))
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

// forget drops shards of names that are all gone, when there are many. The
// numbers are not given again.
func (w *numbering) forget(present map[string]uint32) {
	if len(w.byName) <= 2*len(present)+keepGone {
		return
	}
	live := map[uint32]bool{(w.head.Next - 1) / shardSize: true}
	for _, uid := range present {
		live[uid/shardSize] = true
	}
	for k := range w.shards {
		if !live[k] {
			delete(w.shards, k)
			w.dirty[k] = true
		}
	}
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
