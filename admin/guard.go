package admin

import (
	"fmt"
	"net"
	"net/http"
	"net/netip"
	"strings"
)

// guard finds requests that were not meant for this API, or that a web page made
// somebody's browser send. The API is for programs: it has no cookies, answers no
// preflight and allows no other origin, so a page could make no request with a
// token anyhow; what is refused here does not get as far as a handler.
//
// Over plain HTTP the name in Host has to be one of ours, because a page can have its own
// name lead to our address (DNS rebinding) and then read what needs no token. With
// TLS the certificate does that.
func (s *Server) guard(r *http.Request) *Problem {
	if site := r.Header.Get("Sec-Fetch-Site"); r.Header.Get("Origin") != "" || site != "" && site != "none" {
		s.refusedBy("web-page")
		return &Problem{Type: ProblemWebPage, Title: "web pages cannot use this API", Status: http.StatusForbidden,
			Detail: "the request has the header Origin or Sec-Fetch-Site, as browsers send it for the scripts and forms of a page",
			Hint:   "use the command line or a program of your own"}
	}
	if r.TLS == nil && !s.ourHost(r.Host) {
		s.refusedBy("host")
		return &Problem{Type: ProblemWrongHost, Title: "not the name of this relay", Status: http.StatusMisdirectedRequest,
			Detail: fmt.Sprintf("the request is for %q", r.Host), Hint: "use an IP address or localhost, list the name in admin.hosts, or set admin.tls"}
	}
	if hasBody(r) && r.Header.Get("Content-Type") == "" {
		return &Problem{Type: ProblemMediaType, Title: "the request is not valid", Status: http.StatusUnsupportedMediaType,
			Detail: "the request has a body and no Content-Type", Hint: "send application/json; an import is text/csv"}
	}
	return nil
}

func hasBody(r *http.Request) bool {
	return r.ContentLength != 0 && r.Body != nil && r.Body != http.NoBody
}

// ourHost tells whether a Host header names this relay in a way that no stranger's
// DNS can: by address, by a name without a dot, or by a name of the configuration.
func (s *Server) ourHost(host string) bool {
	if h, _, err := net.SplitHostPort(host); err == nil {
		host = h
	}
	host = strings.ToLower(strings.TrimSuffix(strings.Trim(host, "[]"), "."))
	if _, err := netip.ParseAddr(host); err == nil || host == "" {
		return err == nil
	}
	if !strings.Contains(host, ".") || strings.HasSuffix(host, ".localhost") {
		return true
	}
	for _, name := range s.cfg.Hosts {
		if strings.EqualFold(host, name) {
			return true
		}
	}
	return false
}

// secure sets the headers of every answer.
func secure(h http.Header) {
	h.Set("X-Content-Type-Options", "nosniff")
	h.Set("X-Frame-Options", "DENY")
	h.Set("Cache-Control", "no-store")
	h.Set("Referrer-Policy", "no-referrer")
	h.Set("Cross-Origin-Resource-Policy", "same-origin")
	h.Set("Content-Security-Policy", "default-src 'none'; frame-ancestors 'none'")
}

// refusedBy counts a request that was refused before it reached a handler.
func (s *Server) refusedBy(reason string) {
	if s.cfg.Refused != nil {
		s.cfg.Refused(reason)
	}
}
