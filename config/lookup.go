package config

import (
	"fmt"
	"net"
	"net/netip"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
)

// Lookup says where other programs may ask who lives where, and what they are told. See package lookup.
type Lookup struct {
	Socketmap      []string        `yaml:"socketmap" reload:"restart" doc:"Where Postfix's socketmap protocol is answered: host:port, or unix:/path of a socket. Postfix names the table in each question: transport, alias, recipient, elsewhere-old, elsewhere-new, side, imap, pop3, submission, sieve or lmtp."`
	TCPTable       []string        `yaml:"tcp_table" reload:"restart" doc:"Where Postfix's tcp_table protocol is answered, with the one table that tcp_table_map names."`
	TCPTableMap    string          `yaml:"tcp_table_map" reload:"restart" enum:"transport|alias|recipient|elsewhere-old|elsewhere-new|side|imap|pop3|submission|sieve|lmtp" doc:"The table that tcp_table answers."`
	HTTP           []string        `yaml:"http" reload:"restart" doc:"Where HTTP is answered: GET /nginx for auth_http of nginx, GET /dovecot for the Lua passdb of a Dovecot proxy."`
	TokenFile      string          `yaml:"token_file" path:"yes" doc:"File with the key that HTTP clients show as X-Auth-Key; made with a random key (mode 0600) at the start when absent."`
	Networks       []netip.Prefix  `yaml:"networks" doc:"Networks (CIDR) that may ask beside this machine itself. Needed to listen on anything but a loopback address or a socket: the Postfix protocols know no password, and tell who exists."`
	SocketMode     string          `yaml:"socket_mode" reload:"restart" doc:"Permissions of the unix sockets, in octal. Whoever may write to one may ask."`
	MaxConnections int             `yaml:"max_connections" reload:"restart" min:"1" max:"100000" doc:"Connections at once, over all listeners of this section; more are closed."`
	LoginDomain    string          `yaml:"login_domain" doc:"Domain that completes a login name without one. Empty means the first of domains."`
	Transport      LookupTransport `yaml:"transport" doc:"What the table transport answers, in the notation of Postfix's transport(5). Needed for that table."`
	IMAP           LookupSides     `yaml:"imap" doc:"Where an IMAP proxy is sent. Both sides or none."`
	POP3           LookupSides     `yaml:"pop3" doc:"Where a POP3 proxy is sent. Both sides or none."`
	Submission     LookupSides     `yaml:"submission" doc:"Where a submission proxy is sent. Both sides or none."`
	Sieve          LookupSides     `yaml:"sieve" doc:"Where a ManageSieve proxy is sent. Both sides or none."`
	LMTP           LookupSides     `yaml:"lmtp" doc:"Where an LMTP proxy is sent; a user whose mail is held is a temporary failure. Both sides or none."`
	NginxSMTP      bool            `yaml:"nginx_smtp" doc:"Answer nginx for SMTP too. Only with proxy_smtp_auth on in nginx, which then logs in at the backend: without that it takes our answer for a verified password, and anybody could send."`
}

// LookupTransport is what the table transport answers.
type LookupTransport struct {
	Old   string `yaml:"old" doc:"For users of old, such as smtp:[old.internal]:25."`
	New   string `yaml:"new" doc:"For users of new, such as lmtp:inet:new.internal:24."`
	Relay string `yaml:"relay" doc:"To this relay, for users whose mail is held, for groups with members on both sides, and the answer of elsewhere-old and elsewhere-new, such as smtp:[mx.internal]:25. Empty: Postfix is told to keep the mail of those who are held (retry:), and such groups are a temporary failure."`
}

// LookupSides are the two servers of one protocol.
type LookupSides struct {
	Old LookupServer `yaml:"old" doc:"The server of old: the name of this section with s, +starttls or +insecure, as in imaps://old.internal:993. Proxies are told the port and when to encrypt; nginx can only be sent to +insecure, and does not resolve names, so it gets the host's first address."`
	New LookupServer `yaml:"new" doc:"The server of new, in the same notation."`
}

// Enabled reports whether the protocol is looked up.
func (s LookupSides) Enabled() bool { return s.Old.Scheme != "" && s.New.Scheme != "" }

// LookupServer is a server that a proxy is sent to, parsed from a URL such as imap+starttls://old.internal:143. The
// zero value means that none is configured.
type LookupServer struct {
	Scheme string // as written
	Proto  string // imap, pop3, submission, sieve or lmtp
	TLS    TLSMode
	Host   string // without brackets
	Port   int
}

// lookupSchemes are those that make sense: ports by RFC 8314, RFC 6409, RFC 5804. TLSRequired is STARTTLS.
var lookupSchemes = []schemeInfo{
	{"imaps", "imap", TLSImplicit, "tcp", 993}, {"imap+starttls", "imap", TLSRequired, "tcp", 143}, {"imap+insecure", "imap", TLSNone, "tcp", 143},
	{"pop3s", "pop3", TLSImplicit, "tcp", 995}, {"pop3+starttls", "pop3", TLSRequired, "tcp", 110}, {"pop3+insecure", "pop3", TLSNone, "tcp", 110},
	{"submissions", "submission", TLSImplicit, "tcp", 465}, {"submission+starttls", "submission", TLSRequired, "tcp", 587}, {"submission+insecure", "submission", TLSNone, "tcp", 587},
	{"sieve+starttls", "sieve", TLSRequired, "tcp", 4190}, {"sieve+insecure", "sieve", TLSNone, "tcp", 4190},
	{"lmtp+starttls", "lmtp", TLSRequired, "tcp", 24}, {"lmtp+insecure", "lmtp", TLSNone, "tcp", 24},
}

// UnmarshalText reads scheme://host or scheme://host:port.
func (s *LookupServer) UnmarshalText(text []byte) error {
	scheme, rest, found := strings.Cut(string(text), "://")
	i := slices.IndexFunc(lookupSchemes, func(x schemeInfo) bool { return x.name == strings.ToLower(scheme) })
	if !found || i < 0 {
		return badValue(0, "want scheme://host:port, such as imap+starttls://old.internal:143 or pop3s://old.internal")
	}
	if strings.Contains(rest, "@") {
		return badValue(len(scheme)+3, "a URL here holds no user or password: clients bring their own")
	}
	info := lookupSchemes[i]
	host, port, err := splitHostPort(strings.TrimSuffix(rest, "/"), info.port)
	if err != nil {
		return badValue(len(scheme)+3, "%s", err)
	}
	*s = LookupServer{Scheme: info.name, Proto: info.protocol, TLS: info.tls, Host: host, Port: port}
	return nil
}

// MarshalText gives the URL with its port, or nothing for the zero value.
func (s LookupServer) MarshalText() ([]byte, error) {
	if s.Scheme == "" {
		return nil, nil
	}
	return []byte(s.Scheme + "://" + net.JoinHostPort(s.Host, strconv.Itoa(s.Port))), nil
}

// Enabled reports whether anything is answered at all.
func (l *Lookup) Enabled() bool { return len(l.Socketmap)+len(l.TCPTable)+len(l.HTTP) > 0 }

// Sides gives the servers by protocol, those that are configured.
func (l *Lookup) Sides() map[string]LookupSides {
	all := map[string]LookupSides{"imap": l.IMAP, "pop3": l.POP3, "submission": l.Submission, "sieve": l.Sieve, "lmtp": l.LMTP}
	for name, s := range all {
		if !s.Enabled() {
			delete(all, name)
		}
	}
	return all
}

// SocketPath gives the path of an address that is a unix socket.
func SocketPath(address string) (path string, ok bool) { return strings.CutPrefix(address, "unix:") }

func defaultLookup() Lookup {
	return Lookup{TCPTableMap: "transport", TokenFile: "./lookup.token", SocketMode: "0660", MaxConnections: 200}
}

func (k *checker) lookup() {
	l := &k.c.Lookup
	taken := append(k.c.SMTP.addresses(), k.c.Admin.Listen)
	for _, list := range []struct {
		key       string
		addresses []string
	}{{"lookup.socketmap", l.Socketmap}, {"lookup.tcp_table", l.TCPTable}, {"lookup.http", l.HTTP}} {
		for i, address := range list.addresses {
			taken = k.lookupListen(fmt.Sprintf("%s[%d]", list.key, i), address, taken)
		}
	}
	for i, network := range l.Networks {
		k.network(fmt.Sprintf("lookup.networks[%d]", i), network)
	}
	if mode, err := strconv.ParseUint(l.SocketMode, 8, 32); err != nil || mode == 0 || mode > 0o777 {
		k.fail("lookup.socket_mode", "%q is not a file mode: write it in octal, such as 0660", l.SocketMode)
	}
	if len(l.HTTP) > 0 && l.TokenFile == "" {
		k.fail("lookup.token_file", "empty: name a file, such as ./lookup.token; it is made when absent")
	}
	if l.LoginDomain != "" {
		if _, err := NormalDomain(l.LoginDomain); err != nil {
			k.fail("lookup.login_domain", "%s", err)
		}
	}
	k.lookupAnswers(l)
}

// lookupListen checks one address and adds it to those that are taken.
func (k *checker) lookupListen(key, address string, taken []string) []string {
	if path, ok := SocketPath(address); ok {
		switch {
		case !filepath.IsAbs(path) || strings.ContainsRune(path, 0):
			k.fail(key, "a socket needs an absolute path, such as unix:/run/crossfade/lookup")
		case len(path) > 100:
			k.fail(key, "the path of a socket has at most 100 characters on every system, not %d", len(path))
		case slices.Contains(taken, address):
			k.fail(key, "%s is listed twice", address)
		}
		return append(taken, address)
	}
	host, port, err := parseListen(address)
	if err != nil {
		k.fail(key, "%s", err)
		return taken
	}
	if !isLoopback(host) && len(k.c.Lookup.Networks) == 0 {
		k.fail(key, "%s can be reached by others: listen on 127.0.0.1 or a socket, or say with lookup.networks who may ask", address)
	}
	for _, other := range taken {
		if otherHost, otherPort, err := parseListen(other); err == nil && port != 0 && port == otherPort && sameHost(host, otherHost) {
			k.fail(key, "%s is taken already, by %s", address, other)
			break
		}
	}
	return append(taken, address)
}

// lookupAnswers checks what is told.
func (k *checker) lookupAnswers(l *Lookup) {
	if t := l.Transport; (t.Old == "") != (t.New == "") {
		k.fail("lookup.transport", "one side alone: set old and new")
	}
	for _, way := range []struct{ key, value string }{{"old", l.Transport.Old}, {"new", l.Transport.New}, {"relay", l.Transport.Relay}} {
		if value := way.value; strings.ContainsAny(value, " \t\r\n") || value != "" && !strings.Contains(value, ":") {
			k.fail("lookup.transport."+way.key, "%q is not a transport: write transport:nexthop, such as smtp:[old.internal]:25", value)
		}
	}
	if len(l.TCPTable) > 0 && l.TCPTableMap == "transport" && l.Transport.Old == "" {
		k.fail("lookup.transport.old", "missing: lookup.tcp_table has nothing to answer without it")
	}
	for _, s := range []struct {
		key   string
		sides LookupSides
	}{{"imap", l.IMAP}, {"pop3", l.POP3}, {"submission", l.Submission}, {"sieve", l.Sieve}, {"lmtp", l.LMTP}} {
		if (s.sides.Old.Scheme == "") != (s.sides.New.Scheme == "") {
			k.fail("lookup."+s.key, "one side alone: set old and new")
		}
		for _, server := range []struct {
			key string
			LookupServer
		}{{"old", s.sides.Old}, {"new", s.sides.New}} {
			if server.Scheme != "" && server.Proto != s.key {
				k.fail("lookup."+s.key+"."+server.key, "%s:// is not for %s", server.Scheme, s.key)
			}
		}
	}
	if len(l.HTTP) > 0 && len(l.Sides()) == 0 {
		k.fail("lookup.http", "nothing to answer: set the servers of a protocol, such as lookup.imap.old and lookup.imap.new")
	}
}

// lookupWarnings are about what crosses a network readable.
func (c *Config) lookupWarnings() []string {
	var out []string
	for _, address := range c.Lookup.HTTP {
		if _, socket := SocketPath(address); socket {
			continue
		}
		if host, _, err := parseListen(address); err == nil && !isLoopback(host) {
			out = append(out, fmt.Sprintf("lookup.http: nginx sends clients' passwords with its questions, and they cross the network to %s readable", address))
		}
	}
	return out
}
