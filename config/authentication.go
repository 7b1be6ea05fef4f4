package config

import (
	"fmt"
	"net/netip"
	"strings"
	"time"
)

// Authentication says what is found out about senders, and what follows from it.
type Authentication struct {
	Verify  bool     `yaml:"verify" reload:"restart" doc:"Check SPF, DKIM and DMARC of mail from strangers, and write the results on top of it as Authentication-Results. Mail of smtp.trusted and of the backends is not checked."`
	Enforce string   `yaml:"enforce" reload:"restart" enum:"none|quarantine|reject" doc:"How far the DMARC policies of senders are followed: none records only; quarantine marks mail that fails a policy of quarantine or reject with X-Crossfade-Quarantine, for the backends to file as spam; reject does so for quarantine, and refuses what fails a policy of reject with 550 5.7.1. Never for mail that could not be judged because of the DNS."`
	Timeout Duration `yaml:"timeout" reload:"restart" min:"100ms" max:"30s" doc:"Longest that the lookups for one message may keep it waiting; what has no answer by then is temperror, and the message is taken all the same."`
}

func defaultAuthentication() Authentication {
	return Authentication{Verify: true, Enforce: "none", Timeout: Duration(5 * time.Second)}
}

// resolvers have to be addresses: there is nobody to ask for their names.
func (k *checker) resolvers() {
	for i, name := range k.c.SMTP.Resolvers {
		_, err := netip.ParseAddr(strings.Trim(name, "[]"))
		at, errPort := netip.ParseAddrPort(name)
		if name != "system" && err != nil && (errPort != nil || at.Port() == 0) {
			k.fail(fmt.Sprintf("smtp.resolvers[%d]", i), "%q is no address: write one such as 192.0.2.53, 192.0.2.53:5353 or [2001:db8::53]:53, or system", name)
		}
	}
	if a := k.c.SMTP.Authentication; !a.Verify && a.Enforce != "none" {
		k.fail("smtp.authentication.enforce", "%s needs results: remove it, or set verify: true", a.Enforce)
	}
}
