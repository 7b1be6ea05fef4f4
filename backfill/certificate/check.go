package certificate

import (
	"encoding/hex"
	"fmt"
	"strconv"
	"strings"

	"crossfade/backfill"
)

// Comparison is a mailbox as it is now beside what a certificate says it held.
type Comparison struct {
	User    string         `json:"user"`
	Issued  string         `json:"issued"`
	Then    int            `json:"then"`    // messages
	Now     int            `json:"now"`     // messages
	There   int            `json:"there"`   // in the same folder
	Moved   int            `json:"moved"`   // in another one
	Missing int            `json:"missing"` // nowhere
	New     int            `json:"new"`     // now, and not then
	Folders []FolderChange `json:"folders"`
}

// FolderChange is a folder of the certificate.
type FolderChange struct {
	Folder string `json:"folder"`
	Then   int    `json:"then"`
	There  int    `json:"there"`
	Moved  int    `json:"moved,omitempty"`
	// Same tells that the folder holds the very same messages, by the whole of
	// their content keys.
	Same bool `json:"same"`
	// Missing are the messages that are nowhere in the mailbox, by the UIDs that
	// they had, and UIDVALIDITY, when the certificate was made: with them they are
	// found in a backup of that time.
	Missing  []uint32 `json:"missing,omitempty"`
	Validity uint32   `json:"validity"`
}

// OK tells whether all that the certificate names is there.
func (c Comparison) OK() bool { return c.Missing == 0 }

// held is a message of a certificate.
type held struct {
	uid uint32
	key string
}

// Compare looks for each message of a certificate in the mailbox as it is now:
// in its folder, else anywhere. Equal messages count one by one.
func Compare(c Certificate, now backfill.Inventory) (Comparison, error) {
	out := Comparison{User: c.Verification.User, Issued: c.Issued.Format("2006-01-02 15:04:05 MST"), Folders: []FolderChange{}}
	free := map[string]map[string]int{} // of now: folder, key, count
	digests := map[string]string{}
	for _, h := range now.Folders {
		msgs, err := messages(h)
		if err != nil {
			return out, fmt.Errorf("the inventory of %s, folder %q: %w", now.User, h.Folder, err)
		}
		keys := map[string]int{}
		for _, m := range msgs {
			keys[m.key]++
		}
		free[h.Folder], digests[h.Folder] = keys, h.Digest
		out.Now += h.Messages
	}
	lost := make([][]held, len(c.Verification.Holds))
	for i, h := range c.Verification.Holds {
		msgs, err := messages(h)
		if err != nil {
			return out, fmt.Errorf("the certificate of %s, folder %q: %w", out.User, h.Folder, err)
		}
		lost[i] = take(free[h.Folder], msgs)
		f := FolderChange{Folder: h.Folder, Then: h.Messages, There: len(msgs) - len(lost[i]), Same: digests[h.Folder] == h.Digest, Validity: h.Validity}
		out.Then += f.Then
		out.There += f.There
		out.Folders = append(out.Folders, f)
	}
	out.find(free, lost)
	out.New = out.Now - out.There - out.Moved
	return out, nil
}

// find looks for messages that are not in their folder in all others.
func (out *Comparison) find(free map[string]map[string]int, lost [][]held) {
	rest := map[string]int{}
	for _, keys := range free {
		for k, n := range keys {
			rest[k] += n
		}
	}
	for i := range out.Folders {
		f := &out.Folders[i]
		gone := take(rest, lost[i])
		f.Moved = len(lost[i]) - len(gone)
		for _, m := range gone {
			f.Missing = append(f.Missing, m.uid)
		}
		out.Moved += f.Moved
		out.Missing += len(gone)
	}
}

// take takes messages out of a multiset and gives those that are not in it.
func take(free map[string]int, msgs []held) (without []held) {
	for _, m := range msgs {
		if free[m.key] > 0 {
			free[m.key]--
			continue
		}
		without = append(without, m)
	}
	return without
}

// messages reads the UIDs and keys of a folder.
func messages(h backfill.Holding) ([]held, error) {
	if len(h.Keys) != h.Messages*backfill.KeyOctets {
		return nil, fmt.Errorf("%d octets of keys for %d messages", len(h.Keys), h.Messages)
	}
	out := make([]held, 0, h.Messages)
	for part := range strings.SplitSeq(h.UIDs, ",") {
		if part == "" {
			continue
		}
		first, last, isRange := strings.Cut(part, ":")
		if !isRange {
			last = first
		}
		from, err := strconv.ParseUint(first, 10, 32)
		to, err2 := strconv.ParseUint(last, 10, 32)
		if err != nil || err2 != nil || to < from || to-from >= uint64(h.Messages-len(out)) {
			return nil, fmt.Errorf("the UIDs %q make no sense for %d messages", part, h.Messages)
		}
		for uid := from; uid <= to; uid++ {
			at := len(out) * backfill.KeyOctets
			out = append(out, held{uid: uint32(uid), key: hex.EncodeToString(h.Keys[at : at+backfill.KeyOctets])})
		}
	}
	if len(out) != h.Messages {
		return nil, fmt.Errorf("%d UIDs for %d messages", len(out), h.Messages)
	}
	return out, nil
}
