package config

import (
	"crypto/tls"
	"encoding/base64"
	"encoding/hex"
	"fmt"
	"net/url"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
)

// SMTPTLS is the certificate of the listeners for mail, and what they ask of the TLS of clients.
type SMTPTLS struct {
	Cert        string   `yaml:"cert" reload:"restart" path:"yes" doc:"PEM file with the certificate and its intermediates. It is read again when it changes; what cannot be used leaves the one before in place, with an alarm."`
	Key         string   `yaml:"key" reload:"restart" path:"yes" doc:"PEM file with the private key."`
	ACME        *ACME    `yaml:"acme" doc:"Get the certificate from an authority that speaks ACME (RFC 8555), instead of cert and key. docs/tls.md has what it needs."`
	MinVersion  string   `yaml:"min_version" reload:"restart" enum:"1.0|1.1|1.2|1.3" doc:"Oldest TLS that clients may use. RFC 8996 forbids 1.0 and 1.1; with them allowed, an old sender that would else send in clear, or not at all, is encrypted weakly. It is warned about at each start."`
	ClientCA    string   `yaml:"client_ca" reload:"restart" path:"yes" doc:"PEM file with the authorities whose client certificates make a client trusted as smtp.trusted does, on listeners with client_certificate: ask or require. Only an authority of your own belongs here, unless client_names is set."`
	ClientNames []string `yaml:"client_names" reload:"restart" doc:"Host names, one of which a client certificate has to be for. Empty: every certificate of client_ca counts."`
}

// TLSReports says whether the owners of domains hear how TLS with their servers fared.
type TLSReports struct {
	Contact string `yaml:"contact" reload:"restart" doc:"Address of yours that answers for the reports, and that those by mail are from: postmaster@example.org. They are signed with the key of smtp.arc; without one only reports to a web server are sent."`
}

// Enabled tells whether reports are sent.
func (t *TLSReports) Enabled() bool { return t.Contact != "" }

// plainLocal is the part before the @ of an address that needs no quotes.
var plainLocal = regexp.MustCompile(`^[A-Za-z0-9_+-]+(\.[A-Za-z0-9_+-]+)*$`)

// tlsReports checks who they are from.
func (k *checker) tlsReports() {
	t := k.c.SMTP.TLSReports
	if !t.Enabled() {
		return
	}
	local, domain, _ := strings.Cut(t.Contact, "@")
	if _, err := NormalDomain(domain); err != nil || !plainLocal.MatchString(local) {
		k.fail("smtp.tls_reports.contact", "%q is no address in ASCII: write one that is read, such as postmaster@example.org", t.Contact)
		return
	}
	signer := strings.ToLower(k.c.SMTP.ARC.Domain)
	if domain = strings.ToLower(domain); signer != "" && domain != signer && !strings.HasSuffix(domain, "."+signer) && !strings.HasSuffix(signer, "."+domain) {
		k.fail("smtp.tls_reports.contact", "reports by mail are signed as %s (smtp.arc.domain), and are taken for forged (DMARC) when they come from %s: write an address of that domain", signer, domain)
	}
}

// Pair is the certificate in files.
func (t *SMTPTLS) Pair() KeyPair { return KeyPair{Cert: t.Cert, Key: t.Key} }

// Enabled reports whether there is, or will be, a certificate.
func (t *SMTPTLS) Enabled() bool { return t.ACME != nil || t.Pair().Enabled() }

// OldestVersion is MinVersion in the numbers of crypto/tls.
func (t *SMTPTLS) OldestVersion() uint16 {
	versions := map[string]uint16{"1.0": tls.VersionTLS10, "1.1": tls.VersionTLS11, "1.3": tls.VersionTLS13}
	if v, ok := versions[t.MinVersion]; ok {
		return v
	}
	return tls.VersionTLS12
}

// DefaultDirectory is the authority that is asked unless smtp.tls.acme.directory names another one.
const DefaultDirectory = "https://acme-v02.api.letsencrypt.org/directory"

// ACME says from whom a certificate is had, and how we prove that the names are ours.
type ACME struct {
	Directory   string   `yaml:"directory" reload:"restart" doc:"URL of the authority's directory. Empty means Let's Encrypt."`
	Email       string   `yaml:"email" reload:"restart" doc:"Address that the authority may write to."`
	Names       []string `yaml:"names" reload:"restart" doc:"Names in the certificate; empty means hostname alone."`
	HTTP01      string   `yaml:"http01" reload:"restart" doc:"Address on which http-01 is answered, host:port. The authority asks port 80 of each name. Nothing else is answered there."`
	TLSALPN01   string   `yaml:"tls_alpn01" reload:"restart" doc:"Address on which tls-alpn-01 is answered, host:port. The authority asks port 443 of each name. Nothing else is answered there."`
	Dir         string   `yaml:"dir" reload:"restart" path:"yes" doc:"Directory where account and certificate are kept. Empty means acme in the store's directory, or beside the token file when the store is a Redis."`
	AcceptTerms bool     `yaml:"accept_terms" reload:"restart" doc:"You agree to the authority's terms of service. Required."`
	KeepKey     bool     `yaml:"keep_key" reload:"restart" doc:"Renew with the same private key, for names with TLSA records of their key (DANE)."`
	KeyID       string   `yaml:"key_id" reload:"restart" doc:"Key identifier of an external account, where the authority asks for one."`
	MACKeyFile  string   `yaml:"mac_key_file" reload:"restart" path:"yes" doc:"File with the MAC key of the external account, in base64url."`
	CA          string   `yaml:"ca" reload:"restart" path:"yes" doc:"PEM file with the authorities to trust for the directory's own HTTPS instead of the system's, for an authority of your own."`
}

// MACKey reads the key of the external account; nil when there is none. Its error does not repeat it.
func (a *ACME) MACKey() ([]byte, error) {
	if a.MACKeyFile == "" {
		return nil, nil
	}
	data, err := readBounded(a.MACKeyFile, maxPassword)
	if err != nil {
		return nil, fmt.Errorf("smtp.tls.acme.mac_key_file: %w", err)
	}
	text := strings.TrimRight(strings.TrimSpace(string(data)), "=")
	key, err := base64.RawURLEncoding.DecodeString(strings.NewReplacer("+", "-", "/", "_").Replace(text))
	if err != nil || len(key) == 0 {
		return nil, fmt.Errorf("smtp.tls.acme.mac_key_file: %s does not hold a key in base64url", a.MACKeyFile)
	}
	return key, nil
}

// ACMEDir is where account and certificate are kept.
func (c *Config) ACMEDir() string {
	switch a := c.SMTP.TLS.ACME; {
	case a == nil:
		return ""
	case a.Dir != "":
		return a.Dir
	case strings.Contains(c.Store, "://"):
		return filepath.Join(filepath.Dir(c.Admin.TokenFile), "acme")
	}
	return filepath.Join(c.Store, "acme")
}

// ACMENames are the names in the certificate.
func (c *Config) ACMENames() []string {
	if a := c.SMTP.TLS.ACME; a != nil && len(a.Names) > 0 {
		return a.Names
	}
	return []string{c.Hostname}
}

func (k *checker) smtpTLS() {
	t := &k.c.SMTP.TLS
	const key = "smtp.tls"
	k.keyPair(key, t.Pair())
	for i, name := range t.ClientNames {
		if _, err := normalHost(name); err != nil {
			k.fail(fmt.Sprintf("%s.client_names[%d]", key, i), "%s", err)
		}
	}
	asks := slices.ContainsFunc(k.c.SMTP.Listeners, func(l Listener) bool { return l.ClientCertificate != ListenCertNone })
	switch {
	case len(t.ClientNames) > 0 && t.ClientCA == "":
		k.fail(key+".client_names", "only used with client_ca: set it, or remove this")
	case t.ClientCA != "" && !asks:
		k.fail(key+".client_ca", "no listener asks clients for a certificate: set client_certificate: ask or require on one of smtp.listeners")
	}
	if t.ACME != nil {
		k.acme(key+".acme", t.ACME)
	}
}

func (k *checker) acme(key string, a *ACME) {
	t := &k.c.SMTP.TLS
	if t.Cert != "" || t.Key != "" {
		k.fail(key, "two certificates: give cert and key, or acme, not both")
	}
	if !a.AcceptTerms {
		k.fail(key+".accept_terms", "the authority's terms of service have to be agreed to: read them, and write accept_terms: true")
	}
	if a.Directory != "" {
		if u, err := url.Parse(a.Directory); err != nil || u.Scheme != "https" || u.Host == "" || u.User != nil {
			k.fail(key+".directory", "not an address of an authority: write https://host/path")
		}
	}
	if a.Email != "" && (!strings.Contains(a.Email, "@") || strings.ContainsAny(a.Email, " <>,?:")) {
		k.fail(key+".email", "%q is not one address, such as postmaster@example.org", a.Email)
	}
	if a.HTTP01 == "" && a.TLSALPN01 == "" {
		k.fail(key+".http01", "missing: say where challenges are answered, http01: \"0.0.0.0:80\" or tls_alpn01: \"0.0.0.0:443\"")
	}
	for _, l := range []struct{ name, address string }{{"http01", a.HTTP01}, {"tls_alpn01", a.TLSALPN01}} {
		if l.address == "" {
			continue
		}
		if _, _, err := parseListen(l.address); err != nil {
			k.fail(key+"."+l.name, "%s", err)
		} else if slices.Contains(append(k.c.SMTP.addresses(), k.c.Admin.Listen), l.address) {
			k.fail(key+"."+l.name, "%s is taken by another listener already", l.address)
		}
	}
	if (a.KeyID == "") != (a.MACKeyFile == "") {
		k.fail(key+".key_id", "an external account is key_id and mac_key_file: set both or neither")
	}
	for i, name := range a.Names {
		if _, err := NormalDomain(name); err != nil {
			k.fail(fmt.Sprintf("%s.names[%d]", key, i), "%s", err)
		}
	}
}

// Pin is the SHA-256 digest of a server's certificate or of its public key.
type Pin struct {
	// Key tells whether the digest is of the public key (SubjectPublicKeyInfo) and not of the whole certificate.
	Key    bool
	Digest [32]byte
}

const pinHelp = "write key-sha256:HEX or cert-sha256:HEX (docs/tls.md has the command that prints it)"

// ParsePin reads key-sha256:DIGEST and cert-sha256:DIGEST. The digest is 64 hexadecimal digits, with colons or without,
// or base64.
func ParsePin(text string) (Pin, error) {
	kind, digest, _ := strings.Cut(text, ":")
	var p Pin
	switch strings.ToLower(kind) {
	case "key-sha256":
		p.Key = true
	case "cert-sha256":
	default:
		return Pin{}, badValue(0, "%q is not a pin: %s", text, pinHelp)
	}
	raw, err := hex.DecodeString(strings.ReplaceAll(digest, ":", ""))
	if err != nil {
		raw, err = base64.StdEncoding.DecodeString(digest)
	}
	if err != nil || len(raw) != len(p.Digest) {
		return Pin{}, badValue(len(kind)+1, "the digest is not one of SHA-256: %s", pinHelp)
	}
	copy(p.Digest[:], raw)
	return p, nil
}

// UnmarshalText is [ParsePin].
func (p *Pin) UnmarshalText(text []byte) (err error) {
	*p, err = ParsePin(string(text))
	return err
}

// MarshalText gives the form that ParsePin reads.
func (p Pin) MarshalText() ([]byte, error) {
	kind := "cert-sha256:"
	if p.Key {
		kind = "key-sha256:"
	}
	return []byte(kind + hex.EncodeToString(p.Digest[:])), nil
}

// String gives the form that ParsePin reads.
func (p Pin) String() string {
	text, _ := p.MarshalText() // it has no error
	return string(text)
}

// tlsOf checks how the certificate of a server is checked.
func (k *checker) tlsOf(key string, b *BackendTLS, smtp Endpoint) {
	if name := b.ServerName; name != "" {
		if _, err := normalHost(name); err != nil {
			k.fail(key+".server_name", "%s", err)
		}
	}
	k.keyPair(key, KeyPair{Cert: b.Cert, Key: b.Key})
	if b.InsecureSkipVerify && (len(b.Pins) > 0 || b.CA != "" || b.DANE || b.MTASTS != "") {
		k.fail(key+".insecure_skip_verify", "any certificate is accepted, and ca, pins, dane and mta_sts say which: keep one")
	}
	if len(b.Pins) > 0 && smtp.TLS == TLSOpportunistic {
		k.fail(key+".pins", "%s:// sends in clear when the certificate is another one: write smtp+starttls:// or smtps://", smtp.Scheme)
	}
	switch {
	case !b.DANE:
	case smtp.TLS == TLSNone || smtp.Network != "tcp":
		k.fail(key+".dane", "%s:// is never encrypted: write smtp+starttls://, or remove this", smtp.Scheme)
	case looksLikeIP(smtp.Host):
		k.fail(key+".dane", "%s has no TLSA records: name the server by its host name", smtp.Host)
	case len(b.Pins) > 0:
		k.fail(key+".dane", "pins say which certificate is right, and so do TLSA records: keep one")
	}
	if b.MTASTS != "" {
		if _, err := NormalDomain(b.MTASTS); err != nil {
			k.fail(key+".mta_sts", "%s", err)
		} else if smtp.TLS == TLSNone || smtp.Protocol != ProtocolSMTP {
			k.fail(key+".mta_sts", "%s:// has no such policy: write smtp://, smtp+starttls:// or smtps://, or remove this", smtp.Scheme)
		}
	}
}
