package backfill

import (
	"cmp"
	"context"
	"encoding/json"
	"fmt"
	"maps"
	"net/url"
	"slices"
	"strconv"
	"strings"
	"sync"
	"time"

	"crossfade/backfill/imapconn"
)

// record is what the ledger knows of one folder of the source.
type record struct {
	Source      string `json:"source"` // the name on the wire of the source
	Dest        string `json:"dest"`   // the name on the wire of the destination
	SrcValidity uint32 `json:"src_validity"`
	DstValidity uint32 `json:"dst_validity"`
	Pairs       pairs  `json:"pairs,omitempty"`
	// Foreign are messages of the destination with a UID below Seen that are in
	// no pair.
	Foreign uidSet `json:"foreign,omitempty"`
	// Theirs are messages of the destination that were there before they were
	// copied: not ours to delete.
	Theirs uidSet `json:"theirs,omitempty"`
	Seen   uint32 `json:"seen,omitempty"`
	// Mark is the state of the source with which the folder was last finished.
	Mark    imapconn.Status     `json:"mark"`
	Refused map[uint32]*refusal `json:"refused,omitempty"`
	// Filtered is how many messages the filter left out when the folder was last
	// looked at, and Sift which filter that was.
	Filtered int    `json:"filtered,omitempty"`
	Sift     string `json:"sift,omitempty"`
	// Unread counts the passes in which a message could not be read.
	Unread     map[uint32]int `json:"unread,omitempty"`
	Pending    *journal       `json:"pending,omitempty"`
	Subscribed bool           `json:"subscribed,omitempty"`
	// Readopt says that the pairs were voided: until the folder is finished the
	// messages of the destination are looked at one by one.
	Readopt bool `json:"readopt,omitempty"`
	// Gone are the messages of pairs that the source did not list when the folder
	// was last looked at, and Stays why their copies are still there.
	// Watched tells that somebody wanted to know then.
	Gone    uidSet `json:"gone,omitempty"`
	Stays   *stays `json:"stays,omitempty"`
	Watched bool   `json:"watched,omitempty"`
	// Missed tells that the source did not list the folder in the last pass.
	Missed bool    `json:"missed,omitempty"`
	Anchor *anchor `json:"anchor,omitempty"`
	// Carried is the highest UID of the source that was paired when deletions were
	// last carried over: what is gone from another folder since may have come here
	// behind it.
	Carried uint32 `json:"carried,omitempty"`
	// Orphans are messages of the destination that were copied out of a folder of the
	// source that had this name, and are in no pair.
	Orphans uidSet   `json:"orphans,omitempty"`
	Rights  *granted `json:"rights,omitempty"`
	// Attic is for the record of the wrapped messages only.
	Attic []kept `json:"attic,omitempty"`
}

// refusal is a message that the destination did not take.
type refusal struct {
	Text  string `json:"text"`
	Tries int    `json:"tries"`
	Skip  int    `json:"skip"` // passes until it is tried again
	// Wrapped tells that it is carried as an attachment.
	Wrapped bool `json:"wrapped,omitempty"`

	waiting bool // not to be tried in this pass
	fresh   bool // refused in this pass, and not in the report yet
	tooBig  bool // so is every mail that carries it
}

// journal is a batch about to be appended. It is written first, so that after a
// crash only the destination's UIDs from UIDNext on have to be looked at.
type journal struct {
	Validity uint32  `json:"validity"`
	UIDNext  uint32  `json:"uidnext"`
	Entries  []entry `json:"entries"`
	At       int64   `json:"at"` // when it was written, in milliseconds of Unix time

	told []uint32 // UIDs that the destination told and that are not believed
}

type entry struct {
	UID   uint32 `json:"uid"` // on the source
	Exact key    `json:"exact"`
	Loose key    `json:"loose"`
	// Munged is zero for most messages.
	Munged key `json:"munged,omitzero"`
}

const (
	folderPrefix = "folder/"
	flagsPrefix  = "flags/"
)

// recordName is printable whatever the server calls its folders.
func recordName(prefix, wire string) string { return prefix + url.PathEscape(wire) }

// run says that n messages from Src on are those from Dst on.
type run struct{ Src, Dst, N uint32 }

// pairs are UID pairs, as runs in the order of the source.
type pairs []run

func (p pairs) at(src uint32) int {
	i, _ := slices.BinarySearchFunc(p, src, func(r run, s uint32) int { return cmp.Compare(r.Src, s) })
	return i
}

// dest gives the UID on the destination.
func (p pairs) dest(src uint32) (uint32, bool) {
	i := p.at(src)
	if i < len(p) && p[i].Src == src {
		return p[i].Dst, true
	}
	if i == 0 || src-p[i-1].Src >= p[i-1].N {
		return 0, false
	}
	return p[i-1].Dst + (src - p[i-1].Src), true
}

// add notes a pair; a source UID that is in one already stays as it is.
func (p *pairs) add(src, dst uint32) {
	if _, ok := p.dest(src); ok {
		return
	}
	i := p.at(src)
	if i > 0 {
		prev := &(*p)[i-1]
		if prev.Src+prev.N == src && prev.Dst+prev.N == dst {
			prev.N++
			if i < len(*p) && (*p)[i].Src == src+1 && (*p)[i].Dst == dst+1 {
				prev.N += (*p)[i].N
				*p = slices.Delete(*p, i, i+1)
			}
			return
		}
	}
	if i < len(*p) && (*p)[i].Src == src+1 && (*p)[i].Dst == dst+1 {
		(*p)[i].Src, (*p)[i].Dst, (*p)[i].N = src, dst, (*p)[i].N+1
		return
	}
	*p = slices.Insert(*p, i, run{src, dst, 1})
}

// remove takes the pair of a source UID out.
func (p *pairs) remove(src uint32) {
	if _, ok := p.dest(src); !ok {
		return
	}
	i := p.at(src)
	if i == len(*p) || (*p)[i].Src != src {
		i--
	}
	r, n := (*p)[i], src-(*p)[i].Src
	var left pairs
	if n > 0 {
		left = append(left, run{r.Src, r.Dst, n})
	}
	if n+1 < r.N {
		left = append(left, run{src + 1, r.Dst + n + 1, r.N - n - 1})
	}
	*p = slices.Replace(*p, i, i+1, left...)
}

// count gives the number of pairs.
func (p pairs) count() int {
	n := 0
	for _, r := range p {
		n += int(r.N)
	}
	return n
}

// last gives the highest UIDs of both sides, 0 when there are none.
func (p pairs) last() (src, dst uint32) {
	for _, r := range p {
		src, dst = max(src, r.Src+r.N-1), max(dst, r.Dst+r.N-1)
	}
	return src, dst
}

// dests gives the UIDs of the destination that are in a pair.
func (p pairs) dests() map[uint32]bool {
	m := make(map[uint32]bool, p.count())
	for _, r := range p {
		for i := range r.N {
			m[r.Dst+i] = true
		}
	}
	return m
}

// MarshalText writes "1:5000>1,5002>5001": the UIDs of the source, and the
// first one of the destination.
func (p pairs) MarshalText() ([]byte, error) {
	var b []byte
	for i, r := range p {
		if i > 0 {
			b = append(b, ',')
		}
		b = strconv.AppendUint(b, uint64(r.Src), 10)
		if r.N > 1 {
			b = strconv.AppendUint(append(b, ':'), uint64(r.Src)+uint64(r.N)-1, 10)
		}
		b = strconv.AppendUint(append(b, '>'), uint64(r.Dst), 10)
	}
	return b, nil
}

// UnmarshalText reads the form of MarshalText, and refuses what is not in
// order.
func (p *pairs) UnmarshalText(text []byte) error {
	*p = nil
	if len(text) == 0 {
		return nil
	}
	next := uint64(1)
	for part := range strings.SplitSeq(string(text), ",") {
		src, dst, ok := strings.Cut(part, ">")
		first, last, err := parseRange(src)
		to, err2 := strconv.ParseUint(dst, 10, 32)
		if !ok || err != nil || err2 != nil || to == 0 || uint64(first) < next || to+uint64(last-first) > 1<<32-1 {
			return fmt.Errorf("UID pairs: %q makes no sense", part)
		}
		*p = append(*p, run{first, uint32(to), last - first + 1})
		next = uint64(last) + 1
	}
	return nil
}

func parseRange(s string) (first, last uint32, err error) {
	a, b, two := strings.Cut(s, ":")
	x, err := strconv.ParseUint(a, 10, 32)
	if err != nil {
		return 0, 0, err
	}
	y := x
	if two {
		if y, err = strconv.ParseUint(b, 10, 32); err != nil {
			return 0, 0, err
		}
	}
	if x == 0 || y < x || y == 1<<32-1 {
		return 0, 0, fmt.Errorf("%q is not a range", s)
	}
	return uint32(x), uint32(y), nil
}

// uidSet is a set of UIDs, ascending, written as ranges.
type uidSet []uint32

func (u uidSet) MarshalText() ([]byte, error) {
	return []byte(strings.Join(imapconn.FormatUIDs(u, 1<<30), ",")), nil
}

func (u *uidSet) UnmarshalText(text []byte) error {
	*u = nil
	if len(text) == 0 {
		return nil
	}
	for part := range strings.SplitSeq(string(text), ",") {
		first, last, err := parseRange(part)
		if err != nil || last-first > 1<<24 || len(*u) > 0 && first <= (*u)[len(*u)-1] {
			return fmt.Errorf("UID set: %q makes no sense", part)
		}
		for n := first; n <= last; n++ {
			*u = append(*u, n)
		}
	}
	return nil
}

func (u *uidSet) add(uid uint32) {
	if i, ok := slices.BinarySearch(*u, uid); !ok {
		*u = slices.Insert(*u, i, uid)
	}
}

func (u uidSet) has(uid uint32) bool {
	_, ok := slices.BinarySearch(u, uid)
	return ok
}

func (u *uidSet) remove(uid uint32) {
	if i, ok := slices.BinarySearch(*u, uid); ok {
		*u = slices.Delete(*u, i, i+1)
	}
}

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

// book reads and writes the records of one user.
type book struct {
	ledger Ledger
	user   string

	mu   sync.Mutex // the lanes of a pass write at once
	data map[string][]byte
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

// record gives what is known of a folder, an empty record when it is new.
func (b *book) record(wire string) (*record, error) {
	r := &record{Source: wire}
	data := b.known(recordName(folderPrefix, wire))
	if len(data) == 0 {
		return r, nil
	}
	if err := json.Unmarshal(data, r); err != nil {
		return nil, fmt.Errorf("ledger of %s, folder %q: %w (remove the record to have the folder matched by content again)", b.user, wire, err)
	}
	return r, nil
}

// folders gives the names on the wire of the folders that have a record, on the
// source and on the destination.
func (b *book) folders() (src, dst []string, err error) {
	b.mu.Lock()
	names := slices.Sorted(maps.Keys(b.data))
	b.mu.Unlock()
	for _, name := range names {
		escaped, ok := strings.CutPrefix(name, folderPrefix)
		if !ok {
			continue
		}
		wire, err := url.PathUnescape(escaped)
		if err != nil {
			return nil, nil, fmt.Errorf("ledger of %s: the record %q has no name of a folder: %w", b.user, name, err)
		}
		rec, err := b.record(wire)
		if err != nil {
			return nil, nil, err
		}
		if rec.SrcValidity != 0 && wire != atticSource {
			src, dst = append(src, wire), append(dst, rec.Dest)
		}
	}
	return src, dst, nil
}

func (b *book) agreed(wire string) (agreed, error) {
	a, err := decodeAgreed(b.known(recordName(flagsPrefix, wire)))
	if err != nil {
		return nil, fmt.Errorf("ledger of %s, flags of folder %q: %w (remove the record to have them compared again)", b.user, wire, err)
	}
	return a, nil
}

// saveTime bounds the writing of a record after the pass was called off.
const saveTime = 10 * time.Second

// save writes a record even when ctx is over: what was done is to be known.
func (b *book) save(ctx context.Context, r *record) error {
	data, err := json.Marshal(r)
	if err != nil {
		return err
	}
	return b.write(ctx, recordName(folderPrefix, r.Source), data)
}

func (b *book) saveAgreed(ctx context.Context, wire string, a agreed) error {
	if len(a) == 0 && len(b.known(recordName(flagsPrefix, wire))) == 0 {
		return nil // no record says the same
	}
	data, err := encodeAgreed(a)
	if err != nil {
		return err
	}
	return b.write(ctx, recordName(flagsPrefix, wire), data)
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
