package admin

import (
	"context"
	"net/http"

	"crossfade/relay/tlspolicy"
)

// TLSAPI tells how TLS of deliveries fares.
type TLSAPI interface {
	// TLSReports gives the days that are known, the latest first.
	TLSReports() []tlspolicy.Report
}

// TLSReports are what the last days brought.
type TLSReports struct {
	Reports []tlspolicy.Report `json:"reports" doc:"Today and the day before (UTC), as far as this node knows them, each in the shape of RFC 8460, 4.4."`
}

func (s *Server) registerTLS() {
	register(s, op{method: http.MethodGet, path: "/v1/tls", id: "get-tls", tag: tagSystem, role: RoleRead,
		summary: "How TLS with the servers that mail is delivered to fares"}, s.tlsReports)
}

func (s *Server) tlsReports(context.Context, *struct{}) (*body[TLSReports], error) {
	out := TLSReports{Reports: []tlspolicy.Report{}}
	if s.cfg.DeliveryTLS != nil {
		out.Reports = append(out.Reports, s.cfg.DeliveryTLS.TLSReports()...)
	}
	return &body[TLSReports]{out}, nil
}
