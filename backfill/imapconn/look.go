package imapconn

import (
	"cmp"
	"errors"
	"fmt"
	"slices"
	"strconv"
	"strings"
	"time"
)

// Since gives the UIDs of the open folder's messages that arrived on a day or
// after it, ascending. The day is that of the server's own calendar (RFC 3501,
// 6.4.4): give the one before the day that is meant. With a field and a text only
// those are given whose header field has the text in it, as the server sees it:
// some servers look for whole words, and some answer that there are none.
func (s *Session) Since(day time.Time, field, text string) ([]uint32, error) {
	c := newCommand("UID SEARCH").raw("SINCE " + day.UTC().Format("2-Jan-2006"))
	if field != "" {
		c.raw("HEADER " + field)
		if err := c.str(text); err != nil {
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

// ReceivedFields gives the Received fields of messages of the open folder
// (ascending UIDs), as they stand and in their order. What the server leaves out
// is not in the answer: it is gone, or has to be asked for again.
func (s *Session) ReceivedFields(uids []uint32) (map[uint32][]byte, error) {
	out := make(map[uint32][]byte, len(uids))
	for _, set := range FormatUIDs(uids, 4000) {
		c := newCommand("UID FETCH").raw(set).raw("(UID BODY.PEEK[HEADER.FIELDS (RECEIVED)])")
		var odd error
		err := s.run(c, func(r *response) {
			if r.name != "FETCH" {
				return
			}
			uid, fields, err := parseReceived(r.rest)
			if err != nil {
				odd = fmt.Errorf("UID FETCH: a message cannot be told from %q: %w", printable(string(r.rest)), err)
			}
			if uid != 0 {
				out[uid] = fields
			}
		})
		if err == nil {
			err = odd
		}
		if err != nil {
			return nil, err
		}
	}
	return out, nil
}

// InFolder are messages of one folder.
type InFolder struct {
	Wire string   // the folder's name on the wire
	UIDs []uint32 // ascending
}

// FlagsIn gives the flags of messages of folders, without \Recent, in one round trip:
// nil for a folder that cannot be opened or read. What the server leaves out is not in
// the answer. Where it says several things of a message, all of them are. Afterwards
// another folder may be open, or none.
func (s *Session) FlagsIn(folders []InFolder) ([]map[uint32][]string, error) {
	var cmds []*command
	var of []int
	for i, f := range folders {
		open := newCommand("EXAMINE")
		if err := open.str(f.Wire); err != nil {
			return nil, err
		}
		cmds, of = append(cmds, open), append(of, i)
		for _, set := range FormatUIDs(f.UIDs, 4000) {
			cmds, of = append(cmds, newCommand("UID FETCH").raw(set).raw("(UID FLAGS)")), append(of, i)
		}
	}
	out := make([]map[uint32][]string, len(folders))
	for i := range out {
		out[i] = map[uint32][]string{}
	}
	var odd error
	errs, err := s.pipeline(cmds, func(i int, r *response) {
		if r.name != "FETCH" {
			return
		}
		m, _, err := parseGmail(r.rest)
		if err != nil {
			odd = fmt.Errorf("UID FETCH: a message cannot be told from %q: %w", printable(string(r.rest)), err)
		}
		if m.UID != 0 {
			out[of[i]][m.UID] = append(out[of[i]][m.UID], m.Flags...)
		}
	})
	for i, refused := range errs {
		if refused != nil {
			out[of[i]] = nil
		}
	}
	return out, cmp.Or(err, odd)
}

// parseReceived reads the data of a FETCH. The UID is 0 when it is news of
// something else.
func parseReceived(b []byte) (uint32, []byte, error) {
	vs, err := parseValues(b)
	if err != nil {
		return 0, nil, err
	}
	if len(vs) != 1 || !vs[0].isList {
		return 0, nil, errors.New("it is no list")
	}
	var uid uint32
	var fields []byte
	section := false // BODY[HEADER.FIELDS (RECEIVED)] falls into three values, as in "BODY[HEADER.FIELDS" "(RECEIVED)" "]"
	for items := vs[0].list; len(items) > 0; items = items[1:] {
		switch v := items[0]; {
		case !v.quoted && strings.EqualFold(v.str, "UID") && len(items) > 1:
			uid = parseUint32(items[1].str)
		case !v.quoted && strings.HasPrefix(strings.ToUpper(v.str), "BODY[HEADER.FIELDS"):
			section = true
		case section && v.str == "]" && !v.quoted && len(items) > 1:
			if fields = []byte(items[1].str); items[1].isNil() {
				fields = []byte{}
			}
		}
	}
	if fields == nil {
		return 0, nil, nil
	}
	return uid, fields, nil
}
