package imapconn

import (
	"math"
	"strings"
)

// Quota is what a mailbox may still take (RFC 9208).
type Quota struct {
	Bytes    int64 // octets that are left, never below 0; -1 when nothing bounds them
	Messages int64 // messages that are left, likewise
}

// Quota asks for the quota of a folder by its name on the wire. Where several
// roots bound it, the least that is left counts. A server without QUOTA bounds
// nothing as far as it tells.
func (s *Session) Quota(wire string) (Quota, error) {
	q := Quota{-1, -1}
	if !s.Has("QUOTA") {
		return q, nil
	}
	c := newCommand("GETQUOTAROOT")
	if err := c.str(wire); err != nil {
		return q, err
	}
	err := s.run(c, func(r *response) {
		if r.name == "QUOTA" {
			q.take(r.rest)
		}
	})
	return q, err
}

// take reads "root (STORAGE used limit ...)". Whatever else there is, STORAGE is
// told in units of 1024 octets (RFC 9208, 5.1).
func (q *Quota) take(data []byte) {
	vs, err := parseValues(data)
	if err != nil || len(vs) < 2 {
		return
	}
	l := vs[len(vs)-1].list
	for i := 0; i+2 < len(l); i += 3 {
		used, limit := parseInt(l[i+1].str), parseInt(l[i+2].str)
		left := max(limit-used, 0)
		switch strings.ToUpper(l[i].str) {
		case "STORAGE":
			q.Bytes = least(q.Bytes, min(left, math.MaxInt64>>10)<<10)
		case "MESSAGE":
			q.Messages = least(q.Messages, left)
		}
	}
}

func least(a, b int64) int64 {
	if a < 0 {
		return b
	}
	return min(a, b)
}
