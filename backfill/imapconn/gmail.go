package imapconn

import (
	"errors"
	"fmt"
	"slices"
	"strconv"
	"strings"
	"time"
)

// GmailExtensions is the capability of Gmail's own extensions of IMAP.
const GmailExtensions = "X-GM-EXT-1"

// GmailMessage is a message as Gmail's extensions tell of it.
type GmailMessage struct {
	Meta
	ID uint64 // X-GM-MSGID: the same in every folder and for ever
	// Labels are X-GM-LABELS: those of the system begin with a backslash, the
	// users' are names of folders as the server writes them.
	Labels []string
}

// ListGmail opens a folder for reading and lists its messages, UIDs ascending:
// those with a label, all when label is empty. A list that is shorter than what
// the server said there would be is asked for again, and is then [ErrShort].
func (s *Session) ListGmail(wire, label string) ([]GmailMessage, Selected, error) {
	var sel Selected
	for try := 0; ; try++ {
		var err error
		if sel, err = s.Examine(wire); err != nil {
			return nil, sel, fmt.Errorf("folder %q: %w", wire, err)
		}
		sets, most := []string{"1:*"}, int(sel.Exists)
		if label != "" && most > 0 {
			uids, err := s.gmailSearch("X-GM-LABELS", label)
			if err != nil {
				return nil, sel, fmt.Errorf("folder %q: %w", wire, err)
			}
			sets, most = FormatUIDs(uids, 4000), len(uids)
		}
		if most == 0 {
			return nil, sel, nil
		}
		msgs, err := s.fetchGmail(sets)
		if err != nil {
			return nil, sel, fmt.Errorf("folder %q: %w", wire, err)
		}
		if len(msgs) >= most {
			return msgs, sel, nil
		}
		if try+1 >= attempts {
			return nil, sel, fmt.Errorf("folder %q: %w: %d of %d", wire, ErrShort, len(msgs), most)
		}
	}
}

// GmailUIDs opens a folder for reading and gives the UIDs that a search finds in
// it, ascending.
func (s *Session) GmailUIDs(wire string) ([]uint32, error) {
	if _, err := s.Examine(wire); err != nil {
		return nil, fmt.Errorf("folder %q: %w", wire, err)
	}
	uids, err := s.gmailSearch("ALL", "")
	if err != nil {
		return nil, fmt.Errorf("folder %q: %w", wire, err)
	}
	return uids, nil
}

func (s *Session) gmailSearch(key, arg string) ([]uint32, error) {
	c := newCommand("UID SEARCH").raw(key)
	if arg != "" {
		if err := c.str(arg); err != nil {
			return nil, err
		}
	}
	var uids []uint32
	var odd error
	err := s.run(c, func(r *response) {
		if r.name != "SEARCH" {
			return
		}
		for _, f := range strings.Fields(string(r.rest)) {
			n, err := strconv.ParseUint(f, 10, 32)
			if err != nil || n == 0 {
				odd = fmt.Errorf("UID SEARCH: the server answered %q", printable(string(r.rest)))
				return
			}
			uids = append(uids, uint32(n))
		}
	})
	if err == nil {
		err = odd
	}
	if err != nil {
		return nil, err
	}
	slices.Sort(uids)
	return slices.Compact(uids), nil
}

func (s *Session) fetchGmail(sets []string) ([]GmailMessage, error) {
	var msgs []GmailMessage
	var odd error
	for _, set := range sets {
		c := newCommand("UID FETCH").raw(set).raw("(UID X-GM-MSGID X-GM-LABELS FLAGS RFC822.SIZE INTERNALDATE)")
		err := s.run(c, func(r *response) {
			if r.name != "FETCH" {
				return
			}
			m, whole, err := parseGmail(r.rest)
			if err != nil {
				odd = fmt.Errorf("UID FETCH: a message cannot be told from %q: %w", printable(string(r.rest)), err)
			}
			if whole {
				msgs = append(msgs, m)
			}
		})
		if err == nil {
			err = odd
		}
		if err != nil {
			return nil, err
		}
	}
	slices.SortStableFunc(msgs, func(a, b GmailMessage) int { return int(int64(a.UID) - int64(b.UID)) })
	return slices.CompactFunc(msgs, func(a, b GmailMessage) bool { return a.UID == b.UID }), nil
}

// parseGmail reads the data of a FETCH. whole tells that it has all that was
// asked for: news of the flags only has not, and is no message.
func parseGmail(b []byte) (m GmailMessage, whole bool, err error) {
	vs, err := parseValues(b)
	if err != nil {
		return m, false, err
	}
	if len(vs) != 1 || !vs[0].isList || len(vs[0].list)%2 != 0 {
		return m, false, errors.New("it is no list of pairs")
	}
	labels, sized := false, false
	items := vs[0].list
	for i := 0; i < len(items); i += 2 {
		v := items[i+1]
		switch strings.ToUpper(items[i].str) {
		case "UID":
			m.UID = parseUint32(v.str)
		case "X-GM-MSGID":
			if m.ID, err = strconv.ParseUint(v.str, 10, 64); err != nil {
				return m, false, errors.New("its X-GM-MSGID is no number")
			}
		case "X-GM-LABELS":
			if !v.isList {
				return m, false, errors.New("its X-GM-LABELS are no list")
			}
			labels, m.Labels = true, texts(v.list)
		case "FLAGS":
			m.Flags = slices.DeleteFunc(texts(v.list), func(f string) bool { return strings.EqualFold(f, `\Recent`) })
		case "RFC822.SIZE":
			m.Size, err = strconv.ParseInt(v.str, 10, 63)
			sized = err == nil && m.Size >= 0
		case "INTERNALDATE":
			m.Date, _ = time.Parse("_2-Jan-2006 15:04:05 -0700", v.str) // zero is "cannot be read"
		}
	}
	return m, m.UID != 0 && m.ID != 0 && labels && sized && m.Flags != nil, nil
}

// texts gives the atoms and strings of a list; it is never nil.
func texts(vs []value) []string {
	out := make([]string, 0, len(vs))
	for _, v := range vs {
		if !v.isList && v.str != "" {
			out = append(out, v.str)
		}
	}
	return out
}
