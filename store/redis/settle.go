package redis

import (
	"bytes"
	"context"
	"fmt"
	"slices"
	"strings"
	"time"

	"crossfade/journal"
	"crossfade/queue"
)

// maxReply bounds what is kept of a backend's words, in octets.
const maxReply = 1000

func clip(reply string) string {
	if len(reply) > maxReply {
		return strings.ToValidUTF8(reply[:maxReply], "")
	}
	return reply
}

// Settle implements [queue.Deliverer].
//
// When the lease is good but a user among the items was changed since the
// claim, or one of them was recorded as done by a lease before, the outcomes
// other than done are not recorded for any item and the new messages are
// dropped: whom a bounce tells of cannot be known here. The items are queued as
// they were, and the answer is ErrLost.
func (s *Store) Settle(ctx context.Context, l *queue.Lease, outcomes []queue.Outcome, msgs ...queue.NewMessage) error {
	if err := queue.CheckSettle(l, outcomes, msgs); err != nil {
		return err
	}
	if err := s.enter(); err != nil {
		return err
	}
	defer s.leave()
	ls, mine := l.Opaque.(*lease)
	if mine && ls.s == s {
		ls.mu.Lock()
		defer ls.mu.Unlock()
		if ls.settled {
			return ls.result
		}
	}
	args, drop, err := s.settleArgs(ctx, l, outcomes, msgs)
	if err != nil {
		return err
	}
	said, err := s.link.write(ctx, scSettle, args...)
	if err != nil {
		return err // its new bodies stay: it may have been recorded
	}
	result := error(nil)
	list := asList(said)
	if asString(at(list, 0)) != "OK" {
		result = queue.ErrLost
		if !slices.ContainsFunc(outcomes, func(o queue.Outcome) bool { return o.Kind == queue.Done }) {
			drop()
		}
	}
	if mine && ls.s == s {
		ls.settled, ls.result = true, result
		s.forget(ls)
	}
	s.kick(list[min(1, len(list)):])
	s.crash("settle")
	return result
}

// settleArgs are the outcomes as settle.lua reads them; drop removes what was
// written for the new messages.
func (s *Store) settleArgs(ctx context.Context, l *queue.Lease, outcomes []queue.Outcome, msgs []queue.NewMessage) (args []any, drop func(), err error) {
	now := time.Now()
	args = append(args, s.boot, l.Token, string(l.Envelope.ID), len(l.Items))
	for i := range l.Items {
		it := &l.Items[i]
		o := queue.Outcome{N: it.N, Kind: queue.Release}
		for j := range outcomes {
			if outcomes[j].N == it.N {
				o = outcomes[j]
			}
		}
		args = append(args, it.N, it.User, string(o.Kind), clip(o.Reply), max(millis(o.At), 1), laneOf(o.To), flag(o.Noticed),
			it.Epoch, flag(it.Copy), laneOf(it.CopyTo), flag(o.Doubt), journal.OutcomeLine(l, it, &o, now))
	}
	var made []*body
	drop = func() {
		for _, b := range made {
			if len(b.chunks) > 0 {
				s.bodies.discard(b)
			}
		}
	}
	args = append(args, len(msgs))
	for _, m := range msgs {
		b, err := s.bodies.receive(ctx, m.Envelope.ID, bytes.NewReader(m.Body))
		if err == nil {
			err = s.bodies.seal(ctx, b)
		}
		if err != nil {
			drop()
			return nil, nil, fmt.Errorf("queue a new message: %w", err)
		}
		made = append(made, b)
		e := *m.Envelope
		e.Size = b.size
		e.Recipients = slices.Clone(m.Envelope.Recipients)
		more, err := putArgs(&e, b, l.Envelope.ID)
		if err != nil {
			drop()
			return nil, nil, err
		}
		args = append(args, more...)
	}
	return args, drop, nil
}
