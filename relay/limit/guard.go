package limit

import (
	"net/netip"
	"strings"
	"sync"
	"sync/atomic"
	"time"
)

// Settings are the limits. A limit of zero is none, but for Connections.
type Settings struct {
	// Ours tells which clients none of this binds but the number of connections in
	// all: the backends' own hosts and what the operator exempts. Nil: nobody.
	Ours func(netip.Addr) bool

	// Connections bounds those at once (default 1,000).
	Connections int
	// Reserve is the part of Connections, in percent, that strangers do not get. A
	// quarter of it is for Ours alone, the rest for networks that sent good mail in
	// the last seven days too.
	Reserve int
	// PerHost and PerNetwork bound connections at once, see [Host] and [Network].
	PerHost, PerNetwork int

	// Host and Network are rates of clients.
	Host, Network Rates
	// SenderDomain are rates for the domain of the sender, which is what a client
	// says: anybody can use up those of any domain. Connections is not used.
	SenderDomain Rates
	// Recipient is the rate of messages to one address.
	Recipient Rate

	Failed Failed
}

// Failed says what becomes of clients that ask for recipients who do not exist.
// Counted are those of a network, over all of its connections, less the
// recipients of messages that were taken from it; in an hour, CutAfter of them
// are forgotten.
type Failed struct {
	// SlowAfter of them, the reply to each further one is kept back for Delay, and
	// one more Delay for each more, up to MaxDelay.
	SlowAfter       int
	Delay, MaxDelay time.Duration
	// CutAfter of them, each further one ends the connection, and new connections
	// are turned away unless the network is known for good mail. 0: never.
	CutAfter int
}

// The reasons why a connection, a message or a recipient is turned away. They are
// words for metrics.
const (
	Full               = "connections"
	HostConnections    = "host_connections"
	NetworkConnections = "network_connections"
	NetworkShare       = "network_share"
	HostRate           = "host_connection_rate"
	NetworkRate        = "network_connection_rate"
	HostMessages       = "host_message_rate"
	NetworkMessages    = "network_message_rate"
	DomainMessages     = "sender_domain_message_rate"
	HostRecipients     = "host_recipient_rate"
	NetworkRecipients  = "network_recipient_rate"
	DomainRecipients   = "sender_domain_recipient_rate"
	RecipientMessages  = "recipient_message_rate"
	FailedRecipients   = "failed_recipients"
	Slowed             = "slowed" // the reply to an unknown recipient was kept back
	HeaderFields       = "header_fields"
	Listed             = "dnsbl_refused"
	Tagged             = "dnsbl_tagged"
)

// TurnedAway lists the reasons why a connection is turned away at its beginning.
func TurnedAway() []string {
	return []string{Full, HostConnections, NetworkConnections, NetworkShare, HostRate, NetworkRate, FailedRecipients}
}

// Limited lists the reasons why less than a connection is refused or slowed.
func Limited() []string {
	return []string{HostMessages, NetworkMessages, DomainMessages, HostRecipients, NetworkRecipients, DomainRecipients,
		RecipientMessages, FailedRecipients, Slowed, HeaderFields, Listed, Tagged}
}

// Guard counts. Its methods are safe for many goroutines.
type Guard struct {
	live atomic.Pointer[rules]

	doors  doors
	failed *table[failures]
	book   *table[acquaintance]
	update sync.Mutex
}

// rules are settings with what is counted for them.
type rules struct {
	Settings
	host, network, domain, recipient *limiter
}

// New makes a Guard.
func New(s Settings) *Guard {
	g := &Guard{}
	g.failed = newTable(tableSize, func(f failures) float64 { return f.now(g.live.Load().Failed.CutAfter) })
	g.book = newTable(tableSize, acquaintance.now)
	g.Update(s)
	return g
}

// Update puts other settings in force. What was counted stays where the rate did
// not change; connections that are open stay open.
func (g *Guard) Update(s Settings) {
	g.update.Lock()
	defer g.update.Unlock()
	if s.Connections <= 0 {
		s.Connections = 1000
	}
	if s.Ours == nil {
		s.Ours = func(netip.Addr) bool { return false }
	}
	next := &rules{
		Settings:  s,
		host:      newLimiter(s.Host, words{HostRate, HostMessages, HostRecipients}),
		network:   newLimiter(s.Network, words{NetworkRate, NetworkMessages, NetworkRecipients}),
		domain:    newLimiter(s.SenderDomain, words{"", DomainMessages, DomainRecipients}),
		recipient: newLimiter(Rates{Messages: s.Recipient}, words{"", RecipientMessages, ""}),
	}
	if was := g.live.Load(); was != nil {
		for _, l := range []struct{ next, was **limiter }{
			{&next.host, &was.host}, {&next.network, &was.network}, {&next.domain, &was.domain}, {&next.recipient, &was.recipient},
		} {
			if (*l.next).rates == (*l.was).rates {
				*l.next = *l.was
			}
		}
	}
	g.live.Store(next)
}

const (
	tooMany     = "4.7.0 too many connections, try again later"
	tooOften    = "4.7.0 too many connections in too short a time, try again later"
	tooManyRcpt = "4.7.0 too many unknown recipients from your network, try again later"
)

// Logins are the same doors for listeners where nothing can be tried out before a
// login: what others of a client's network tried elsewhere does not close them.
type Logins struct{ *Guard }

// Enter asks for a connection of a client, see wire.Door.
func (l Logins) Enter(a netip.Addr) (reason, text string) { return l.enter(a, true) }

// Enter asks for a connection of a client, see wire.Door.
func (g *Guard) Enter(a netip.Addr) (reason, text string) { return g.enter(a, false) }

func (g *Guard) enter(a netip.Addr, login bool) (reason, text string) {
	r := g.live.Load()
	if !a.IsValid() || r.Ours(a) {
		if !g.doors.open(a, r.limits(ours)) {
			return Full, tooMany
		}
		return "", ""
	}
	net := subject(Network(a))
	as := strangers
	if g.known(net) {
		as = friends
	}
	if as == strangers && !login && r.Failed.CutAfter > 0 && g.failures(net, r) >= float64(r.Failed.CutAfter) {
		return FailedRecipients, tooManyRcpt
	}
	if reason = r.host.take(connections, subject(Host(a))); reason == "" {
		reason = r.network.take(connections, net)
	}
	if reason != "" {
		return reason, tooOften
	}
	if reason = g.doors.enter(a, r.limits(as)); reason != "" {
		return reason, tooMany
	}
	return "", ""
}

// Leave is the end of a connection that Enter let in.
func (g *Guard) Leave(a netip.Addr) { g.doors.leave(a) }

// Mail counts a message that a client wants to send. A reason says that there
// are too many. domain is that of the sender; empty, it is not counted.
func (g *Guard) Mail(a netip.Addr, domain string) (reason string) {
	return g.take(messages, a, domain)
}

// Rcpt counts a recipient that a client names.
func (g *Guard) Rcpt(a netip.Addr, domain string) (reason string) {
	return g.take(recipients, a, domain)
}

func (g *Guard) take(of what, a netip.Addr, domain string) (reason string) {
	r := g.live.Load()
	if !a.IsValid() || r.Ours(a) {
		return ""
	}
	if reason = r.host.take(of, subject(Host(a))); reason != "" {
		return reason
	}
	if reason = r.network.take(of, subject(Network(a))); reason != "" || domain == "" {
		return reason
	}
	return r.domain.take(of, []byte(strings.ToLower(domain)))
}

// Busy says when a recipient has had as many messages as he may. It counts
// nothing: whoever only names a recipient uses up none of what others may send him.
func (g *Guard) Busy(a netip.Addr, rcpt string) (reason string) {
	r := g.live.Load()
	if !a.IsValid() || r.Ours(a) {
		return ""
	}
	return r.recipient.over(messages, []byte(rcpt))
}

// Message counts a message that was taken for a recipient.
func (g *Guard) Message(a netip.Addr, rcpt string) {
	r := g.live.Load()
	if a.IsValid() && !r.Ours(a) {
		_ = r.recipient.take(messages, []byte(rcpt)) // it was taken; the next one will be too many
	}
}

// Failed counts a recipient who does not exist. The reply should wait for delay,
// and when cut is set it should end the connection.
func (g *Guard) Failed(a netip.Addr) (delay time.Duration, cut bool) {
	r := g.live.Load()
	if !a.IsValid() || r.Ours(a) {
		return 0, false
	}
	n := 0.0
	g.failed.with(subject(Network(a)), func(f failures) failures {
		n = f.now(r.Failed.CutAfter) + 1
		return failures{n: n, last: time.Now()}
	})
	f := r.Failed
	if over := int(n+0.5) - f.SlowAfter; over > 0 && f.Delay > 0 && f.MaxDelay > 0 {
		delay = min(f.Delay*time.Duration(min(over, 1<<16)), f.MaxDelay)
	}
	return delay, f.CutAfter > 0 && n > float64(f.CutAfter)
}

func (g *Guard) failures(net []byte, r *rules) float64 {
	f, _ := g.failed.look(net)
	return f.now(r.Failed.CutAfter)
}

// Accepted notes a message that was taken from a client, with so many
// recipients: its network is known from now on, and as many failures are
// forgiven.
func (g *Guard) Accepted(a netip.Addr, rcpts int) {
	r := g.live.Load()
	if !a.IsValid() || r.Ours(a) {
		return
	}
	net := subject(Network(a))
	g.book.with(net, func(old acquaintance) acquaintance {
		return acquaintance{n: old.now() + 1, last: time.Now()}
	})
	if _, there := g.failed.look(net); there {
		g.failed.with(net, func(f failures) failures {
			return failures{n: max(0, f.now(r.Failed.CutAfter)-float64(rcpts)), last: time.Now()}
		})
	}
}

// Ours tells whether a client is one that no limit binds.
func (g *Guard) Ours(a netip.Addr) bool { return g.live.Load().Ours(a) }

// Knows tells whether the network of a client sent good mail in the last days.
func (g *Guard) Knows(a netip.Addr) bool { return a.IsValid() && g.known(subject(Network(a))) }

// Known is the number of networks that are remembered for good mail.
func (g *Guard) Known() int { return g.book.len() }
