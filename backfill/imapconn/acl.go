package imapconn

import "strings"

// Right is what somebody may do with a folder (RFC 4314).
type Right struct {
	Identifier string // who, as the server writes it
	Rights     string // a letter for each
}

// ACL gives who may do what with a folder, by its name on the wire: only where
// the server has ACL, and only to a login with the right to administer it.
func (s *Session) ACL(wire string) ([]Right, error) {
	c := newCommand("GETACL")
	if err := c.str(wire); err != nil {
		return nil, err
	}
	var out []Right
	err := s.run(c, func(r *response) {
		if r.name != "ACL" {
			return
		}
		vs, err := parseValues(r.rest)
		if err != nil {
			return
		}
		for i := 1; i+1 < len(vs); i += 2 {
			out = append(out, Right{Identifier: vs[i].str, Rights: strings.ToLower(vs[i+1].str)})
		}
	})
	return out, err
}

// AddRights gives somebody rights on a folder beside those that he has.
func (s *Session) AddRights(wire string, r Right) error {
	c := newCommand("SETACL")
	for _, arg := range []string{wire, r.Identifier, "+" + r.Rights} {
		if err := c.str(arg); err != nil {
			return err
		}
	}
	return s.run(c, nil)
}
