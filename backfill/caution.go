package backfill

import (
	"cmp"
	"fmt"
	"io"
	"slices"
	"strings"

	"crossfade/backfill/imapconn"
)

// doubt is why no folder's deletions are believed in a pass.
type doubt struct {
	text    string
	passing bool // it may be over in the next pass, though nothing changed in the folder
}

// lookAgain as the ceiling of a record has the folder looked at in every pass.
const lookAgain = -1

// most is how many of n copies a pass may delete.
func (p *pass) most(n int) int { return max(alwaysDeletes, int(p.ceiling()*float64(n))) }

func (p *pass) allowing() string {
	if p.o.Back {
		return "an operator who allows them"
	}
	return fmt.Sprintf("`crossfade backfill run --allow-deletions %s`", p.job.User)
}

// doubts finds what speaks against all deletions of this pass. A server that is
// being mended, or a login that leads elsewhere, takes a little from every folder;
// and what was filed away, and could not be copied to where it is now, has nothing
// but the copy in its old place.
func (p *pass) doubts() doubt {
	var seen, stuck int
	p.tally(func(r *Report, _ *Progress) {
		seen = r.Messages + r.Filtered
		for _, pr := range r.Problems {
			if pr.Class == ClassRefused || pr.Class == ClassUnreadable {
				stuck++
			}
		}
	})
	if seen == 0 {
		return doubt{"the source shows no mail at all; " + p.allowing() + " deletes them", true}
	}
	if stuck > 0 {
		return doubt{fmt.Sprintf("%d messages could not be copied, and may be among those that were moved; when that is mended the next pass deletes them", stuck), true}
	}
	gone, all := 0, 0
	for _, f := range p.every {
		gone += max(len(f.rec.Gone)-len(f.moved), 0)
		all += f.rec.Pairs.count()
	}
	if most := p.most(all); gone > most {
		return doubt{fmt.Sprintf("in all folders together it is %d of %d messages, more than the %d that one pass may delete; %s deletes them", gone, all, most, p.allowing()), false}
	}
	return doubt{}
}

// notLeftOut takes out of what was deleted the messages that the filter leaves out
// by now: where they are moved to they are not copied any more.
func (f *folderRun) notLeftOut(del uidSet) (uidSet, error) {
	filter := f.p.filter
	if !filter.messages() || len(del) == 0 {
		return del, nil
	}
	var uids []uint32
	for _, u := range del {
		if d, ok := f.rec.Pairs.dest(u); ok {
			uids = append(uids, d)
		}
	}
	slices.Sort(uids)
	metas, err := f.lane.dstReader.ListThese(uids, filter.items(imapconn.Items{}))
	if err != nil {
		return nil, err
	}
	out := map[uint32]bool{}
	for _, m := range metas {
		m.Size += m.Size/50 + 64 // a server may have shortened it
		out[m.UID] = filter.omits(m)
	}
	n := len(del)
	del = slices.DeleteFunc(slices.Clone(del), func(u uint32) bool {
		d, _ := f.rec.Pairs.dest(u)
		return out[d]
	})
	if n -= len(del); n > 0 {
		f.leave("%d messages are gone from the source and stay: the filter leaves out such messages, so where they were moved to they are not copied", n)
	}
	return del, nil
}

// proven gives the highest UID of the destination up to which UIDs are known to
// mean what they meant when they were noted. When they mean other messages, on
// either side, nothing is: the next pass matches all by content.
func (f *folderRun) proven() (uint32, error) {
	if _, err := f.lane.dstReader.Select(f.destFolder()); err != nil {
		return 0, err
	}
	sel, err := f.lane.src.Select(f.src)
	if err == nil && sel.UIDValidity != f.rec.SrcValidity {
		err = fmt.Errorf("folder %q: %w", f.src.Name, imapconn.ErrChanged)
	}
	if err != nil {
		return 0, inside("source", err)
	}
	alive, other, err := f.alive()
	if err != nil {
		return 0, err
	}
	if a := f.rec.Anchor; a != nil && other == 0 {
		m, err := f.oneMessage(f.lane.dstReader, a.UID)
		if err != nil {
			return 0, err
		}
		m.close()
		switch {
		case m != nil && m.id.Loose == a.Loose:
			return a.UID, nil
		case m != nil && alive == nil:
			other = a.UID
		}
	}
	f.rec.Anchor = alive
	if other != 0 {
		f.p.log.Warn("a UID means another message: all are matched by content again", "user", f.p.job.User, "folder", f.src.Name, "uid", other)
		f.rec.DstValidity, f.rec.Anchor = 0, nil
		return 0, nil
	}
	if alive == nil {
		return 0, nil
	}
	return alive.UID, nil
}

// alive looks for the highest pair that is there on both sides as the same
// message, and at the lowest too: where the source shows another mailbox, the
// highest may have been copied from that one. other is the UID on the destination
// of a pair that is not the same.
func (f *folderRun) alive() (same *anchor, other uint32, err error) {
	var left []run
	for _, r := range f.rec.Pairs {
		for i := range r.N {
			if _, gone := slices.BinarySearch(f.rec.Gone, r.Src+i); !gone {
				left = append(left, run{r.Src + i, r.Dst + i, 1})
			}
		}
	}
	slices.SortFunc(left, func(a, b run) int { return cmp.Compare(a.Dst, b.Dst) })
	if _, other, err = f.firstOf(left); err != nil || other != 0 {
		return nil, other, err
	}
	slices.Reverse(left)
	return f.firstOf(left)
}

// firstOf compares the first of some pairs that is there on both sides.
func (f *folderRun) firstOf(left []run) (same *anchor, other uint32, err error) {
	const tries = 5
	for _, r := range left[:min(tries, len(left))] {
		d, s, err := f.bothOf(r)
		if err != nil {
			return nil, 0, err
		}
		both, equal := s != nil && d != nil, sameMessage(s, d)
		if equal {
			same = &anchor{r.Dst, d.id.Loose}
		}
		s.close()
		d.close()
		switch {
		case equal:
			return same, 0, nil
		case both:
			return nil, r.Dst, nil
		}
	}
	return nil, 0, nil
}

func (f *folderRun) bothOf(r run) (d, s *incoming, err error) {
	if d, err = f.oneMessage(f.lane.dstReader, r.Dst); err != nil || d == nil {
		return d, nil, err
	}
	if s, err = f.oneMessage(f.lane.src, r.Src); err != nil {
		d.close()
		return nil, nil, err
	}
	return d, s, nil
}

// oneMessage reads one message of the open folder; nil when it is not there or
// cannot be read.
func (f *folderRun) oneMessage(r MailReader, uid uint32) (*incoming, error) {
	t := &fetcher{host: f.p.job.Host, keep: true, dir: f.p.c.TempDir, room: wrapInFile}
	failures, err := r.Fetch([]uint32{uid}, imapconn.Items{Body: true}, t)
	if err != nil || len(failures) > 0 || len(t.msgs) != 1 {
		t.close()
		return nil, err
	}
	return t.msgs[0], nil
}

func (m *incoming) close() {
	if m != nil {
		m.body.close()
	}
}

// sameMessage tells whether the copy d of a message s is still one. Its content
// need not be the same: servers alter what they take in more ways than are known,
// and then its header has the same fields.
func sameMessage(s, d *incoming) bool {
	if s == nil || d == nil {
		return false
	}
	if s.id.Loose == d.id.Loose || s.id.Munged != (key{}) && s.id.Munged == d.id.Loose || s.id.Delivery != (key{}) && s.id.Delivery == d.id.Delivery {
		return true
	}
	one, two := s.naming(), d.naming()
	equal, differ := 0, 0
	for name, value := range one {
		if two[name] == value {
			equal++
		} else {
			differ++
		}
	}
	dated := one["date"] != "" && one["date"] == two["date"]
	return equal > 1 && (differ == 0 || dated && differ == 1)
}

// naming gives the fields by which people know a message.
func (m *incoming) naming() map[string]string {
	header := make([]byte, min(m.body.size, maxHeader))
	n, err := m.body.ReadAt(header, 0)
	if err != nil && err != io.EOF {
		n = 0
	}
	header = header[:n]
	if i := strings.Index(string(header), "\r\n\r\n"); i >= 0 {
		header = header[:i]
	}
	out := map[string]string{}
	for _, f := range fields(header) {
		switch name := strings.ToLower(f.name); name {
		case "from", "to", "date", "subject":
			if out[name] == "" {
				out[name] = strings.Join(strings.Fields(f.value), " ")
			}
		}
	}
	return out
}
