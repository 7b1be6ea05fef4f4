package config

import (
	"net"
	"net/netip"
	"strconv"
	"strings"

	"golang.org/x/net/idna"
)

// TLSMode says when a connection to an [Endpoint] is encrypted.
type TLSMode int

// The TLS modes.
const (
	TLSNone          TLSMode = iota // never
	TLSOpportunistic                // STARTTLS when the server offers it, clear text otherwise
	TLSRequired                     // STARTTLS, and no mail or login without it
	TLSImplicit                     // TLS from the first byte
)

// String names the mode for logs.
func (m TLSMode) String() string {
	return [...]string{"none", "opportunistic", "starttls", "implicit"}[m]
}

// The protocols of an [Endpoint].
const (
	ProtocolSMTP = "smtp"
	ProtocolLMTP = "lmtp"
	ProtocolIMAP = "imap"
)

// Endpoint is where a backend is reached, parsed from a URL such as smtp+starttls://old.internal:25. The zero value
// means that none is configured.
type Endpoint struct {
	Scheme   string  // as written: "smtp+starttls"
	Protocol string  // ProtocolSMTP, ProtocolLMTP or ProtocolIMAP
	TLS      TLSMode // when to encrypt
	Network  string  // "tcp" or "unix", for net.Dial
	Address  string  // host:port with the default port filled in, or the path of a socket; for net.Dial
	Host     string  // name or IP address without port and brackets, lower-case A-labels; empty for a socket
}

type schemeInfo struct {
	name, protocol string
	tls            TLSMode
	network        string
	port           int
}

var schemes = []schemeInfo{
	{"smtp", ProtocolSMTP, TLSOpportunistic, "tcp", 25},
	{"smtp+starttls", ProtocolSMTP, TLSRequired, "tcp", 25},
	{"smtps", ProtocolSMTP, TLSImplicit, "tcp", 465},
	{"smtp+insecure", ProtocolSMTP, TLSNone, "tcp", 25},
	{"lmtp", ProtocolLMTP, TLSOpportunistic, "tcp", 24},
	{"lmtp+unix", ProtocolLMTP, TLSNone, "unix", 0},
	{"imaps", ProtocolIMAP, TLSImplicit, "tcp", 993},
	{"imap+starttls", ProtocolIMAP, TLSRequired, "tcp", 143},
	{"imap+insecure", ProtocolIMAP, TLSNone, "tcp", 143},
}

// schemeNames lists the schemes of the protocols given, for error texts.
func schemeNames(protocols ...string) string {
	var names []string
	for _, s := range schemes {
		for _, p := range protocols {
			if s.protocol == p {
				names = append(names, s.name+"://")
			}
		}
	}
	return strings.Join(names, ", ")
}

// ParseEndpoint reads a backend's URL. Credentials, a path, a query and a fragment are errors; texts never repeat
// what stands before an @, because that may be a password.
func ParseEndpoint(text string) (Endpoint, error) {
	scheme, rest, found := strings.Cut(text, "://")
	if !found {
		return Endpoint{}, badValue(0, "not a URL: write scheme://host:port with one of %s", schemeNames(ProtocolSMTP, ProtocolLMTP, ProtocolIMAP))
	}
	scheme = strings.ToLower(scheme)
	info, err := findScheme(scheme)
	if err != nil {
		return Endpoint{}, err
	}
	start := len(scheme) + len("://")
	if strings.Contains(rest, "@") {
		return Endpoint{}, badValue(start, "a URL here holds no user or password: give imap_login for IMAP; SMTP deliveries do not log in")
	}
	e := Endpoint{Scheme: info.name, Protocol: info.protocol, TLS: info.tls, Network: info.network}
	if info.network == "unix" {
		if !strings.HasPrefix(rest, "/") || rest == "/" || strings.ContainsAny(rest, "?#\x00") {
			return Endpoint{}, badValue(start, "a socket needs an absolute path with three slashes, such as lmtp+unix:///run/dovecot/lmtp")
		}
		e.Address = rest
		return e, nil
	}
	rest = strings.TrimSuffix(rest, "/")
	if i := strings.IndexAny(rest, "/?#"); i >= 0 {
		return Endpoint{}, badValue(start+i, "unexpected %q: only scheme://host:port is meant here", rest[i:])
	}
	host, port, err := splitHostPort(rest, info.port)
	if err != nil {
		return Endpoint{}, badValue(start, "%s", err)
	}
	e.Host, e.Address = host, net.JoinHostPort(host, strconv.Itoa(port))
	return e, nil
}

func findScheme(scheme string) (schemeInfo, error) {
	for _, s := range schemes {
		if s.name == scheme {
			return s, nil
		}
	}
	switch scheme {
	case "imap":
		return schemeInfo{}, badValue(0, "scheme imap:// does not say whether to encrypt: write imap+starttls://, imaps:// or imap+insecure://")
	case "unix", "lmtps", "lmtp+starttls":
		return schemeInfo{}, badValue(0, "unknown scheme %q: for LMTP write lmtp://host:port or lmtp+unix:///path", scheme)
	}
	return schemeInfo{}, badValue(0, "unknown scheme %q: known are %s", scheme, schemeNames(ProtocolSMTP, ProtocolLMTP, ProtocolIMAP))
}

// splitHostPort takes host, host:port, [v6] and [v6]:port.
func splitHostPort(text string, defaultPort int) (string, int, error) {
	host, port := text, defaultPort
	switch {
	case strings.HasPrefix(text, "[") && strings.HasSuffix(text, "]"):
		host = text[1 : len(text)-1]
	case strings.Contains(text, ":"):
		h, p, err := net.SplitHostPort(text)
		if err != nil {
			return "", 0, badValue(0, "%q is not host:port (an IPv6 address goes in brackets, such as [2001:db8::1]:25)", text)
		}
		host = h
		if port, err = parsePort(p, 1); err != nil {
			return "", 0, err
		}
	}
	host, err := normalHost(host)
	return host, port, err
}

func parsePort(text string, least int) (int, error) {
	n, err := strconv.ParseUint(text, 10, 32)
	if err != nil || int(n) < least || n > 65535 {
		return 0, badValue(0, "port %q is not a number from %d to 65535", text, least)
	}
	return int(n), nil
}

// normalHost accepts an IP address or a host name. Other than a domain for mail, a host may be a single label or hold
// an underscore, as names in container networks do.
func normalHost(host string) (string, error) {
	if ip, err := netip.ParseAddr(host); err == nil {
		return ip.String(), nil
	}
	name, err := idna.Lookup.ToASCII(strings.ReplaceAll(strings.TrimSuffix(host, "."), "_", "0"))
	if host == "" || err != nil || checkLabels(strings.ReplaceAll(name, "_", "0")) != "" || looksLikeIP(name) {
		return "", badValue(0, "%q is neither a host name nor an IP address", host)
	}
	if isASCII(host) {
		return strings.ToLower(strings.TrimSuffix(host, ".")), nil
	}
	if strings.Contains(host, "_") {
		return "", badValue(0, "%q mixes an underscore with characters outside ASCII", host)
	}
	return name, nil
}

// IsZero reports whether no endpoint is configured.
func (e Endpoint) IsZero() bool { return e.Scheme == "" }

// Loopback reports whether the endpoint cannot leave this machine: a socket, localhost or a loopback address.
func (e Endpoint) Loopback() bool {
	return e.Network == "unix" || isLoopback(e.Host)
}

func isLoopback(host string) bool {
	ip, err := netip.ParseAddr(host)
	return host == "localhost" || err == nil && ip.Unmap().IsLoopback()
}

// String returns the URL with its port, or "" for the zero value.
func (e Endpoint) String() string {
	if e.IsZero() {
		return ""
	}
	return e.Scheme + "://" + e.Address
}

// UnmarshalText is [ParseEndpoint].
func (e *Endpoint) UnmarshalText(text []byte) (err error) {
	*e, err = ParseEndpoint(string(text))
	return err
}

// MarshalText is [Endpoint.String].
func (e Endpoint) MarshalText() ([]byte, error) { return []byte(e.String()), nil }
