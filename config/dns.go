package config

import (
	"errors"
	"fmt"
	"net"
	"net/netip"
	"regexp"
	"slices"
	"strings"
	"time"
)

// DNS says what `crossfade dns` compares the records of the domains with.
type DNS struct {
	Watch          bool         `yaml:"watch" reload:"restart" doc:"Look at the records all the time, remember when the old ones were seen last, and keep the window of stragglers open for as long as they can be in a cache. Turn it on before the MX moves: the TTL of what was never seen can only be guessed."`
	Domains        []string     `yaml:"domains" reload:"restart" doc:"Domains to look at, of domains. Empty means all of them. Leave out those that never got mail by their MX records: a domain of internal addresses, say."`
	Interval       Duration     `yaml:"interval" reload:"restart" min:"1s" max:"1d" doc:"Time between two looks."`
	Resolvers      []string     `yaml:"resolvers" reload:"restart" doc:"Resolvers to ask, by address or name, with a port where it is not 53: [system, 9.9.9.9, \"[2620:fe::fe]:53\"]. The word system stands for those of /etc/resolv.conf, as an empty list does. Several networks' see more than one."`
	Nameservers    []string     `yaml:"nameservers" reload:"restart" doc:"Authoritative servers of the domains, in the same form, where the NS records do not say which can be asked from here. Empty means those of the NS records."`
	RelayMX        []string     `yaml:"relay_mx" reload:"restart" doc:"MX hosts that lead to the relay. Empty means hostname."`
	RelayAddresses []netip.Addr `yaml:"relay_addresses" reload:"restart" doc:"Addresses at which strangers reach the relay. Needed where an MX host keeps its name and changes its address. Empty means whatever the records say."`
	OldMX          []string     `yaml:"old_mx" reload:"restart" doc:"MX hosts of the old system. Empty means any that belongs neither to the relay nor to new."`
	NewMX          []string     `yaml:"new_mx" reload:"restart" doc:"MX hosts that the new system will have, for the move from the relay to new."`
	SPFRelay       []string     `yaml:"spf_relay" reload:"restart" doc:"SPF terms that the relay needs, such as ip4:192.0.2.25. Empty means that its addresses have to pass."`
	SPFNew         []string     `yaml:"spf_new" reload:"restart" doc:"SPF terms that the new system needs, such as include:_spf.new.example."`
	SPFOld         []string     `yaml:"spf_old" reload:"restart" doc:"SPF terms of the old system, which go when it is switched off."`
	DKIMOld        []string     `yaml:"dkim_old" reload:"restart" doc:"DKIM selectors of the old system."`
	DKIMNew        []string     `yaml:"dkim_new" reload:"restart" doc:"DKIM selectors of the new system."`
	TTL            Duration     `yaml:"ttl" reload:"restart" min:"1s" max:"7d" doc:"Greatest TTL that is wanted while the MX moves."`
}

func defaultDNS() DNS {
	return DNS{Interval: Duration(5 * time.Minute), TTL: Duration(5 * time.Minute)}
}

// selector is one or more labels below _domainkey (RFC 6376, 3.1).
var selector = regexp.MustCompile(`^[A-Za-z0-9_]([A-Za-z0-9_.-]{0,60}[A-Za-z0-9_])?$`)

// hostList is a list of names with the last part of its key.
type hostList struct {
	key   string
	names []string
}

// dns checks the names and addresses; what they lead to is looked at by `crossfade dns check`.
func (k *checker) dns() {
	d := k.c.DNS
	for _, l := range []hostList{{"resolvers", d.Resolvers}, {"nameservers", d.Nameservers}} {
		for i, name := range l.names {
			if err := checkServer(name, l.key == "resolvers"); err != nil {
				k.fail(fmt.Sprintf("dns.%s[%d]", l.key, i), "%s", err)
			}
		}
	}
	for i, name := range d.Domains {
		domain, err := NormalDomain(name)
		if err == nil && !slices.ContainsFunc(k.c.Domains, func(d string) bool { ours, bad := NormalDomain(d); return bad == nil && ours == domain }) {
			err = fmt.Errorf("%s is none of domains", domain)
		}
		if err != nil {
			k.fail(fmt.Sprintf("dns.domains[%d]", i), "%s", err)
		}
	}
	for _, l := range []hostList{{"relay_mx", d.RelayMX}, {"old_mx", d.OldMX}, {"new_mx", d.NewMX}} {
		for i, name := range l.names {
			if _, err := NormalDomain(name); err != nil {
				k.fail(fmt.Sprintf("dns.%s[%d]", l.key, i), "%s", err)
			}
		}
	}
	k.dnsSides(d)
	for _, l := range []hostList{{"spf_relay", d.SPFRelay}, {"spf_new", d.SPFNew}, {"spf_old", d.SPFOld}} {
		for i, term := range l.names {
			if !spfTerm(term) {
				k.fail(fmt.Sprintf("dns.%s[%d]", l.key, i), "%q is no SPF term that names a sender: write one such as include:_spf.example.net or ip4:192.0.2.25", term)
			}
		}
	}
	for _, l := range []hostList{{"dkim_old", d.DKIMOld}, {"dkim_new", d.DKIMNew}} {
		for i, name := range l.names {
			if !selector.MatchString(name) || strings.Contains(name, "..") {
				k.fail(fmt.Sprintf("dns.%s[%d]", l.key, i), "%q is no DKIM selector: write what stands before ._domainkey", name)
			}
		}
	}
}

// dnsSides refuses a host that belongs to two sides: then nothing could be concluded from an MX record.
func (k *checker) dnsSides(d DNS) {
	side := map[string]string{}
	if len(d.RelayMX) == 0 {
		side[k.c.Hostname] = "relay_mx (by hostname)"
	}
	for _, s := range []hostList{{"relay_mx", d.RelayMX}, {"old_mx", d.OldMX}, {"new_mx", d.NewMX}} {
		for i, host := range s.names {
			name, err := NormalDomain(host)
			if err != nil {
				continue // reported
			}
			if before, twice := side[name]; twice {
				k.fail(fmt.Sprintf("dns.%s[%d]", s.key, i), "%s is in dns.%s already: a host belongs to one side", name, before)
			}
			side[name] = s.key
		}
	}
}

func checkServer(name string, system bool) error {
	if name == "system" {
		if system {
			return nil
		}
		return errors.New("system stands for resolvers alone: name the authoritative servers of the domains")
	}
	host, port, err := net.SplitHostPort(name)
	if err != nil {
		host = strings.Trim(name, "[]")
	} else if _, err := parsePort(port, 1); err != nil {
		return fmt.Errorf("bad server %q: %w", name, err)
	}
	if _, err := netip.ParseAddr(host); err == nil {
		return nil
	}
	if _, err := normalHost(host); err != nil {
		return fmt.Errorf("bad server %q: %w", name, err)
	}
	return nil
}

// spfTerm tells whether a term can stand for a sender.
func spfTerm(term string) bool {
	name, arg, _ := strings.Cut(strings.ToLower(strings.TrimPrefix(term, "+")), ":")
	switch name {
	case "include", "exists":
		return arg != "" && !strings.ContainsAny(term, " \t\"")
	case "ip4", "ip6":
		_, errNet := netip.ParsePrefix(arg)
		_, errIP := netip.ParseAddr(arg)
		return errNet == nil || errIP == nil
	}
	name, _, _ = strings.Cut(name, "/")
	return (name == "a" || name == "mx") && !strings.ContainsAny(term, " \t\"")
}
