// Package dnsask puts a question to one name server and waits for its answer. It
// knows the server's answer from what others send, asks servers of the time before
// EDNS without it, and goes over to TCP where an answer is too long for UDP. What
// the answer says is for those who ask.
//
// Start reading at [Asker.Ask].
package dnsask

import (
	"context"
	"errors"
	"fmt"
	"net"
	"strings"
	"time"

	"github.com/miekg/dns"
)

// EDNSSize is the size in octets of an answer over UDP that no path fragments, for
// SetEdns0.
const EDNSSize = 1232

const (
	readSize = 4096 // what is read all the same of a server that sends more
	maxStray = 32   // packets that answer something else before a try is given up
)

// What a server did instead of answering.
var (
	ErrSilent    = errors.New("no answer")
	ErrMismatch  = errors.New("it answered another question, or with another id: it is broken, or somebody forges answers")
	ErrMalformed = errors.New("its answer is no DNS message")
)

// Asker asks. It has no state.
type Asker struct {
	// Dial connects to host:port; net.Dialer.DialContext is one.
	Dial func(ctx context.Context, network, address string) (net.Conn, error)
	// Wait is the time for one try, and Tries how often a server that is silent over
	// UDP is asked (1).
	Wait  time.Duration
	Tries int
}

// Ask puts m, which has one question, to the server at address (host:port). It
// may take EDNS out of m, and gives it an id of its own.
func (a Asker) Ask(ctx context.Context, address string, m *dns.Msg) (*dns.Msg, error) {
	resp, err := a.try(ctx, address, m)
	if err == nil && (resp.Rcode == dns.RcodeFormatError || resp.Rcode == dns.RcodeNotImplemented) {
		m.Extra = nil // a server of the time before EDNS
		resp, err = a.try(ctx, address, m)
	}
	return resp, err
}

func (a Asker) try(ctx context.Context, address string, m *dns.Msg) (resp *dns.Msg, err error) {
	for range max(a.Tries, 1) {
		resp, err = a.Once(ctx, "udp", address, m)
		if err == nil || !errors.Is(err, ErrSilent) || ctx.Err() != nil {
			break
		}
	}
	if err == nil && resp.Truncated || errors.Is(err, ErrMalformed) { // larger than what was asked for, or cut off on its way
		if resp, err = a.Once(ctx, "tcp", address, m); err != nil {
			return nil, fmt.Errorf("its answer is too long for UDP, and over TCP: %w", err)
		}
		if resp.Truncated {
			return nil, errors.New("its answer is cut short over TCP too")
		}
	}
	return resp, err
}

// Once sends m over "udp" or "tcp" and waits for its answer. What answers
// something else is read over, for as long as the time allows: over UDP anybody
// may send it. An error of the network is an ErrSilent.
func (a Asker) Once(ctx context.Context, network, address string, m *dns.Msg) (*dns.Msg, error) {
	m.Id = dns.Id()
	ctx, cancel := context.WithTimeout(ctx, a.Wait)
	defer cancel()
	conn, err := a.Dial(ctx, network, address)
	if err != nil {
		return nil, fmt.Errorf("%w: %w", ErrSilent, err)
	}
	defer func() { _ = conn.Close() }()
	defer context.AfterFunc(ctx, func() { _ = conn.SetDeadline(time.Unix(1, 0)) })()
	dc := &dns.Conn{Conn: conn, UDPSize: readSize}
	if err := dc.WriteMsg(m); err != nil {
		return nil, fmt.Errorf("%w: %w", ErrSilent, err)
	}
	stray := ErrSilent
	for range maxStray {
		resp, err := dc.ReadMsg()
		var ne net.Error
		switch {
		case errors.As(err, &ne) || err != nil && network == "tcp":
			if stray == ErrSilent {
				return nil, fmt.Errorf("%w: %w", ErrSilent, err)
			}
			return nil, stray
		case err != nil: // cut off on its way, perhaps: TCP will tell
			return nil, ErrMalformed
		case answers(resp, m):
			return resp, nil
		}
		stray = ErrMismatch
	}
	return nil, stray
}

// answers tells whether resp is the answer to m.
func answers(resp, m *dns.Msg) bool {
	if !resp.Response || resp.Id != m.Id {
		return false
	}
	if len(resp.Question) == 0 { // servers that refuse leave it out
		return resp.Rcode != dns.RcodeSuccess && resp.Rcode != dns.RcodeNameError
	}
	want, got := m.Question[0], resp.Question[0]
	return len(resp.Question) == 1 && got.Qtype == want.Qtype && got.Qclass == want.Qclass && strings.EqualFold(got.Name, want.Name)
}
