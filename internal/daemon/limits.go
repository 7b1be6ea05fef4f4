package daemon

import (
	"fmt"
	"slices"
	"time"

	"crossfade/config"
	"crossfade/relay"
	"crossfade/relay/dnsbl"
	"crossfade/relay/limit"
	"crossfade/relay/resolver"
)

// guardSettings are the limits of smtp. Who is trusted is that of the start.
func guardSettings(start *config.Config, smtp config.SMTP) limit.Settings {
	l := smtp.Limits
	rate := func(r config.Rate) limit.Rate { return limit.Rate(r) }
	return limit.Settings{
		Ours:        trusts(slices.Concat(trustedNetworks(start), l.Exempt)),
		Connections: smtp.MaxConnections, Reserve: l.Reserve.Percent,
		PerHost: smtp.MaxConnectionsPerIP, PerNetwork: l.Network.AtOnce,
		Host:         limit.Rates{Connections: rate(l.Host.Connections), Messages: rate(l.Host.Messages), Recipients: rate(l.Host.Recipients)},
		Network:      limit.Rates{Connections: rate(l.Network.Connections), Messages: rate(l.Network.Messages), Recipients: rate(l.Network.Recipients)},
		SenderDomain: limit.Rates{Messages: rate(l.SenderDomain.Messages), Recipients: rate(l.SenderDomain.Recipients)},
		Recipient:    rate(l.Recipient.Messages),
		Failed: limit.Failed{
			SlowAfter: l.Failed.SlowAfter, Delay: time.Duration(l.Failed.Delay), MaxDelay: time.Duration(l.Failed.MaxDelay), CutAfter: l.Failed.CutAfter,
		},
	}
}

// welcome is how the configuration wants strangers to be received.
func (d *Daemon) welcome(smtp config.SMTP) (relay.Welcome, error) {
	b := smtp.DNSBL
	w := relay.Welcome{GreetDelay: time.Duration(smtp.GreetDelay), Tag: b.Action == "tag"}
	if len(b.Lists) == 0 {
		return w, nil
	}
	c := dnsbl.Config{Resolver: d.resolver, Threshold: b.Threshold, Timeout: time.Duration(b.Timeout), Looked: d.metrics.ListLooked}
	for _, l := range b.Lists {
		c.Lists = append(c.Lists, dnsbl.List(l))
	}
	var err error
	if w.Lists, err = dnsbl.New(c); err != nil {
		return w, fmt.Errorf("smtp.dnsbl: %w", err)
	}
	return w, nil
}

// ownFiles is what the relay has open beside connections of clients: the store,
// deliveries, IMAP connections, listeners, logs; questions to the DNS, by two
// resolvers; and the scanner.
func ownFiles(cfg *config.Config) int {
	b := cfg.Backends
	return 200 + 2*resolver.DefaultMaxInFlight + cfg.SMTP.Filter.MaxConnections + b.Old.MaxConnections + b.New.MaxConnections + cfg.SMTP.SmartHost.MaxConnections +
		b.Old.MaxIMAPConnections + b.New.MaxIMAPConnections
}

// warnOfFiles says when there cannot be as many connections as are configured.
func (d *Daemon) warnOfFiles(cfg *config.Config) {
	have, need := openFiles(), cfg.SMTP.MaxConnections+ownFiles(cfg)
	if have > 0 && have < uint64(need) {
		d.log.Warn("smtp.max_connections needs more open files than this process may have: raise the limit (LimitNOFILE= in the systemd unit, ulimit -n), or lower the number",
			"open_files", have, "needed", need)
	}
}
