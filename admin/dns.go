package admin

import (
	"context"
	"fmt"
	"net/http"

	"crossfade/dnswatch"
)

const tagDNS = "dns"

// DNSAPI is what the API asks of the watch over the DNS.
type DNSAPI interface {
	Status(ctx context.Context) (dnswatch.Status, error)
}

func (s *Server) registerDNS() {
	register(s, op{method: http.MethodGet, path: "/v1/dns", id: "dns-status", tag: tagDNS, role: RoleRead,
		summary: "Who can still know the old records, and when the window may close",
		detail:  "It tells what the watch has seen (dns.watch); nobody is asked for it. Without a watch, watching is false."}, s.dnsStatus)
}

func (s *Server) dnsStatus(ctx context.Context, _ *struct{}) (*body[dnswatch.Status], error) {
	if s.cfg.DNS == nil {
		return &body[dnswatch.Status]{dnswatch.Off()}, nil
	}
	st, err := s.cfg.DNS.Status(ctx)
	if err != nil {
		return nil, fmt.Errorf("the state of the DNS: %w", err)
	}
	return &body[dnswatch.Status]{st}, nil
}

// DNS tells who can still know the old records.
func (c *Client) DNS(ctx context.Context) (dnswatch.Status, error) {
	var out dnswatch.Status
	err := c.do(ctx, call{method: http.MethodGet, path: "/v1/dns"}, nil, &out)
	return out, err
}
