package mailtest

import (
	"errors"
	"fmt"
	"net"
	"strings"
	"sync/atomic"

	"github.com/miekg/dns"
)

// DNS is a name server of a test's own making: it answers as its function says, over UDP and TCP at one address.
type DNS struct {
	Addr string // 127.0.0.1:port

	answer  func(req *dns.Msg, tcp bool) *dns.Msg
	asked   atomic.Int64
	servers []*dns.Server
}

// NewDNS starts a server. answer is called for each question, by many goroutines at once; nil instead of an answer is
// silence. What is too long for UDP is truncated as the client's EDNS asks.
func NewDNS(answer func(req *dns.Msg, tcp bool) *dns.Msg) (*DNS, error) {
	l, pc, err := listenBoth()
	if err != nil {
		return nil, err
	}
	d := &DNS{Addr: l.Addr().String(), answer: answer}
	for _, s := range []*dns.Server{{PacketConn: pc, Handler: d}, {Listener: l, Handler: d}} {
		up := make(chan struct{})
		s.NotifyStartedFunc = func() { close(up) }
		go func() { _ = s.ActivateAndServe() }() // ends with Close
		<-up
		d.servers = append(d.servers, s)
	}
	return d, nil
}

// listenBoth takes a port that is free for TCP and UDP.
func listenBoth() (net.Listener, net.PacketConn, error) {
	for range 20 {
		l, err := net.Listen("tcp", "127.0.0.1:0")
		if err != nil {
			return nil, nil, fmt.Errorf("listen for DNS: %w", err)
		}
		if pc, err := net.ListenPacket("udp", l.Addr().String()); err == nil {
			return l, pc, nil
		}
		_ = l.Close()
	}
	return nil, nil, errors.New("listen for DNS: no port is free for UDP and TCP")
}

// NewZoneDNS starts a server for records, in the format of zone files, one each. It denies all other names, and gives
// the CNAMEs of a name with what they lead to, as a recursive resolver does.
func NewZoneDNS(records ...string) (*DNS, error) {
	zone := map[string][]dns.RR{}
	for _, text := range records {
		rr, err := dns.NewRR(text)
		if err != nil {
			return nil, fmt.Errorf("record %q: %w", text, err)
		}
		name := strings.ToLower(rr.Header().Name)
		zone[name] = append(zone[name], rr)
	}
	return NewDNS(func(req *dns.Msg, _ bool) *dns.Msg { return fromZone(zone, req) })
}

func fromZone(zone map[string][]dns.RR, req *dns.Msg) *dns.Msg {
	resp := new(dns.Msg)
	resp.SetReply(req)
	name := strings.ToLower(req.Question[0].Name)
	for range 10 {
		next := ""
		for _, rr := range zone[name] {
			if c, ok := rr.(*dns.CNAME); ok {
				next = strings.ToLower(c.Target)
			} else if rr.Header().Rrtype != req.Question[0].Qtype {
				continue
			}
			resp.Answer = append(resp.Answer, rr)
		}
		if next == "" {
			break
		}
		name = next
	}
	if len(zone[name]) == 0 {
		resp.Rcode = dns.RcodeNameError
	}
	return resp
}

// Asked is the number of questions so far.
func (d *DNS) Asked() int { return int(d.asked.Load()) }

// Close ends the server.
func (d *DNS) Close() {
	for _, s := range d.servers {
		_ = s.Shutdown()
	}
}

// ServeDNS implements dns.Handler.
func (d *DNS) ServeDNS(w dns.ResponseWriter, req *dns.Msg) {
	d.asked.Add(1)
	tcp := w.RemoteAddr().Network() == "tcp"
	resp := d.answer(req, tcp)
	if resp == nil {
		return
	}
	if !tcp {
		size := dns.MinMsgSize
		if o := req.IsEdns0(); o != nil {
			size = int(o.UDPSize())
		}
		resp.Truncate(size)
	}
	_ = w.WriteMsg(resp)
}
