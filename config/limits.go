package config

import (
	"fmt"
	"net/netip"
	"strconv"
	"strings"
	"time"
)

// Limits bounds what one client, one sender and one recipient may have.
type Limits struct {
	Exempt       []netip.Prefix   `yaml:"exempt" doc:"Networks (CIDR) that none of these limits binds, nor smtp.max_connections_per_ip: a gateway in front of us, a sender who needs more. Clients of smtp.trusted and sends_from are exempt without being listed. It gives no other right. A list here replaces the default."`
	Reserve      Share            `yaml:"reserve" doc:"Part of smtp.max_connections that strangers do not get: a quarter of it is for trusted and exempt clients alone, the rest for networks too that sent mail we took in the last seven days. When half of the places are taken, each network gets only a share of those that are free. Never: first come, first served."`
	Host         ClientRates      `yaml:"host" doc:"Rates of one client: an IPv4 address, or the /64 of an IPv6 address. More gets 421 (connections) or 450."`
	Network      NetworkRates     `yaml:"network" doc:"Rates of one network: the /24 of an IPv4 address, the /48 of an IPv6 address."`
	SenderDomain SenderRates      `yaml:"sender_domain" doc:"Rates of one domain in MAIL FROM. Nothing proves that name: somebody who forges it uses up the rate of its owner, whose mail is then late. So there is none unless it is set."`
	Recipient    RecipientRate    `yaml:"recipient" doc:"Rate of one address of ours."`
	Failed       FailedRecipients `yaml:"failed_recipients" doc:"What becomes of clients that try out names. Counted are recipients who do not exist, and those of other domains, over all connections of a network (/24, /48), less the recipients of mail that was taken from it; as many as cut_after are forgotten in an hour."`
	BodyRate     Size             `yaml:"body_rate" reload:"restart" min:"0" doc:"Least part of a message that has to come in a minute, on average and not counting the first five minutes; slower ones get 421. 0 means no limit but smtp.data_timeout."`
	Fruitless    Duration         `yaml:"fruitless_timeout" reload:"restart" min:"0s" max:"7d" doc:"Longest time that a connection may go on without a message that is taken; 0 means no limit. A message on its way is not cut."`
	HeaderFields int              `yaml:"header_fields" reload:"restart" min:"0" max:"1000000" doc:"Header fields of one message; more get 554. 0 means no limit but that of the header's size, 1 MiB."`
}

// ClientRates are the rates of a host.
type ClientRates struct {
	Connections Rate `yaml:"connections" doc:"Connections that are opened."`
	Messages    Rate `yaml:"messages" doc:"Messages that are begun (MAIL)."`
	Recipients  Rate `yaml:"recipients" doc:"Recipients that are named (RCPT)."`
}

// NetworkRates are the rates of a network, and its connections at once.
type NetworkRates struct {
	AtOnce      int  `yaml:"at_once" min:"0" max:"1000000" doc:"Connections at once; more get 421. 0 means no limit but the share, see reserve."`
	Connections Rate `yaml:"connections" doc:"Connections that are opened."`
	Messages    Rate `yaml:"messages" doc:"Messages that are begun (MAIL)."`
	Recipients  Rate `yaml:"recipients" doc:"Recipients that are named (RCPT)."`
}

// SenderRates are the rates of a sender domain.
type SenderRates struct {
	Messages   Rate `yaml:"messages" doc:"Messages that are begun (MAIL)."`
	Recipients Rate `yaml:"recipients" doc:"Recipients that are named (RCPT)."`
}

// RecipientRate is the rate of an address of ours.
type RecipientRate struct {
	Messages Rate `yaml:"messages" doc:"Messages for it; more get 450."`
}

// FailedRecipients says how names that do not exist are answered.
type FailedRecipients struct {
	SlowAfter int      `yaml:"slow_after" min:"0" max:"1000000" doc:"So many are answered at once."`
	Delay     Duration `yaml:"delay" min:"0s" max:"1m" doc:"The reply to each further one is kept back for this, and for as much more with each; 0 means no delay."`
	MaxDelay  Duration `yaml:"max_delay" min:"0s" max:"1m" doc:"Longest delay. Senders wait for five minutes (RFC 5321, 4.5.3.2.3)."`
	CutAfter  int      `yaml:"cut_after" min:"0" max:"1000000" doc:"After so many the connection ends with 421, and so do new ones of the network, unless it is known for good mail. 0 means never."`
}

func defaultLimits() Limits {
	minute := func(n int) Rate { return Rate{Count: n, Per: time.Minute} }
	return Limits{
		Exempt:  []netip.Prefix{netip.MustParsePrefix("127.0.0.0/8"), netip.MustParsePrefix("::1/128")},
		Reserve: Share{Percent: 25},
		// A large provider may send a hundred messages a second from one address, each
		// on a connection of its own, and has room left for a catching up.
		Host:         ClientRates{minute(12_000), minute(12_000), minute(60_000)},
		Network:      NetworkRates{Connections: minute(24_000), Messages: minute(30_000), Recipients: minute(300_000)},
		Recipient:    RecipientRate{minute(6_000)},
		Failed:       FailedRecipients{SlowAfter: 10, Delay: Duration(250 * time.Millisecond), MaxDelay: Duration(5 * time.Second), CutAfter: 100},
		BodyRate:     16 * KiB,
		Fruitless:    Duration(time.Hour),
		HeaderFields: 10_000,
	}
}

// Rate is so many in such a time, as the configuration writes it: 100/s, 6000/m, 1000/h or 10000/d. The zero value is
// none and is written 0.
type Rate struct {
	Count int
	Per   time.Duration
}

var rateUnits = map[string]time.Duration{"s": time.Second, "m": time.Minute, "h": time.Hour, "d": day}

// UnmarshalText reads the form that [Rate] describes.
func (r *Rate) UnmarshalText(text []byte) error {
	word := string(text)
	if word == "0" {
		*r = Rate{}
		return nil
	}
	number, unit, _ := strings.Cut(word, "/")
	n, err := strconv.Atoi(number)
	per := rateUnits[unit]
	if err != nil || per == 0 || n < 1 || n > 1_000_000_000 || strings.HasPrefix(number, "+") {
		return badValue(0, "bad rate %q: write a number and s, m, h or d, such as 6000/m, or 0 for none", word)
	}
	*r = Rate{Count: n, Per: per}
	return nil
}

// String returns the form that UnmarshalText reads.
func (r Rate) String() string {
	for unit, per := range rateUnits {
		if r.Per == per && r.Count > 0 {
			return fmt.Sprintf("%d/%s", r.Count, unit)
		}
	}
	return "0"
}

// MarshalText is [Rate.String].
func (r Rate) MarshalText() ([]byte, error) { return []byte(r.String()), nil }

// DNSBL says which DNS lists are asked about clients, and what follows.
type DNSBL struct {
	Lists     []DNSList `yaml:"lists" doc:"Zones to ask about the address of each stranger, at most 20: [zen.example.net, \"bl.example.org*2\", \"good.example.com*-5\"], with what a listing counts behind the *, 1 where nothing is written, negative for lists of good senders. None is asked unless it is here. Mind the operator's terms: many refuse public resolvers and large users."`
	Threshold int       `yaml:"threshold" min:"1" max:"1000" doc:"Sum of counts from which a client is listed."`
	Action    string    `yaml:"action" enum:"refuse|tag" doc:"refuse: recipients get 550, but for postmaster (RFC 5321, 4.5.1). tag: the message is taken, with the field X-Crossfade-DNSBL on top for the systems behind us."`
	Timeout   Duration  `yaml:"timeout" min:"100ms" max:"1m" doc:"Longest wait for all lists together. A list that is silent, broken, or answers with something other than a listing counts for nothing: a failure never refuses mail."`
}

// DNSList is one list as the configuration writes it: zone, or zone*weight.
type DNSList struct {
	Zone   string
	Weight int
}

const dnsListHelp = "write a zone, such as bl.example.org, or one with a weight from -100 to 100, such as bl.example.org*2"

// UnmarshalText reads the form that [DNSList] describes.
func (l *DNSList) UnmarshalText(text []byte) error {
	word := string(text)
	zone, weight, weighed := strings.Cut(word, "*")
	n := 1
	if weighed {
		var err error
		if n, err = strconv.Atoi(weight); err != nil || n == 0 || n < -100 || n > 100 {
			return badValue(len(zone), "bad list %q: %s", word, dnsListHelp)
		}
	}
	name, err := NormalDomain(zone)
	if err != nil {
		return badValue(0, "bad list %q: %s", word, dnsListHelp)
	}
	*l = DNSList{Zone: name, Weight: n}
	return nil
}

// String returns the form that UnmarshalText reads.
func (l DNSList) String() string {
	if l.Weight == 1 {
		return l.Zone
	}
	return fmt.Sprintf("%s*%d", l.Zone, l.Weight)
}

// MarshalText is [DNSList.String].
func (l DNSList) MarshalText() ([]byte, error) { return []byte(l.String()), nil }

const maxDNSLists = 20

func (k *checker) dnsbl() {
	lists := k.c.SMTP.DNSBL.Lists
	if len(lists) > maxDNSLists {
		k.fail("smtp.dnsbl.lists", "%d lists: each is a question for each client, %d is the most", len(lists), maxDNSLists)
	}
	seen := make(map[string]bool)
	for i, l := range lists {
		if seen[l.Zone] {
			k.fail(fmt.Sprintf("smtp.dnsbl.lists[%d]", i), "%s is listed twice", l.Zone)
		}
		seen[l.Zone] = true
	}
}

func (k *checker) limits() {
	l := &k.c.SMTP.Limits
	const key = "smtp.limits"
	for i, network := range l.Exempt {
		k.network(fmt.Sprintf("%s.exempt[%d]", key, i), network)
	}
	if f := l.Failed; f.Delay > f.MaxDelay {
		k.fail(key+".failed_recipients.max_delay", "%s is less than the first delay, %s", f.MaxDelay, f.Delay)
	}
	if f := l.Failed; f.CutAfter > 0 && f.CutAfter <= f.SlowAfter {
		k.fail(key+".failed_recipients.cut_after", "%d is not more than slow_after, %d: nobody would be slowed", f.CutAfter, f.SlowAfter)
	}
}
