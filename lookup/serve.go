package lookup

import (
	"bufio"
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"net/netip"
	"slices"
	"sync"
	"time"
)

// answerer reads one question from a connection and gives the reply. An error
// ends the connection, after the reply when there is one.
type answerer func(ctx context.Context, r *bufio.Reader) (reply string, err error)

// serve answers on the connections of l until ctx ends, and waits for them.
func (s *Service) serve(ctx context.Context, l net.Listener, answer answerer) error {
	g := &gate{Listener: l, s: s}
	stop := context.AfterFunc(ctx, func() { _ = l.Close() })
	defer stop()
	var wg sync.WaitGroup
	defer wg.Wait()
	for {
		conn, err := g.Accept()
		if err != nil {
			if ctx.Err() != nil {
				return nil
			}
			_ = l.Close()
			return fmt.Errorf("lookup: accept connections on %s: %w", l.Addr(), err)
		}
		wg.Go(func() { s.talk(ctx, conn, answer) })
	}
}

// talk answers the questions of one connection, one after the other.
func (s *Service) talk(ctx context.Context, conn net.Conn, answer answerer) {
	defer conn.Close()
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	stop := context.AfterFunc(ctx, func() { _ = conn.SetDeadline(time.Unix(1, 0)) })
	defer stop()
	r := bufio.NewReaderSize(conn, maxLine)
	for ctx.Err() == nil {
		if err := s.one(ctx, conn, r, answer); err != nil {
			if errors.Is(err, errBad) {
				s.refused.Do(func() {
					s.log.Warn("lookup: a connection does not speak the protocol", "peer", conn.RemoteAddr().String(), "err", err)
				})
			}
			return
		}
	}
}

// one waits for a question and answers it. Waiting may last long, but a question
// that has begun has to come to its end.
func (s *Service) one(ctx context.Context, conn net.Conn, r *bufio.Reader, answer answerer) error {
	if err := s.deadline(ctx, conn, s.cfg.IdleTime); err != nil {
		return err
	}
	if _, err := r.Peek(1); err != nil {
		return err
	}
	if err := s.deadline(ctx, conn, s.cfg.Timeout); err != nil {
		return err
	}
	reply, err := answer(ctx, r)
	if reply == "" {
		return err
	}
	if derr := s.deadline(ctx, conn, s.cfg.Timeout); derr != nil {
		return derr
	}
	_, werr := io.WriteString(conn, reply)
	return errors.Join(err, werr)
}

// deadline gives the connection so much time, unless all of it is over.
func (s *Service) deadline(ctx context.Context, conn net.Conn, d time.Duration) error {
	if err := conn.SetDeadline(time.Now().Add(d)); err != nil {
		return err
	}
	return ctx.Err() // what ended it has set a deadline in the past, which ours may have undone
}

// gate is a listener that lets in whom the settings allow, and not too many.
type gate struct {
	net.Listener
	s *Service
}

// Accept gives the next connection that may stay. It waits out a shortage of
// file descriptors, which ends when connections do.
func (g *gate) Accept() (net.Conn, error) {
	for wait := 5 * time.Millisecond; ; {
		conn, err := g.Listener.Accept()
		var passing interface{ Temporary() bool }
		if err != nil && errors.As(err, &passing) && passing.Temporary() && !errors.Is(err, net.ErrClosed) {
			g.s.refused.Do(func() { g.s.log.Warn("lookup: a connection cannot be accepted, trying again", "err", err) })
			time.Sleep(wait)
			wait = min(2*wait, time.Second)
			continue
		}
		if err != nil {
			return nil, err
		}
		wait = 5 * time.Millisecond
		if why := g.admit(conn.RemoteAddr()); why != "" {
			g.s.refused.Do(func() {
				g.s.log.Warn("lookup: a connection is turned away", "peer", conn.RemoteAddr().String(), "why", why)
			})
			_ = conn.Close()
			continue
		}
		return &admitted{Conn: conn, leave: sync.OnceFunc(func() { <-g.s.slots })}, nil
	}
}

// admit takes a place for a peer, or says why he gets none.
func (g *gate) admit(peer net.Addr) string {
	if tcp, ok := peer.(*net.TCPAddr); ok && !g.s.allowed(tcp.AddrPort().Addr().Unmap()) {
		return "its network is not in lookup.networks"
	}
	select {
	case g.s.slots <- struct{}{}:
		return ""
	default:
		return fmt.Sprintf("%d connections are open already (lookup.max_connections)", cap(g.s.slots))
	}
}

// allowed tells whether an address may ask.
func (s *Service) allowed(ip netip.Addr) bool {
	return ip.IsLoopback() || slices.ContainsFunc(s.set.Load().Networks, func(n netip.Prefix) bool { return n.Contains(ip) })
}

// admitted is a connection that holds a place.
type admitted struct {
	net.Conn
	leave func()
}

// Close closes the connection and gives its place back.
func (a *admitted) Close() error {
	defer a.leave()
	return a.Conn.Close()
}
