package tlspolicy

import (
	"context"
	"crypto/x509"

	"crossfade/relay/smtpclient"
)

// Server is one server and what may be published for it. Each part may be missing.
type Server struct {
	DANE *DANE
	// STS and Domain say whose MTA-STS policy counts for the server; Host is its name there.
	STS    *STS
	Domain string
	Host   string
	Roots  *x509.CertPool // nil: the system's
}

// Rule is what is demanded of a connection that is made now. DANE goes first: where there are TLSA records, MTA-STS must
// not take anything from them (RFC 8461, 2).
func (s *Server) Rule(ctx context.Context) (smtpclient.Rule, error) {
	if s.DANE != nil {
		rule, err := s.DANE.Rule(ctx)
		if err != nil || rule.Name != "" {
			return rule, err
		}
	}
	if s.STS != nil && s.Domain != "" {
		return s.STS.Rule(ctx, s.Domain, s.Host, s.Roots), nil
	}
	return smtpclient.Rule{}, nil
}
