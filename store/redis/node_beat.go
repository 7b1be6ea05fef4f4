package redis

import (
	"context"
	"errors"
	"fmt"
	"sync/atomic"
	"time"

	"crossfade/queue"
)

// pace is how fast nodes look at each other.
type pace struct {
	beat  time.Duration // between two signs of life
	stale time.Duration // without one: the node counts as gone
}

var usualPace = pace{beat: 2 * time.Second, stale: 15 * time.Second}

func (o *Options) nodePace() pace {
	if o.pace == (pace{}) {
		return usualPace
	}
	return o.pace
}

// presence is this node among the others.
type presence struct {
	info     process
	draining atomic.Pointer[string] // by whom; nil: it is not
	poke     chan struct{}          // look now
	owning   atomic.Uint64          // numbers the calls that take and give up users
}

// ErrDraining is in what Room says when this node is being drained.
var ErrDraining = errors.New("this node is being drained")

// Draining tells whether an operator takes this node out of service: it takes
// no mail and claims none, and goes on with what it has until that is done.
func (s *Store) Draining() bool { return s.node.draining.Load() != nil }

// enlist enters this node into the books, over another life of it that has
// ended. A node of the same name that lives is waited for, and then refused.
func (s *Store) enlist(ctx context.Context) error {
	s.node.info = thisProcess(s.opts.Info)
	dead := ""
	var first time.Time
	told := false
	for {
		said, err := s.beat(ctx, true, dead)
		if err != nil {
			return err
		}
		switch asString(at(said, 0)) {
		case "OK":
			return nil
		case "LOADING":
			return fmt.Errorf("%w: %w", errRefused, markOf(asString(at(said, 2))))
		}
		other, boot := processOf(asString(at(said, 2))), asString(at(said, 3))
		if other.dead() && boot != dead {
			s.log.Info("the node's last life on this machine has ended: taking its place", "pid", other.PID)
			dead = boot
			continue
		}
		if first.IsZero() {
			first = time.Now()
		}
		p := s.opts.nodePace()
		if time.Since(first) > p.stale+p.beat/2 {
			return fmt.Errorf("%w: a node named %s is running on %s: give each node its own name with node: NAME", errRefused, s.opts.Node, other)
		}
		if !told {
			told = true
			s.log.Warn("a node of this name is in the books: waiting for it to end", "where", other.String(), "at_most", p.stale)
		}
		if !s.link.pause(ctx, min(time.Second, p.stale/10)) {
			return fmt.Errorf("open the store: %w", context.Cause(ctx))
		}
	}
}

func (s *Store) beat(ctx context.Context, join bool, dead string) ([]any, error) {
	said, err := s.link.read(ctx, scBeat, s.opts.Node, s.boot, flag(join), s.node.info.encode(), dead, s.opts.nodePace().stale.Milliseconds(),
		flag(s.Draining()))
	if err != nil {
		return nil, err
	}
	list := asList(said)
	s.link.saw(asInt(at(list, 1)))
	if asString(at(list, 0)) == "OK" {
		s.setDraining(asString(at(list, 2)))
	}
	return list, nil
}

func (s *Store) setDraining(by string) {
	was := s.Draining()
	if by == "" {
		s.node.draining.Store(nil)
	} else {
		s.node.draining.Store(&by)
	}
	if was == (by != "") {
		return
	}
	s.lookAtNodes() // it is to be known soon that we know
	if by != "" {
		s.log.Info("this node is being drained: it takes no more mail", "by", by)
		return
	}
	s.log.Info("this node takes mail again")
	for n := laneOld; n <= laneOut; n++ {
		s.lanes[n].kick()
	}
}

// beats tells the others that this node lives, until the store is closed.
func (s *Store) beats() {
	t := time.NewTicker(s.opts.nodePace().beat)
	defer t.Stop()
	for {
		select {
		case <-t.C:
		case <-s.node.poke:
		case <-s.ctx.Done():
			return
		}
		if s.frozen() {
			continue
		}
		ctx, cancel := context.WithTimeout(s.ctx, 5*time.Second)
		said, err := s.beat(ctx, false, "")
		cancel()
		if err != nil {
			continue // Redis is away: that is told elsewhere
		}
		if asString(at(said, 0)) == "TAKEN" {
			other := processOf(asString(at(said, 2)))
			s.fail(fmt.Errorf("another node took the name %s, on %s: this one was not heard of for too long; give each node its own name with node: NAME",
				s.opts.Node, other))
			return
		}
	}
}

// lookAtNodes has the books looked at now.
func (s *Store) lookAtNodes() {
	select {
	case s.node.poke <- struct{}{}:
	default:
	}
}

// frozen is for tests: a node that is stopped and goes on later.
func (s *Store) frozen() bool { return s.opts.frozen != nil && s.opts.frozen() }

// NodeState says how a node does.
type NodeState string

// The states of a node.
const (
	NodeAlive    NodeState = "alive"
	NodeDraining NodeState = "draining" // takes nothing new, and ends what it has
	NodeDrained  NodeState = "drained"  // has nothing any more: it may be stopped
	NodeGone     NodeState = "gone"     // not heard of for 15 s
	NodeLeft     NodeState = "left"     // ended in good order
)

// Node is one of the nodes that share the store.
type Node struct {
	Name    string
	State   NodeState
	Host    string
	PID     int
	Info    Info
	Since   time.Time // it runs
	Seen    time.Time // its last sign of life, by the clock of Redis
	Drained string    // who drains it; empty: nobody
	Leases  int       // deliveries it has claimed
	Sending int       // recipients of which the final dot may be under way
	Users   int       // on whom its conductor works
	Self    bool      // the node that was asked
}

// Nodes lists the nodes, in no order.
func (s *Store) Nodes(ctx context.Context) ([]Node, error) {
	if err := s.enter(); err != nil {
		return nil, err
	}
	defer s.leave()
	said, err := s.link.read(ctx, scNodes)
	if err != nil {
		return nil, fmt.Errorf("list the nodes: %w", err)
	}
	list := asList(said)
	now := asInt(at(list, 0))
	out := make([]Node, 0, len(list))
	for _, v := range list[min(1, len(list)):] {
		out = append(out, s.describe(asList(v), now))
	}
	return out, nil
}

// describe reads a node as nodes.lua gives it.
func (s *Store) describe(f []any, now int64) Node {
	p := processOf(asString(at(f, 2)))
	n := Node{
		Name: asString(at(f, 0)), Host: p.Host, PID: p.PID, Info: p.Info, Seen: fromMillis(asInt(at(f, 3))), Since: fromMillis(asInt(at(f, 4))),
		Drained: asString(at(f, 5)), Leases: int(asInt(at(f, 7))), Sending: int(asInt(at(f, 8))), Users: int(asInt(at(f, 9))),
		Self: asString(at(f, 1)) == s.boot,
	}
	switch {
	case asInt(at(f, 6)) != 0:
		n.State = NodeLeft
	case now-asInt(at(f, 3)) >= s.opts.nodePace().stale.Milliseconds():
		n.State = NodeGone
	case n.Drained != "" && asInt(at(f, 10)) == 1 && n.Leases+n.Users == 0:
		n.State = NodeDrained
	case n.Drained != "":
		n.State = NodeDraining
	default:
		n.State = NodeAlive
	}
	return n
}

// ErrNoNode is in the error for a node that is not in the books, or has left.
var ErrNoNode = errors.New("no such node")

// Drain takes a node out of service, or with by empty puts it back. It is in
// force as soon as the node has seen it, within 2 s, and ends with its process:
// started anew, the node works again.
func (s *Store) Drain(ctx context.Context, name, by string) error {
	if err := s.enter(); err != nil {
		return err
	}
	defer s.leave()
	said, err := s.link.write(ctx, scDrain, name, by)
	if err != nil {
		return fmt.Errorf("drain node %s: %w", name, err)
	}
	switch asString(said) {
	case "OK":
		return nil
	case "LEFT":
		return fmt.Errorf("%w: %s has left already", ErrNoNode, name)
	}
	return fmt.Errorf("%w: %s", ErrNoNode, name)
}

// part leaves: leases go back, so that other nodes need not wait for their end.
func (s *Store) part() {
	args := []any{s.opts.Node, s.boot}
	s.mu.Lock()
	for token := range s.leases {
		args = append(args, token)
	}
	s.mu.Unlock()
	ctx, cancel := context.WithTimeout(context.Background(), 3*time.Second)
	defer cancel()
	_, err := s.link.write(ctx, scPart, args...)
	if err != nil && !errors.Is(err, queue.ErrClosed) {
		s.log.Warn("the node cannot take its leave: its leases run out within a minute", "err", err)
	}
}
