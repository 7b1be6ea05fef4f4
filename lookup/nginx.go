package lookup

import (
	"context"
	"fmt"
	"net/http"
	"net/netip"
	"net/url"
	"strconv"
	"sync"
	"time"
	"unicode/utf8"
)

// nginxQuestion is what ngx_mail_auth_http_module asks, without the password.
type nginxQuestion struct {
	method   string // plain, login, apop, cram-md5, external, none
	protocol Protocol
	user     string
	attempt  int // from 1, of this connection
}

// parseNginx reads the question from the header. nginx writes what is not plain
// in the name as %XX.
func parseNginx(h http.Header) (nginxQuestion, error) {
	q := nginxQuestion{method: h.Get("Auth-Method"), attempt: 1}
	switch h.Get("Auth-Protocol") {
	case "imap":
		q.protocol = IMAP
	case "pop3":
		q.protocol = POP3
	case "smtp":
		q.protocol = Submission
	default:
		return q, fmt.Errorf("%w: Auth-Protocol %.20q is not imap, pop3 or smtp", errRefused, h.Get("Auth-Protocol"))
	}
	user, err := url.PathUnescape(h.Get("Auth-User"))
	if err != nil || !utf8.ValidString(user) || len(user) > maxQuestion {
		return q, fmt.Errorf("%w: Auth-User is malformed", errRefused)
	}
	q.user = user
	if n, err := strconv.Atoi(h.Get("Auth-Login-Attempt")); err == nil && n > 0 {
		q.attempt = n
	}
	return q, nil
}

// nginxTries is how many logins of one connection get an answer that lets the
// client try again. nginx frees the memory of a try when the connection ends.
const nginxTries = 10

// nginx answers auth_http. The answer is in the header; the status line is not
// read by nginx.
func (s *Service) nginx(w http.ResponseWriter, r *http.Request) {
	h := w.Header()
	q, err := parseNginx(r.Header)
	var l login
	var ip netip.Addr
	if err == nil {
		l, ip, err = s.nginxPlace(r.Context(), q)
	}
	if err == nil {
		h.Set("Auth-Status", "OK")
		h.Set("Auth-Server", ip.String())
		h.Set("Auth-Port", strconv.Itoa(l.up.Port))
		if l.name != q.user {
			h.Set("Auth-User", l.name)
		}
		return
	}
	text, code := nginxRefusal(q.protocol, err)
	h.Set("Auth-Status", text)
	if q.protocol == Submission {
		h.Set("Auth-Error-Code", code)
	}
	if q.attempt < nginxTries {
		h.Set("Auth-Wait", "3")
	}
}

// nginxRefusal is what the client is told, in the words of its protocol: what is
// temporary must not make it forget a password (RFC 5530, RFC 3206, RFC 4954).
func nginxRefusal(p Protocol, err error) (text, code string) {
	switch answerOf(err) {
	case AnswerUnknown:
		return "Invalid login or password", "535 5.7.8"
	case AnswerRefused:
		text, code = "This way to log in is not offered here", "504 5.5.4"
		if p == Submission {
			return text, code
		}
		return text, ""
	}
	switch p {
	case IMAP:
		return "[UNAVAILABLE] Temporary authentication failure", ""
	case POP3:
		return "[SYS/TEMP] Temporary authentication failure", ""
	}
	return "Temporary authentication failure", "454 4.7.0"
}

func (s *Service) nginxPlace(ctx context.Context, q nginxQuestion) (l login, ip netip.Addr, err error) {
	ctx, cancel := context.WithTimeout(ctx, s.cfg.Timeout)
	defer cancel()
	defer func() { s.answered(string(q.protocol), q.user, err) }()
	switch {
	case q.method != "plain" && q.method != "login":
		return l, ip, fmt.Errorf("%w: Auth-Method %.20q: the password has to reach the backend, so only plain and login work", errRefused, q.method)
	case q.protocol == Submission && !s.set.Load().NginxSMTP:
		return l, ip, fmt.Errorf("%w: nginx would take the answer for a verified password: set proxy_smtp_auth on there, and then lookup.nginx_smtp here", errRefused)
	}
	if l, err = s.loginPlace(ctx, q.protocol, q.user); err != nil {
		return l, ip, err
	}
	if l.up.TLS != Clear {
		return l, ip, fmt.Errorf("nginx does not speak TLS to mail servers, and lookup.%s asks for it: write %s+insecure:// there", q.protocol, q.protocol)
	}
	ip, err = s.hosts.address(ctx, l.up.Host)
	return l, ip, err
}

// hosts knows the addresses of servers for a short time: nginx wants numbers.
type hosts struct {
	lookup func(ctx context.Context, network, host string) ([]netip.Addr, error)

	mu    sync.Mutex
	known map[string]hostAddress
}

type hostAddress struct {
	ip    netip.Addr
	until time.Time
}

// hostTime is how long an address is good without asking again.
const hostTime = 30 * time.Second

// address gives the IP address of a host, IPv4 first. A name server that does
// not answer leaves the address that was known before in use.
func (h *hosts) address(ctx context.Context, host string) (netip.Addr, error) {
	if ip, err := netip.ParseAddr(host); err == nil {
		return ip, nil
	}
	h.mu.Lock()
	was, known := h.known[host]
	h.mu.Unlock()
	if known && time.Now().Before(was.until) {
		return was.ip, nil
	}
	all, err := h.lookup(ctx, "ip", host)
	if err == nil && len(all) == 0 {
		err = fmt.Errorf("%s has no address", host)
	}
	if err != nil {
		if known {
			return was.ip, nil
		}
		return netip.Addr{}, fmt.Errorf("find the address of %s: %w", host, err)
	}
	ip := all[0].Unmap()
	for _, a := range all {
		if a = a.Unmap(); a.Is4() {
			ip = a
			break
		}
	}
	h.mu.Lock()
	defer h.mu.Unlock()
	if h.known == nil {
		h.known = make(map[string]hostAddress)
	}
	h.known[host] = hostAddress{ip: ip, until: time.Now().Add(hostTime)}
	return ip, nil
}
