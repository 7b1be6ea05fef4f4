package daemon

import (
	"crypto/x509"
	"errors"
	"fmt"
	"net"
	"os"
	"strings"
	"time"

	"crossfade/certs"
	"crossfade/config"
)

// checkTLS looks at the certificates that our listeners show. It asks no authority for anything, for authorities count
// what they are asked.
func checkTLS(cfg *config.Config) []Finding {
	var out []Finding
	if t := &cfg.SMTP.TLS; t.ACME != nil {
		out = append(out, checkACME(cfg))
	} else if !t.Enabled() {
		out = append(out, Finding{What: "smtp.tls", OK: true, Text: "warning: no certificate: STARTTLS is not offered, mail arrives in clear"})
	} else {
		out = append(out, checkFiles("smtp.tls", t.Pair(), cfg.Hostname))
	}
	if cfg.Admin.TLS.Enabled() {
		out = append(out, checkFiles("admin.tls", cfg.Admin.TLS, ""))
	}
	if _, err := loadClientCerts(&cfg.SMTP.TLS); err != nil {
		out = append(out, Finding{What: "smtp.tls.client_ca", Text: err.Error(), Hint: "give a PEM file with the certificates of your own authority"})
	}
	return out
}

func checkFiles(key string, pair config.KeyPair, name string) Finding {
	f := Finding{What: key, Hint: "give a PEM chain and its key; the user who runs crossfade has to be able to read both"}
	c, err := certs.OpenFiles(key, pair.Cert, pair.Key, nil)
	if err != nil {
		f.Text = err.Error()
		return f
	}
	cert, _ := c.Get(nil) // files that were opened have one
	return describeCertificate(key, cert.Leaf, name)
}

// describeCertificate says when a certificate ends and whether it is for our name.
func describeCertificate(key string, leaf *x509.Certificate, name string) Finding {
	now, names := time.Now(), strings.Join(leaf.DNSNames, ", ")
	seen := certs.Seen{Name: key, Began: leaf.NotBefore, Ends: leaf.NotAfter}
	f := Finding{What: key, OK: true, Text: fmt.Sprintf("for %s, until %s", names, leaf.NotAfter.UTC().Format(time.DateOnly))}
	switch {
	case !now.Before(leaf.NotAfter):
		f.OK, f.Text, f.Hint = false, seen.Words(now), "renew it: senders that verify send no mail, the others do not notice"
	case seen.Due(now):
		f.Text = "warning: " + seen.Words(now) + ": renew it"
	case name != "" && leaf.VerifyHostname(name) != nil:
		f.Text = fmt.Sprintf("warning: the certificate is for %s and not for %s, which senders that verify look for", names, name)
	}
	return f
}

// checkACME looks at what is kept, and whether the addresses for challenges can be had. It makes nothing: an account of
// whoever runs the check is none that the relay could read.
func checkACME(cfg *config.Config) Finding {
	f := Finding{What: "smtp.tls.acme", Hint: "the user who runs crossfade has to be able to write there"}
	a := cfg.SMTP.TLS.ACME
	if _, err := a.MACKey(); err != nil {
		f.Text, f.Hint = err.Error(), "the authority gives key_id and the MAC key together"
		return f
	}
	if _, err := rootsOf(a.CA); err != nil {
		f.Text, f.Hint = "acme."+err.Error(), "give a PEM file with the authority's own certificates"
		return f
	}
	cert, err := certs.Kept(cfg.ACMEDir(), acmeDirectory(a))
	switch {
	case err == nil:
		return describeCertificate("smtp.tls", cert.Leaf, cfg.Hostname)
	case !errors.Is(err, certs.ErrNone):
		f.Text = err.Error()
		return f
	}
	// Where nothing was ever kept nothing runs that has the addresses.
	if _, err := os.Stat(cfg.ACMEDir()); err == nil {
		return Finding{What: f.What, OK: true, Text: "warning: there is no certificate yet; the log of crossfade serve says why"}
	}
	for _, address := range []string{a.HTTP01, a.TLSALPN01} {
		if address == "" {
			continue
		}
		l, err := net.Listen("tcp", address)
		if err != nil {
			return Finding{What: f.What, Text: fmt.Sprintf("challenges cannot be answered: %s", err), Hint: "ports below 1024 need a capability, and no other server may be there"}
		}
		_ = l.Close()
	}
	return Finding{What: f.What, OK: true, Text: "warning: there is no certificate yet: it is asked for at the start, and until it is there mail arrives in clear"}
}
