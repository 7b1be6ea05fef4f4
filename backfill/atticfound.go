package backfill

import (
	"bufio"
	"encoding/base64"
	"encoding/hex"
	"errors"
	"fmt"
	"io"
	"mime"
	"mime/multipart"
	"net/mail"
	"regexp"
	"slices"
	"strconv"
	"strings"

	"crossfade/backfill/imapconn"
)

// found looks at a folder that has the attic's name and is not in the ledger. It
// is the attic when mails lie there that carry messages as ours do: then a ledger
// was lost, and what they carry is not to be carried once more. These mails are in
// the record when it returns true.
func (a *attic) found(f *folderRun, d imapconn.Folder) (bool, error) {
	r := f.lane.dstReader
	sel, err := r.Select(d)
	if err != nil {
		return false, err
	}
	uids, err := r.UIDsFrom(1)
	if err != nil {
		return false, err
	}
	var all []kept
	var ps pairs
	for part := range slices.Chunk(uids, 50) { // each may be an open file
		t := &fetcher{keep: true, dir: a.p.c.TempDir, room: wrapInFile}
		failures, err := r.Fetch(part, imapconn.Items{Body: true}, t)
		for _, m := range t.msgs {
			if k, ok := carries(m); ok {
				k.N = uint32(len(all) + 1)
				all = append(all, k)
				ps.add(k.N, m.meta.UID)
			}
		}
		t.close()
		if err != nil {
			return false, err
		}
		if i := slices.IndexFunc(failures, func(x imapconn.Failure) bool { return !x.Gone }); i >= 0 {
			return false, fmt.Errorf("folder %q: UID %d of the destination cannot be read, and it may carry a message: %w", d.Name, failures[i].UID, failures[i].Err)
		}
	}
	if len(all) == 0 {
		return false, nil
	}
	a.rec.Dest, a.rec.DstValidity, a.rec.Attic, a.rec.Pairs = d.Wire, sel.UIDValidity, all, ps
	return true, nil
}

// there tells whether the folder with the name that f has is the attic.
func (a *attic) there(f *folderRun) (bool, error) {
	placed, err := a.p.placed(a.rec.Source, f.name)
	if err != nil || placed {
		return false, err
	}
	i := slices.IndexFunc(a.p.dstSide.folders, func(d imapconn.Folder) bool { return d.Name == f.name && d.Selectable() })
	if i < 0 {
		return false, nil
	}
	return a.found(f, a.p.dstSide.folders[i])
}

// carriedID is the Message-ID of a mail that carries a message: the beginning of
// the message's content key, and its UID.
var carriedID = regexp.MustCompile(`^<wrapped\.([0-9a-f]{32})\.(\d{1,10})@[^>]*>$`)

// carries tells which message a mail of ours carries. Which folder it is of is
// known when the message is met.
func carries(m *incoming) (k kept, ok bool) {
	msg, err := mail.ReadMessage(bufio.NewReader(io.NewSectionReader(m.body, 0, m.body.size)))
	if err != nil {
		return k, false
	}
	id := carriedID.FindStringSubmatch(strings.TrimSpace(msg.Header.Get("Message-ID")))
	_, params, err := mime.ParseMediaType(msg.Header.Get("Content-Type"))
	if id == nil || err != nil || params["boundary"] != "=_crossfade_"+id[1] {
		return k, false
	}
	h := newHasher("")
	if err := attached(h, multipart.NewReader(msg.Body, params["boundary"])); err != nil {
		return k, false
	}
	original := h.end().Exact
	if hex.EncodeToString(original[:16]) != id[1] {
		return k, false // somebody changed it
	}
	uid, _ := strconv.ParseUint(id[2], 10, 32) // it tells nothing without its UIDVALIDITY
	return kept{UID: uint32(uid), Original: original, Exact: m.id.Exact, Loose: m.id.Loose}, true
}

var errNothingAttached = errors.New("the mail has no attachment")

// attached copies the message that is attached to a mail of ours.
func attached(w io.Writer, r *multipart.Reader) error {
	for {
		part, err := r.NextRawPart()
		if errors.Is(err, io.EOF) {
			return errNothingAttached
		}
		if err != nil {
			return err
		}
		if !strings.HasPrefix(part.Header.Get("Content-Disposition"), "attachment") {
			continue
		}
		from := io.Reader(part)
		if strings.EqualFold(part.Header.Get("Content-Transfer-Encoding"), "base64") {
			from = base64.NewDecoder(base64.StdEncoding, from)
		}
		_, err = io.Copy(w, from)
		return err
	}
}
