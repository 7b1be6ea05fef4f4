package config

import (
	"encoding"
	"fmt"
	"net"
	"net/netip"
	"reflect"
	"regexp"
	"slices"
	"strconv"
	"strings"
)

// Validate reports every problem of the values at once, each as a [*Problem] that names its key, joined. It does no
// I/O and changes nothing, so it gives the same answer each time.
func (c *Config) Validate() error {
	k := &checker{c: c}
	k.tags()
	k.names()
	k.store()
	k.smtp()
	k.admin()
	k.backend("backends.old", &c.Backends.Old)
	k.backend("backends.new", &c.Backends.New)
	k.sides()
	k.loops()
	k.subaddress()
	k.backfill()
	k.dns()
	k.lookup()
	k.audit()
	return k.c.src.join(k.problems)
}

type checker struct {
	c        *Config
	problems []error
}

func (k *checker) fail(key, format string, args ...any) {
	k.problems = append(k.problems, k.c.src.at(key, fmt.Sprintf(format, args...)))
}

// tags checks what the struct tags promise: enumerations and ranges.
func (k *checker) tags() {
	for _, l := range everyLeaf(reflect.ValueOf(k.c).Elem()) {
		if enum := l.tag.Get("enum"); enum != "" {
			words := strings.Split(enum, "|")
			if got := l.value.String(); !slices.Contains(words, got) {
				k.fail(l.key, "unknown value %q: one of %s", got, strings.Join(words, ", "))
			}
			continue
		}
		if least := l.tag.Get("min"); least != "" && l.value.Int() < tagNumber(l.value, least) {
			k.fail(l.key, "%s is too small: %s is the least", valueText(l.value), least)
		}
		if most := l.tag.Get("max"); most != "" && l.value.Int() > tagNumber(l.value, most) {
			k.fail(l.key, "%s is too large: %s is the most", valueText(l.value), most)
		}
	}
}

// tagNumber reads a bound in the notation of the field that it bounds. TestTags proves that each can be read.
func tagNumber(field reflect.Value, text string) int64 {
	v := reflect.New(field.Type())
	if u, ok := v.Interface().(encoding.TextUnmarshaler); ok {
		_ = u.UnmarshalText([]byte(text))
		return v.Elem().Int()
	}
	n, _ := strconv.ParseInt(text, 10, 64)
	return n
}

// valueText writes a value as the file would.
func valueText(v reflect.Value) string {
	if m, ok := v.Interface().(encoding.TextMarshaler); ok {
		text, _ := m.MarshalText()
		return string(text)
	}
	if v.Kind() == reflect.Slice {
		var parts []string
		for i := range v.Len() {
			parts = append(parts, valueText(v.Index(i)))
		}
		return "[" + strings.Join(parts, ", ") + "]"
	}
	return fmt.Sprint(v.Interface())
}

func (k *checker) names() {
	switch _, err := NormalDomain(k.c.Hostname); {
	case k.c.Hostname == "":
		k.fail("hostname", "missing: write the name that our MX record points at, such as mx.example.org")
	case err != nil:
		k.fail("hostname", "%s", err)
	}
	if len(k.c.Domains) == 0 {
		k.fail("domains", "missing: list the domains to accept mail for, such as [example.org]")
	}
	first := make(map[string]int)
	for i, name := range k.c.Domains {
		key := fmt.Sprintf("domains[%d]", i)
		ascii, err := NormalDomain(name)
		if err != nil {
			k.fail(key, "%s", err)
			continue
		}
		if ascii != name {
			k.fail(key, "%q is not in its normal form: write %q", name, ascii) // only in a Config built in code
		}
		if before, twice := first[ascii]; twice {
			k.fail(key, "%s is listed twice: it is domains[%d] already", ascii, before)
			continue
		}
		first[ascii] = i
	}
}

// redisSchemes are the kinds of URL that lead to a Redis.
var redisSchemes = []string{"redis", "rediss", "redis+sentinel", "rediss+sentinel", "redis+cluster", "rediss+cluster"}

// tagName is what may stand in a Redis key as the name of a queue.
var tagName = regexp.MustCompile(`^[A-Za-z0-9_.-]{1,64}$`)

func (k *checker) store() {
	store := k.c.Store
	scheme, rest, isURL := strings.Cut(store, "://")
	switch {
	case store == "":
		k.fail("store", "empty: name a directory, such as ./data")
	case isURL && slices.Contains(redisSchemes, scheme):
		k.redis(scheme, rest)
	case isURL:
		k.fail("store", "unknown scheme %q: name a directory for the embedded store, such as ./data, or use one of %s", scheme, strings.Join(redisSchemes, ", "))
	}
}

func (k *checker) audit() {
	if k.c.Audit.Dir != "" && strings.Contains(k.c.Store, "://") {
		k.fail("audit.dir", "with a Redis the journal is kept there, where all nodes have it: leave this out")
	}
}

func (k *checker) redis(scheme, rest string) {
	r := k.c.Redis
	hosts, _, _ := strings.Cut(rest, "/")
	switch {
	case strings.Contains(hosts, "@"):
		k.fail("store", "a password does not belong into the URL, which is logged: use redis.username and redis.password_file")
	case hosts == "":
		k.fail("store", "no host: write %s://host:6379", scheme)
	}
	if !tagName.MatchString(r.Queue) {
		k.fail("redis.queue", "%q cannot be the name of a queue: use up to 64 letters, digits, dots, dashes and underscores", r.Queue)
	}
	if k.c.Node != "" && !tagName.MatchString(k.c.Node) {
		k.fail("node", "%q cannot be the name of a node: use up to 64 letters, digits, dots, dashes and underscores", k.c.Node)
	}
	if r.PasswordFile != "" && r.PasswordEnv != "" {
		k.fail("redis.password_env", "the password is given twice: keep password_file or password_env")
	}
	k.keyPair("redis", KeyPair{Cert: r.Cert, Key: r.Key})
	if !strings.HasPrefix(scheme, "rediss") && (r.CA != "" || r.Cert != "" || r.ServerName != "") {
		k.fail("store", "redis.ca, cert and server_name are for TLS: write rediss%s://", strings.TrimPrefix(scheme, "redis"))
	}
}

func (k *checker) keyPair(key string, pair KeyPair) {
	switch {
	case pair.Cert != "" && pair.Key == "":
		k.fail(key+".cert", "a certificate without its private key: set %s.key too", key)
	case pair.Cert == "" && pair.Key != "":
		k.fail(key+".key", "a private key without its certificate: set %s.cert too", key)
	}
}

func (k *checker) smtp() {
	s := k.c.SMTP
	k.listeners()
	k.smtpTLS()
	k.limits()
	k.dnsbl()
	k.trusted("smtp.trusted", s.Trusted)
	k.trusted("backends.old.sends_from", k.c.Backends.Old.SendsFrom)
	k.trusted("backends.new.sends_from", k.c.Backends.New.SendsFrom)
	k.smartHost()
	k.scanner()
	k.resolvers()
	k.arc()
	k.tlsReports()
	for i, network := range s.ProxyProtocol {
		key := fmt.Sprintf("smtp.proxy_protocol[%d]", i)
		k.network(key, network)
		if network.IsValid() && wide(network) {
			k.fail(key, "%s lets a large part of the Internet say who it is: list the load balancers' own addresses", network)
		}
	}
}

// wide tells whether a network has more than 10.0.0.0/8 and fc00::/7, the widest that anybody owns privately.
func wide(p netip.Prefix) bool {
	if p.Addr().Is4() {
		return p.Bits() < 8
	}
	return p.Bits() < 7
}

// trusted checks a list of networks that may do more than strangers.
func (k *checker) trusted(list string, networks []netip.Prefix) {
	for i, network := range networks {
		key := fmt.Sprintf("%s[%d]", list, i)
		k.network(key, network)
		if network.IsValid() && wide(network) {
			k.fail(key, "%s trusts a large part of the Internet, which makes an open relay: list the backends' own networks", network)
		}
	}
}

func (k *checker) smartHost() {
	h := &k.c.SMTP.SmartHost
	const key = "smtp.smart_host"
	switch {
	case !h.Enabled():
		if h.User != "" || h.PasswordFile != "" || h.PasswordEnv != "" {
			k.fail(key+".url", "missing: there is a login, and no server for it")
		}
		return
	case h.URL.Protocol != ProtocolSMTP:
		k.fail(key+".url", "%s:// does not take mail for others: use smtp+starttls://, smtps:// or smtp+insecure://", h.URL.Scheme)
	case h.URL.TLS == TLSOpportunistic:
		k.fail(key+".url", "smtp:// encrypts only when that happens to work: write smtp+starttls:// or smtps://, or smtp+insecure:// on a network of your own")
	case h.User != "" && h.URL.TLS == TLSNone && !h.URL.Loopback():
		k.fail(key+".user", "a password is not sent in clear: use smtp+starttls:// or smtps://")
	case len(k.c.SMTP.Trusted)+len(k.c.Backends.Old.SendsFrom)+len(k.c.Backends.New.SendsFrom) == 0 && k.c.SMTP.TLS.ClientCA == "" && !k.c.SMTP.logins():
		k.fail(key+".url", "nobody may use it: list the backends' networks in smtp.trusted")
	case k.ownEndpoint(h.URL):
		k.fail(key+".url", "%s is our own listener (smtp.listen): mail would loop", h.URL.Address)
	}
	if h.PasswordFile != "" && h.PasswordEnv != "" {
		k.fail(key+".password_env", "two passwords: set password_file or password_env, not both")
	}
	if h.User != "" && h.PasswordFile == "" && h.PasswordEnv == "" {
		k.fail(key+".password_file", "missing: name a file with the password, or an environment variable with password_env")
	}
	k.envName(key+".password_env", h.PasswordEnv, "the password")
	k.tlsOf(key+".tls", &h.TLS, h.URL)
}

func (k *checker) network(key string, network netip.Prefix) {
	switch {
	case !network.IsValid():
		k.fail(key, "not a network: write address/bits, such as 10.0.0.0/8")
	case network.Addr().Is4In6():
		k.fail(key, "%s is an IPv4 network in IPv6 form, which matches nothing: write the IPv4 form", network)
	case network.Masked() != network:
		k.fail(key, "%s has bits set behind its length: write %s", network, network.Masked())
	}
}

// parseListen takes IP:port, :port and localhost:port; port 0 is a free one.
func parseListen(address string) (host string, port int, err error) {
	host, portText, err := net.SplitHostPort(address)
	if err != nil {
		return "", 0, fmt.Errorf("%q is not host:port, such as 0.0.0.0:25 or [::]:25", address)
	}
	if port, err = parsePort(portText, 0); err != nil {
		return "", 0, fmt.Errorf("bad address %q: %w", address, err)
	}
	if _, err := netip.ParseAddr(host); err != nil && host != "" && host != "localhost" {
		return "", 0, fmt.Errorf("bad address %q: %q is not an IP address of this machine", address, host)
	}
	return host, port, nil
}

func (k *checker) admin() {
	a := k.c.Admin
	k.keyPair("admin.tls", a.TLS)
	if a.TokenFile == "" {
		k.fail("admin.token_file", "empty: name a file, such as ./admin.token; it is made when absent")
	}
	for i, name := range a.Hosts {
		if _, err := NormalDomain(name); err != nil {
			k.fail(fmt.Sprintf("admin.hosts[%d]", i), "%s", err)
		}
	}
	host, port, err := parseListen(a.Listen)
	if err != nil {
		k.fail("admin.listen", "%s", err)
		return
	}
	if !isLoopback(host) && a.TLS == (KeyPair{}) && !a.Insecure {
		k.fail("admin.listen", "%s can be reached by others and the token would cross the network readable: set admin.tls, listen on 127.0.0.1, or say admin.insecure: true", a.Listen)
	}
	for _, listen := range k.c.SMTP.addresses() {
		if smtpHost, smtpPort, err := parseListen(listen); err == nil && port != 0 && port == smtpPort && sameHost(host, smtpHost) {
			k.fail("admin.listen", "%s is taken by smtp.listen already", a.Listen)
		}
	}
}

// sameHost reports whether two listen hosts meet: they are equal, or one means every address.
func sameHost(a, b string) bool {
	every := func(h string) bool {
		ip, err := netip.ParseAddr(h)
		return h == "" || err == nil && ip.IsUnspecified()
	}
	return a == b || every(a) || every(b)
}

func (k *checker) backend(key string, b *Backend) {
	switch {
	case b.SMTP.IsZero():
		k.fail(key+".smtp", "missing: write where this side takes mail, such as smtp://%s.internal:25", key[len("backends."):])
	case b.SMTP.Protocol == ProtocolIMAP:
		k.fail(key+".smtp", "%s:// is not for mail delivery: use one of %s", b.SMTP.Scheme, schemeNames(ProtocolSMTP, ProtocolLMTP))
	}
	if !b.IMAP.IsZero() && b.IMAP.Protocol != ProtocolIMAP {
		k.fail(key+".imap", "%s:// is not for mailboxes: use one of %s", b.IMAP.Scheme, schemeNames(ProtocolIMAP))
	}
	k.mailbox(key, b)
	if key == "backends.new" && b.Gmail.Labels != "folders" {
		k.fail(key+".gmail.labels", "labels are read on old, and mail is put into new by folders: remove it, or write it below backends.old")
	}
	if b.IMAPLogin != nil {
		k.login(key+".imap_login", b.IMAPLogin)
	}
	k.tlsOf(key+".tls", &b.TLS, b.SMTP)
}

var envName = regexp.MustCompile(`^[A-Za-z_][A-Za-z0-9_]*$`)

func (k *checker) login(key string, l *Login) {
	k.envName(key+".password_env", l.PasswordEnv, "the password")
	if l.Token != nil && !l.As.Bearer() {
		k.fail(key+".token", "only used with as: xoauth2 and as: oauthbearer: set one of them, or remove it")
	}
	switch l.As.Mode {
	case LoginXOAuth2, LoginOAuthBearer:
		k.tokenLogin(key, l)
	case LoginUser:
		if l.PasswordsFile == "" {
			k.fail(key+".passwords_file", "missing: as: user needs a CSV file with address,login,password")
		}
		if l.User != "" || l.PasswordFile != "" || l.PasswordEnv != "" {
			k.fail(key+".as", "as: user takes logins from passwords_file alone: remove user, password_file and password_env")
		}
	default:
		k.masterLogin(key, l)
	}
}

func (k *checker) masterLogin(key string, l *Login) {
	if l.User == "" {
		k.fail(key+".user", "missing: as: %s needs the name of the master login", l.As)
	}
	switch {
	case l.PasswordFile != "" && l.PasswordEnv != "":
		k.fail(key+".password_env", "two passwords: set password_file or password_env, not both")
	case l.PasswordFile == "" && l.PasswordEnv == "":
		k.fail(key+".password_file", "missing: name a file with the password, or an environment variable with password_env")
	}
	if l.As.Mode == LoginAuthzid && l.Mechanism == MechanismLogin {
		k.fail(key+".mechanism", "the command login cannot act for another: use as: suffix:*, or the mechanism plain")
	}
	if l.PasswordsFile != "" {
		k.fail(key+".passwords_file", "only used with as: user: remove it")
	}
}

// sides refuses two backends that are one. The same IMAP server with different logins is two accounts of one
// provider, which is a migration that people do.
func (k *checker) sides() {
	older, newer := k.c.Backends.Old, k.c.Backends.New
	if !older.SMTP.IsZero() && older.SMTP.Address == newer.SMTP.Address {
		k.fail("backends.new.smtp", "%s is the address of backends.old.smtp too: the two sides must differ", newer.SMTP.Address)
	}
	sameLogin := reflect.DeepEqual(older.IMAPLogin, newer.IMAPLogin)
	if !older.IMAP.IsZero() && older.IMAP.Address == newer.IMAP.Address && sameLogin {
		k.fail("backends.new.imap", "%s with the same login is backends.old.imap too: mailboxes would be copied onto themselves", newer.IMAP.Address)
	}
}

// loops refuses a backend that is one of our own listeners.
func (k *checker) loops() {
	for _, side := range []struct {
		key      string
		endpoint Endpoint
	}{{"backends.old.smtp", k.c.Backends.Old.SMTP}, {"backends.new.smtp", k.c.Backends.New.SMTP}} {
		if k.ownEndpoint(side.endpoint) {
			k.fail(side.key, "%s is our own listener (smtp.listen): mail would loop", side.endpoint.Address)
		}
	}
}

// ownListener reports whether a connection to the endpoint would certainly reach the listen address.
func (k *checker) ownListener(listen string, e Endpoint) bool {
	listenHost, listenPort, err := parseListen(listen)
	if err != nil || e.Network != "tcp" || e.Address != net.JoinHostPort(e.Host, strconv.Itoa(listenPort)) {
		return false
	}
	ip, err := netip.ParseAddr(listenHost)
	every := listenHost == "" || err == nil && ip.IsUnspecified()
	return e.Host == listenHost || e.Host == k.c.Hostname ||
		isLoopback(e.Host) && (every || e.Host == "localhost" && isLoopback(listenHost))
}

// subaddress must be one character that can stand in a local part and is not an ordinary part of names.
func (k *checker) subaddress() {
	switch s := k.c.Routing.Subaddress; {
	case s == "":
	case len(s) != 1 || s[0] <= ' ' || s[0] > '~':
		k.fail("routing.subaddress", `%q is not one character: write "+", or "" to turn subaddresses off`, s)
	case strings.ContainsAny(s, `@."(),:;<>[]\`) || s[0] >= '0' && s[0] <= '9' || s[0] >= 'a' && s[0] <= 'z' || s[0] >= 'A' && s[0] <= 'Z':
		k.fail("routing.subaddress", `%q is an ordinary part of addresses, or cannot stand in them: write "+", or "" to turn subaddresses off`, s)
	}
}
