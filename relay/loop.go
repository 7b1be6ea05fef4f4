package relay

import (
	"fmt"
	"slices"
	"strings"
	"time"

	"crossfade/mail"
	"crossfade/queue"
)

// loopMark begins the reason of mail that is parked because it goes round. An
// operator who lets it go on has read it: it is not parked a second time.
const loopMark = "mail loop: "

// loopPause is how long a message waits that a side gave back for the first
// time. Around a flip that need not be a loop: Postfix goes by what it knew of
// an address for up to 30 s.
const loopPause = time.Minute

// loopVerdicts looks whether a delivery would send mail round once more. It is
// decided here and not when the mail arrives, because only now the route is
// known: mail that comes back from old for a user who is on new by now goes to
// new, and that is the end of it. What goes round is parked, or waits when it
// may be no loop; other recipients of the lease are given back, to be claimed
// again without it. nil: all may go.
func loopVerdicts(lease *queue.Lease, route mail.Route, now time.Time) []deliverVerdict {
	if lease.Envelope.Passage.IsZero() {
		return nil
	}
	var vs []deliverVerdict
	looped := false
	for _, item := range lease.Items {
		v := deliverVerdict{Outcome: queue.Outcome{N: item.N, Kind: queue.Release}}
		if why := loopReason(lease.Envelope, item, route); why != "" {
			looped = true
			v.Kind, v.Reply = queue.Park, loopMark+why
			if lease.Envelope.Passage.Ours == 1 {
				v.Kind, v.At = queue.Retry, now.Add(loopPause)
			} else {
				v.alarm = v.Reply
			}
		}
		vs = append(vs, v)
	}
	if !looped {
		return nil
	}
	return vs
}

// loopReason explains why a recipient of a message would go round, which hop
// sends it back and what to change there; empty when it does not.
func loopReason(env *mail.Envelope, item queue.Item, route mail.Route) string {
	if item.Attempts > 0 || strings.HasPrefix(item.LastReply, loopMark) {
		return "" // it was tried over this route, or an operator let it go
	}
	p, rcpt := env.Passage, env.Recipients[item.N]
	again := slices.ContainsFunc([]mail.Address{rcpt.Addr, rcpt.Given()}, func(a mail.Address) bool { return slices.Contains(p.For, a.Key()) })
	hop := loopHop(env)
	switch {
	case p.From != "" && p.From == route && again:
		return fmt.Sprintf("%s gave this message back, which it had got from here for %s, and the user's mail goes to %s (%s). %s does not take itself for the home of this address: "+
			"create the mailbox there, or take away the rule that sends its mail to this relay (see docs/recipes.md); or set the user to %s. Then let the message go on (queue retry)",
			hop, rcpt.Addr, route, loopIDs(p), route, route.Other())
	case p.Ours >= maxOwnHops:
		return fmt.Sprintf("the message came through here %d times already (%s), and was handed over by %s. Look for the forwarding, or the system, that sends mail for %s back here, "+
			"and end it there (see docs/recipes.md). Then let the message go on (queue retry)", p.Ours, loopIDs(p), hop, rcpt.Addr)
	case p.Hops > maxHops:
		return fmt.Sprintf("the message has %d Received fields, and more than %d mean that it goes round (RFC 5321, 6.3); it was handed over by %s. Its header tells which systems "+
			"send it to each other. End that there, and let the message go on (queue retry)", p.Hops, maxHops, hop)
	}
	return ""
}

// loopHop names who handed the message over.
func loopHop(env *mail.Envelope) string {
	who, hint := "a system that is in no sends_from", "; if it belongs to one side, name it there"
	if env.Passage.From != "" {
		who, hint = string(env.Passage.From), ""
	}
	return fmt.Sprintf("%s (%s, which calls itself %s%s)", who, env.Client.Addr.Addr().Unmap(), heloName(env.Client.Helo), hint)
}

// loopIDs lists the ids under which the message was here.
func loopIDs(p mail.Passage) string {
	if len(p.IDs) == 0 {
		return "under unknown ids"
	}
	return "as " + strings.Join(p.IDs, ", ")
}
