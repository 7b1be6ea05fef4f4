package config

import "fmt"

// ARC says how the Authenticated Received Chain of messages is used and extended.
type ARC struct {
	Domain         string   `yaml:"domain" reload:"restart" doc:"Domain to seal as, where the public key is published: selector._domainkey.domain. Empty does not seal."`
	Selector       string   `yaml:"selector" reload:"restart" doc:"Selector of the key."`
	Key            string   `yaml:"key" reload:"restart" path:"yes" doc:"PEM file with the private key: RSA, 2048 bits are usual, or Ed25519, which few verify. It is read again when it changes."`
	TrustedSealers []string `yaml:"trusted_sealers" reload:"restart" doc:"Domains of sealers who are believed when they found that a message passed DMARC before it was changed on its way: lists and forwarders that your users use. It matters where smtp.authentication.enforce is not none."`
}

// Seals reports whether messages are sealed.
func (a *ARC) Seals() bool { return a.Domain != "" }

// arc checks that what sealing needs is there together.
func (k *checker) arc() {
	a, key := k.c.SMTP.ARC, "smtp.arc"
	switch {
	case !a.Seals() && (a.Selector != "" || a.Key != ""):
		k.fail(key+".domain", "missing: there is a key, and no domain to seal as")
	case a.Seals() && a.Selector == "":
		k.fail(key+".selector", "missing: write the name at which the key is published, such as arc2026")
	case a.Seals() && a.Key == "":
		k.fail(key+".key", "missing: name the PEM file with the private key")
	}
	if a.Seals() {
		if _, err := NormalDomain(a.Domain); err != nil {
			k.fail(key+".domain", "%s", err)
		}
	}
	if a.Selector != "" && !selector.MatchString(a.Selector) {
		k.fail(key+".selector", "%q cannot be a selector: use labels of letters, digits and dashes, such as arc2026", a.Selector)
	}
	for i, name := range a.TrustedSealers {
		if _, err := NormalDomain(name); err != nil {
			k.fail(fmt.Sprintf("%s.trusted_sealers[%d]", key, i), "%s", err)
		}
	}
	if !k.c.SMTP.Authentication.Verify && (a.Seals() || len(a.TrustedSealers) > 0) {
		k.fail(key, "chains are judged and sealed with what smtp.authentication finds out: set its verify to true")
	}
}
