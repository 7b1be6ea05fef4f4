package config

import (
	"fmt"
	"reflect"
	"slices"
)

// The values of [Listener.TLS].
const (
	ListenTLSOffer    = "offer"    // STARTTLS is offered when there is a certificate
	ListenTLSRequire  = "require"  // no mail before STARTTLS
	ListenTLSImplicit = "implicit" // TLS from the first byte (RFC 8314, 3.3)
	ListenTLSOff      = "off"      // STARTTLS is not offered
)

// The values of [Listener.ClientCertificate].
const (
	ListenCertNone    = "none"
	ListenCertAsk     = "ask"
	ListenCertRequire = "require"
)

// The values of [Listener.Auth].
const (
	ListenAuthOff     = "off"     // AUTH is not known
	ListenAuthOffer   = "offer"   // AUTH is offered under TLS
	ListenAuthRequire = "require" // and nobody else's mail is taken
)

// Listener is one entry of smtp.listeners: an address with choices of its own.
type Listener struct {
	Address string `yaml:"address" doc:"Address to listen on, host:port. Port 0 takes a free one. Required."`
	TLS     string `yaml:"tls" enum:"offer|require|implicit|off" doc:"offer: STARTTLS when there is a certificate, as on smtp.listen. require: nothing is taken before STARTTLS (530). implicit: TLS from the first byte, as on port 465. off: no STARTTLS."`

	ClientCertificate string `yaml:"client_certificate" enum:"none|ask|require" doc:"ask: clients are asked for a certificate, and one of smtp.tls.client_ca makes them trusted as smtp.trusted does. require: without such a one nothing is taken (530). none: they are not asked; some clients fail when they are."`

	Auth string `yaml:"auth" enum:"off|offer|require" doc:"Whether clients log in with a name and password of smtp.users_file (AUTH PLAIN and LOGIN, under TLS alone). Who has logged in is trusted as smtp.trusted is, for mail to the outside too (smtp.smart_host). require: nobody else's mail is taken here, but that of trusted networks."`
}

// setDefaults fills an entry before the file is read into it.
func (l *Listener) setDefaults() {
	l.TLS, l.ClientCertificate, l.Auth = ListenTLSOffer, ListenCertNone, ListenAuthOff
}

// Listening lists every address that mail is taken on: those of smtp.listen, which offer STARTTLS, and then those of
// smtp.listeners.
func (s *SMTP) Listening() []Listener {
	var out []Listener
	for _, address := range s.Listen {
		l := Listener{Address: address}
		l.setDefaults()
		out = append(out, l)
	}
	return append(out, s.Listeners...)
}

// addresses lists where mail is taken.
func (s *SMTP) addresses() []string {
	var out []string
	for _, l := range s.Listening() {
		out = append(out, l.Address)
	}
	return out
}

func (k *checker) listeners() {
	s := &k.c.SMTP
	if len(s.Listen)+len(s.Listeners) == 0 {
		k.fail("smtp.listen", "empty: name at least one address, such as 0.0.0.0:25")
	}
	seen := make(map[string]bool)
	for i, l := range s.Listening() {
		key := fmt.Sprintf("smtp.listen[%d]", i)
		if j := i - len(s.Listen); j >= 0 {
			key = fmt.Sprintf("smtp.listeners[%d]", j)
			k.listener(key, l)
			key += ".address"
		}
		if l.Address == "" && i >= len(s.Listen) {
			k.fail(key, "missing: write host:port, such as 0.0.0.0:587")
		} else if _, port, err := parseListen(l.Address); err != nil {
			k.fail(key, "%s", err)
		} else if seen[l.Address] && port != 0 {
			k.fail(key, "%s is listed twice", l.Address)
		}
		seen[l.Address] = true
	}
	if s.UsersFile != "" && !s.logins() {
		k.fail("smtp.users_file", "nobody can log in: set auth: require on one of smtp.listeners")
	}
}

// logins tells whether clients can log in anywhere.
func (s *SMTP) logins() bool {
	return slices.ContainsFunc(s.Listeners, func(l Listener) bool { return l.Auth == ListenAuthOffer || l.Auth == ListenAuthRequire })
}

func (k *checker) listener(key string, l Listener) {
	if (l.TLS == ListenTLSRequire || l.TLS == ListenTLSImplicit) && !k.c.SMTP.TLS.Enabled() {
		k.fail(key+".tls", "%s needs a certificate: set smtp.tls", l.TLS)
	}
	switch {
	case l.ClientCertificate == ListenCertNone:
	case !k.c.SMTP.TLS.Enabled():
		k.fail(key+".client_certificate", "%s needs a certificate of ours first: set smtp.tls", l.ClientCertificate)
	case k.c.SMTP.TLS.ClientCA == "":
		k.fail(key+".client_certificate", "%s needs the authorities that count: set smtp.tls.client_ca", l.ClientCertificate)
	case l.TLS == ListenTLSOff:
		k.fail(key+".client_certificate", "%s means nothing without TLS: set tls on this listener, or remove it", l.ClientCertificate)
	}
	switch {
	case l.Auth == ListenAuthOff || l.Auth == "":
	case k.c.SMTP.UsersFile == "":
		k.fail(key+".auth", "%s needs names and passwords: set smtp.users_file", l.Auth)
	case l.TLS == ListenTLSOff || !k.c.SMTP.TLS.Enabled():
		k.fail(key+".auth", "a password is taken under TLS alone: set smtp.tls, and tls: require or implicit here")
	}
}

// ownEndpoint reports whether a connection to the endpoint would certainly reach one of our listeners.
func (k *checker) ownEndpoint(e Endpoint) bool {
	return slices.ContainsFunc(k.c.SMTP.addresses(), func(listen string) bool { return k.ownListener(listen, e) })
}

// sectionList tells whether t is a list whose entries are sections with keys of their own, as smtp.listeners.
func sectionList(t reflect.Type) bool { return t.Kind() == reflect.Slice && isSection(t.Elem()) }

// entry makes an empty entry of a list of sections, with its defaults.
func entry(t reflect.Type) reflect.Value {
	v := reflect.New(t.Elem())
	if d, ok := v.Interface().(interface{ setDefaults() }); ok {
		d.setDefaults()
	}
	return v.Elem()
}

// entryLeaves are the values in the entries of lists of sections, which [leaves] counts as one value each.
func entryLeaves(v reflect.Value) []leaf {
	var out []leaf
	for _, l := range leaves(v, "") {
		if !sectionList(l.value.Type()) {
			continue
		}
		for i := range l.value.Len() {
			out = append(out, leaves(l.value.Index(i), fmt.Sprintf("%s[%d].", l.key, i))...)
		}
	}
	return out
}

// everyLeaf is [leaves] with [entryLeaves].
func everyLeaf(v reflect.Value) []leaf { return append(leaves(v, ""), entryLeaves(v)...) }
