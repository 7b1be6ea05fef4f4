package imapconn

import (
	"errors"
	"strconv"
	"strings"
)

// Status is what a folder holds.
type Status struct {
	Messages    uint32
	UIDNext     uint32
	UIDValidity uint32
	ModSeq      uint64 // HIGHESTMODSEQ (RFC 7162), 0 without CONDSTORE
	Size        int64  // octets (RFC 8438), 0 when the server does not tell
}

// Statuses asks for the status of many folders by their names on the wire. The
// commands are pipelined: a pass with nothing to do costs little more than one
// round trip. A folder that cannot be looked into has its error in errs.
func (s *Session) Statuses(wires []string) (stats map[string]Status, errs map[string]error, err error) {
	ask := &asking{s: s}
	answer := ask.status(wires)
	if err := ask.run(); err != nil {
		return nil, nil, err
	}
	stats, errs = answer()
	return stats, errs, nil
}

// statusItems are what STATUS is asked for.
func (s *Session) statusItems() string {
	items := "MESSAGES UIDNEXT UIDVALIDITY"
	if s.Has("CONDSTORE") || s.Has("QRESYNC") {
		items += " HIGHESTMODSEQ"
	}
	if s.Has("STATUS=SIZE") {
		items += " SIZE"
	}
	return items
}

func (a *asking) status(wires []string) func() (map[string]Status, map[string]error) {
	items := a.s.statusItems()
	stats, errs := map[string]Status{}, map[string]error{}
	answers := map[string]func() error{}
	for _, wire := range wires {
		c := newCommand("STATUS")
		if err := c.str(wire); err != nil {
			errs[wire] = err
			continue
		}
		// The name in the answer may be spelled otherwise than the one asked for:
		// answers come in order, so the tag tells which one is meant.
		answers[wire] = a.add(c.raw("("+items+")"), func(r *response) {
			if st, ok := parseStatusData(r); ok {
				stats[wire] = st
			}
		})
	}
	return func() (map[string]Status, map[string]error) {
		for wire, answer := range answers {
			if err := answer(); err != nil {
				errs[wire] = err
			} else if stats[wire].UIDValidity == 0 {
				errs[wire] = errors.New("STATUS: the server answered OK and told nothing")
			}
			if errs[wire] != nil {
				delete(stats, wire)
			}
		}
		return stats, errs
	}
}

func parseStatusData(r *response) (Status, bool) {
	var st Status
	if r.name != "STATUS" {
		return st, false
	}
	vs, err := parseValues(r.rest)
	if err != nil || len(vs) < 2 {
		return st, false
	}
	items := vs[len(vs)-1].list
	for i := 0; i+1 < len(items); i += 2 {
		n := items[i+1].str
		switch strings.ToUpper(items[i].str) {
		case "MESSAGES":
			st.Messages = parseUint32(n)
		case "UIDNEXT":
			st.UIDNext = parseUint32(n)
		case "UIDVALIDITY":
			st.UIDValidity = parseUint32(n)
		case "HIGHESTMODSEQ":
			st.ModSeq, _ = strconv.ParseUint(n, 10, 64)
		case "SIZE":
			st.Size = parseInt(n)
		}
	}
	return st, true
}
