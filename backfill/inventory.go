package backfill

import (
	"bytes"
	"context"
	"crypto/sha256"
	"encoding/hex"
	"fmt"
	"log/slog"
	"slices"
	"time"
)

// KeyOctets is how much of each content key an inventory keeps: enough that no
// two different messages of a mailbox have the same, and a fourth of the size.
const KeyOctets = 8

// Inventory is what a mailbox holds, message by message and without any of their
// content.
type Inventory struct {
	User    string    `json:"user"`
	At      time.Time `json:"at"`
	Server  string    `json:"server"` // host:port
	Folders []Holding `json:"folders"`
}

// Holding is what a folder holds.
type Holding struct {
	Folder   string `json:"folder"` // in UTF-8, with the server's own separator
	Validity uint32 `json:"validity"`
	Messages int    `json:"messages"`
	Bytes    int64  `json:"bytes"` // with CRLF at the ends of lines
	// Digest is the SHA-256, in hexadecimal, over the content keys of all
	// messages in ascending order: equal for equal multisets of messages.
	Digest string `json:"digest"`
	// UIDs are the UIDs, as in "1:5,7", and Keys the first KeyOctets octets of
	// each message's content key, in their order.
	UIDs string `json:"uids"`
	Keys []byte `json:"keys"`
	// Unreadable are messages that the server lists and does not hand out.
	Unreadable int `json:"unreadable,omitempty"`
}

// Inventory reads every message of the destination. It asks nothing of the
// source, which may be gone, and takes nothing from the ledger.
func (c *Copier) Inventory(ctx context.Context, job Job) (Inventory, error) {
	inv := Inventory{User: job.User, At: time.Now().UTC(), Server: job.Dest.Server.Address, Folders: []Holding{}}
	p := &pass{c: c, ctx: ctx, job: job, log: slog.New(slog.DiscardHandler), lane: &lane{}}
	p.throttle.patience = c.Patience
	defer p.close()
	var err error
	if p.dst, err = p.openDest(); err == nil {
		p.dstSide, err = listFolders(p.dst, nil, false)
	}
	if err != nil {
		return inv, fmt.Errorf("inventory of %s: %w", job.User, err)
	}
	p.dstReader = p.reader(job.Dest, nil)
	for _, f := range p.dstSide.folders {
		if !f.Selectable() || inOthers(f, p.dstSide.ns) {
			continue
		}
		l, err := p.identities(p.dstReader, f, Filter{})
		if err != nil {
			return inv, fmt.Errorf("inventory of %s: folder %q: %w", job.User, f.Name, err)
		}
		inv.Folders = append(inv.Folders, holding(f.Name, l))
	}
	return inv, nil
}

// holding is a folder that was read through.
func holding(name string, l listing) Holding {
	h := Holding{Folder: name, Validity: l.sel.UIDValidity, Messages: len(l.msgs), Bytes: octets(l.msgs), Digest: digest(l.msgs)}
	uids := make([]uint32, 0, len(l.msgs))
	for _, m := range l.msgs {
		uids = append(uids, m.meta.UID)
		h.Keys = append(h.Keys, m.id.Exact[:KeyOctets]...)
	}
	h.UIDs = formatUIDs(uids)
	for _, x := range l.problems {
		if x.Class == ClassUnreadable {
			h.Unreadable++
		}
	}
	return h
}

func octets(msgs []*incoming) (n int64) {
	for _, m := range msgs {
		n += m.id.Size
	}
	return n
}

// digest is the sum over a multiset of messages.
func digest(msgs []*incoming) string {
	keys := make([]key, 0, len(msgs))
	for _, m := range msgs {
		keys = append(keys, m.id.Exact)
	}
	slices.SortFunc(keys, func(a, b key) int { return bytes.Compare(a[:], b[:]) })
	sum := sha256.New()
	for _, k := range keys {
		sum.Write(k[:])
	}
	return hex.EncodeToString(sum.Sum(nil))
}
