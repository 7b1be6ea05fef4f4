package relay

import (
	"context"
	"net/netip"
	"strconv"
	"strings"
	"time"

	"crossfade/mail"
	"crossfade/relay/dnsbl"
	"crossfade/relay/limit"
	"crossfade/relay/wire"
)

// Welcome is how strangers are received. Clients of ours, those that log in, and
// those that the guard exempts have nothing to do with it. The zero value is open
// arms.
type Welcome struct {
	// GreetDelay is how long a stranger waits for the greeting; who speaks first is
	// sent away. Networks that are known for good mail do not wait.
	GreetDelay time.Duration
	// Lists are asked about the addresses of strangers; nil asks nobody.
	Lists *dnsbl.Checker
	// Tag notes in the message that its client is listed, instead of refusing its
	// recipients.
	Tag bool
}

// SetWelcome puts another welcome in force, for connections that are open too.
func (s *Server) SetWelcome(w Welcome) { s.welcome.Store(&w) }

// greetDelay receives a client: it begins to ask about his address, and says how
// long he has to wait.
func (s *Server) greetDelay(a netip.Addr) time.Duration {
	w := s.welcome.Load()
	if s.cfg.Guard.Ours(a) || s.trusts(wire.Info{Remote: netip.AddrPortFrom(a, 0)}) {
		return 0
	}
	if w.Lists != nil {
		w.Lists.Begin(s.ctx, a)
	}
	if s.cfg.Guard.Knows(a) {
		return 0
	}
	return w.GreetDelay
}

// listed tells what the lists say of a client that is a stranger.
func (s *Server) listed(ctx context.Context, lists *dnsbl.Checker, client wire.Info) dnsbl.Verdict {
	if lists == nil || s.trusts(client) || s.cfg.Guard.Ours(client.Remote.Addr()) {
		return dnsbl.Verdict{}
	}
	return lists.Check(ctx, client.Remote.Addr())
}

// mayAddress refuses recipients to clients that are listed. The postmaster is for
// everybody (RFC 5321, 4.5.1): whoever is listed by mistake can write there.
func (s *session) mayAddress(to mail.Address) error {
	w := s.srv.welcome.Load()
	if w.Lists == nil || w.Tag || strings.EqualFold(to.Local, "postmaster") {
		return nil
	}
	info := s.conn.Info()
	v := s.srv.listed(s.srv.ctx, w.Lists, info)
	if !v.Listed {
		return nil
	}
	reply := mail.Replyf(550, mail.Enhanced{5, 7, 1}, "%s is listed: %s; postmaster can be written to", info.Remote.Addr(), strings.Join(v.Says, ", "))
	return s.limited(limit.Listed, reply)
}

// listTagger is the inspector that notes who is listed. It asks when the message
// begins, so that the answer is there at its end.
type listTagger struct{ srv *Server }

// Inspect implements Inspector.
func (t listTagger) Inspect(_ context.Context, m Incoming) Inspection {
	w := t.srv.welcome.Load()
	if w.Lists == nil || !w.Tag || m.Ours {
		return nil
	}
	return &listTag{srv: t.srv, lists: w.Lists, client: m.Info}
}

type listTag struct {
	srv    *Server
	lists  *dnsbl.Checker
	client wire.Info
}

func (*listTag) Sent([]byte) {}
func (*listTag) Kept([]byte) {}
func (*listTag) Close()      {}

// ListedField is the header field that notes which lists have the client.
const ListedField = "X-Crossfade-DNSBL"

// End implements Inspection.
func (t *listTag) End(ctx context.Context, _ string) (trace string, err error) {
	v := t.srv.listed(ctx, t.lists, t.client)
	if !v.Listed {
		return "", nil
	}
	if f := t.srv.cfg.Metrics.Limited; f != nil {
		f(limit.Tagged)
	}
	return ListedField + ": score=" + strconv.Itoa(v.Score) + ";\r\n\t" + strings.Join(v.Says, ",\r\n\t") + "\r\n", nil
}
