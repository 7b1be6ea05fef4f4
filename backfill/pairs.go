package backfill

import (
	"cmp"
	"fmt"
	"slices"
	"strconv"
	"strings"

	"crossfade/backfill/imapconn"
)

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

// inverted are the pairs with their sides changed over, in the order of what was
// the destination. Of two pairs with one message there the first one counts.
func (p pairs) inverted() pairs {
	out := make(pairs, 0, len(p))
	for _, r := range p {
		out = append(out, run{r.Dst, r.Src, r.N})
	}
	slices.SortStableFunc(out, func(a, b run) int { return cmp.Compare(a.Src, b.Src) })
	for i := 1; i < len(out); i++ {
		if out[i].Src-out[i-1].Src < out[i-1].N {
			return out.oneByOne()
		}
	}
	return out.joined()
}

// oneByOne adds runs that overlap.
func (p pairs) oneByOne() (out pairs) {
	for _, r := range p {
		for i := range r.N {
			out.add(r.Src+i, r.Dst+i)
		}
	}
	return out
}

// joined makes one run of those that follow each other on both sides.
func (p pairs) joined() pairs {
	var out pairs
	for _, r := range p {
		if n := len(out); n > 0 && out[n-1].Src+out[n-1].N == r.Src && out[n-1].Dst+out[n-1].N == r.Dst {
			out[n-1].N += r.N
			continue
		}
		out = append(out, r)
	}
	return out
}
