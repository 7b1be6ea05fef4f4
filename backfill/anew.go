package backfill

import (
	"context"
	"encoding/json"
	"fmt"
	"maps"
	"slices"
	"strings"
	"time"
)

// Anew tells of a folder that is not the one any more that it was when mail was copied
// to it or from it: its UIDVALIDITY is another one, or its UIDs went back. It was
// dropped and made again, or came out of a backup: what was in it may be lost, and
// that it is not there does not say that the user deleted it.
type Anew struct {
	Folder string    `json:"folder"`
	Was    uint32    `json:"was"` // UIDVALIDITY
	Now    uint32    `json:"now"` // the same where UIDs went back
	At     time.Time `json:"at"`  // when it was found out
}

// anewName is that of the record: what was found of both sides, by side and folder. The
// pairs of such a folder are made again, and do not tell of it.
const anewName = "anew"

// mostAnew bounds the record; the newest stay.
const mostAnew = 200

// anew gives what was found of one side, in the order of the folders.
func (b *book) anew(side Side) (out []Anew, err error) {
	all, err := b.allAnew()
	for _, key := range slices.Sorted(maps.Keys(all)) {
		if strings.HasPrefix(key, string(side)+" ") {
			out = append(out, all[key])
		}
	}
	return out, err
}

func (b *book) allAnew() (map[string]Anew, error) {
	all := map[string]Anew{}
	data := b.known(anewName)
	if len(data) == 0 {
		return all, nil
	}
	if err := json.Unmarshal(data, &all); err != nil {
		return nil, fmt.Errorf("ledger of %s, record %q: %w (remove the record: audits do not know then which folders were made anew)", b.user, anewName, err)
	}
	return all, nil
}

// noteAnew keeps in mind that a folder was made anew. Of the same folder the last time
// counts.
func (b *book) noteAnew(ctx context.Context, side Side, wire string, a Anew) error {
	b.anewMu.Lock()
	defer b.anewMu.Unlock()
	all, err := b.allAnew()
	if err != nil {
		return err
	}
	all[string(side)+" "+wire] = a
	for len(all) > mostAnew {
		keys := slices.Collect(maps.Keys(all))
		delete(all, slices.MinFunc(keys, func(x, y string) int { return all[x].At.Compare(all[y].At) }))
	}
	data, err := json.Marshal(all)
	if err != nil {
		return err
	}
	return b.write(ctx, anewName, data)
}

// noteAnew notes for audits which side of the folder was made anew, before the pairs
// that show it are void.
func (f *folderRun) noteAnew(srcChanged, dstChanged bool, srcNow, dstNow uint32) error {
	r, now := f.rec, time.Now().UTC().Truncate(time.Second)
	source, dest := SideSource, SideDest
	if f.p.o.Back {
		source, dest = dest, source
	}
	if srcChanged && r.SrcValidity != 0 {
		if err := f.p.book.noteAnew(f.p.ctx, source, f.src.Wire, Anew{Folder: f.src.Name, Was: r.SrcValidity, Now: srcNow, At: now}); err != nil {
			return err
		}
	}
	// A folder that the reader did away with is made again by ourselves. When that was
	// not the reader, but his whole mailbox is another one, INBOX tells.
	if dstChanged && r.DstValidity != 0 && (f.exists || strings.EqualFold(f.wire, "INBOX")) {
		return f.p.book.noteAnew(f.p.ctx, dest, f.wire, Anew{Folder: f.name, Was: r.DstValidity, Now: dstNow, At: now})
	}
	return nil
}

// anewBefore adds what passes have found earlier to what a look finds now.
func (t *tracing) anewBefore() error {
	before, err := t.book.anew(t.out.Side)
	t.out.Anew = append(before, t.out.Anew...)
	return err
}
