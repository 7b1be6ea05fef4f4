package dnswatch

import (
	"context"
	"crypto/tls"
	"crypto/x509"
	"fmt"
	"net"
	"net/http"
	"net/http/httptest"
	"strings"
	"sync"
	"testing"
	"time"

	"crossfade/internal/mailtest"
	"crossfade/internal/mailtest/realtest"

	"github.com/miekg/dns"
)

// The addresses of the little Internet in which the tests live: the network is made by the dialer.
const (
	ns1Addr   = "192.0.2.53:53"
	ns2Addr   = "198.51.100.53:53"
	relayAddr = "192.0.2.25:25"
	webAddr   = "192.0.2.80:443"
)

// infra are the zones that belong to none of the cases.
var infra = map[string]string{
	"infra.test": head + `
ns1 A 192.0.2.53
ns2 A 198.51.100.53
gone A 192.0.2.99
`,
	"relay.test": head + `
mx A 192.0.2.25
bare A 192.0.2.26
wrong A 192.0.2.27
other A 192.0.2.27
alias CNAME mx
inside A 10.1.2.3
slow 86400 A 192.0.2.25
dane A 192.0.2.25
_25._tcp.dane TLSA 3 1 1 0000000000000000000000000000000000000000000000000000000000000000
daneok A 192.0.2.25
_25._tcp.daneok TLSA 3 1 1 0000000000000000000000000000000000000000000000000000000000000000
_25._tcp.daneok TLSA {{TLSA}}
daneold A 192.0.2.25
_25._tcp.daneold TLSA 1 1 1 0000000000000000000000000000000000000000000000000000000000000000
daneshut A 192.0.2.27
_25._tcp.daneshut TLSA {{TLSA}}
`,
	"new.test": head + `
mx1 A 203.0.113.1
mx2 A 203.0.113.2
alias CNAME mx1
_spf TXT "v=spf1 ip4:203.0.113.0/24 -all"
`,
	"test": head,
	"old.test": head + `
mail A 198.51.100.25
backup A 198.51.100.26
`,
	"2.0.192.in-addr.arpa": head + `
25 PTR mx.relay.test.
27 PTR nobody.relay.test.
`,
}

const head = `$TTL 300
@ SOA ns1.infra.test. hostmaster.infra.test. 1 3600 600 604800 300
@ NS ns1.infra.test.
@ NS ns2.infra.test.
`

// world is two name servers (NSD), a web server for policies, a mail server, and the way to them.
type world struct {
	ca       *mailtest.CA
	ns1, ns2 *realtest.NSD
	policies map[string]string // by host
	mu       sync.Mutex
	ways     map[string]string // address in the little Internet -> real one
}

func newWorld(t testing.TB, ns1, ns2 map[string]string, webHosts []string) *world {
	t.Helper()
	w := &world{policies: map[string]string{}, ways: map[string]string{}}
	var err error
	if w.ca, err = mailtest.NewCA(); err != nil {
		t.Fatal(err)
	}
	leaf := w.mailServer(t, relayAddr, "mx.relay.test")
	fits := new(dns.TLSA)
	if err := fits.Sign(3, 1, 1, leaf); err != nil {
		t.Fatal(err)
	}
	for name, text := range infra {
		text = strings.ReplaceAll(text, "{{TLSA}}", "3 1 1 "+fits.Certificate)
		ns1[name], ns2[name] = text, text
	}
	w.ns1, w.ns2 = realtest.StartNSD(t, ns1), realtest.StartNSD(t, ns2)
	w.way(ns1Addr, w.ns1.Addr)
	w.way(ns2Addr, w.ns2.Addr)
	w.web(t, webHosts)
	return w
}

// mailServer puts a server with STARTTLS behind an address.
func (w *world) mailServer(t testing.TB, addr string, names ...string) *x509.Certificate {
	t.Helper()
	cert, err := w.ca.Issue(names...)
	if err != nil {
		t.Fatal(err)
	}
	sink, err := mailtest.NewSink(mailtest.SinkConfig{STARTTLS: true, TLS: &tls.Config{Certificates: []tls.Certificate{cert}, MinVersion: tls.VersionTLS12}})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { sink.Close() })
	w.way(addr, sink.Addr())
	return cert.Leaf
}

func (w *world) web(t testing.TB, hosts []string) {
	t.Helper()
	conf, err := w.ca.ServerConfig(hosts...)
	if err != nil {
		t.Fatal(err)
	}
	srv := httptest.NewUnstartedServer(http.HandlerFunc(func(rw http.ResponseWriter, r *http.Request) {
		w.mu.Lock()
		text, ok := w.policies[r.Host]
		w.mu.Unlock()
		switch {
		case !ok || r.URL.Path != "/.well-known/mta-sts.txt":
			http.NotFound(rw, r)
		case strings.HasPrefix(text, "redirect"):
			http.Redirect(rw, r, "https://elsewhere.test/", http.StatusFound)
		case strings.HasPrefix(text, "html"):
			rw.Header().Set("Content-Type", "text/html")
			fmt.Fprint(rw, text)
		default:
			rw.Header().Set("Content-Type", "text/plain")
			fmt.Fprint(rw, text)
		}
	}))
	srv.TLS = conf
	srv.StartTLS()
	t.Cleanup(srv.Close)
	w.way(webAddr, srv.Listener.Addr().String())
}

func (w *world) way(from, to string) {
	w.mu.Lock()
	defer w.mu.Unlock()
	w.ways[from] = to
}

func (w *world) policy(host, text string) {
	w.mu.Lock()
	defer w.mu.Unlock()
	w.policies[host] = text
}

// dial is the network: what has no way cannot be reached.
func (w *world) dial(ctx context.Context, network, address string) (net.Conn, error) {
	w.mu.Lock()
	to, ok := w.ways[address]
	w.mu.Unlock()
	if !ok {
		if !strings.HasPrefix(address, "127.0.0.1:") {
			return nil, fmt.Errorf("dial %s %s: network is unreachable", network, address)
		}
		to = address
	}
	var d net.Dialer
	return d.DialContext(ctx, network, to)
}

// resolver is a stub in place of a recursive resolver: it asks the servers that have the answer.
type resolver struct {
	addr     string
	mu       sync.Mutex
	upstream func() string
	// twist changes an answer; nil drops it.
	twist func(req, resp *dns.Msg, tcp bool) *dns.Msg
	asked int
}

// newResolver starts one; it is stopped when the test ends.
func newResolver(t testing.TB, upstream func() string, twist func(req, resp *dns.Msg, tcp bool) *dns.Msg) *resolver {
	t.Helper()
	r := &resolver{upstream: upstream, twist: twist}
	var l net.Listener
	var pc net.PacketConn
	for range 20 { // one port for both
		var err error
		if l, err = net.Listen("tcp", "127.0.0.1:0"); err != nil {
			t.Fatal(err)
		}
		if pc, err = net.ListenPacket("udp", l.Addr().String()); err == nil {
			break
		}
		l.Close()
	}
	if pc == nil {
		t.Fatal("no port is free for UDP and TCP")
	}
	r.addr = l.Addr().String()
	for _, s := range []*dns.Server{{PacketConn: pc, Handler: r}, {Listener: l, Handler: r}} {
		up := make(chan struct{})
		s.NotifyStartedFunc = func() { close(up) }
		go s.ActivateAndServe()
		<-up
		t.Cleanup(func() { s.Shutdown() })
	}
	return r
}

func (r *resolver) ServeDNS(w dns.ResponseWriter, req *dns.Msg) {
	r.mu.Lock()
	r.asked++
	r.mu.Unlock()
	tcp := w.RemoteAddr().Network() == "tcp"
	q := req.Copy()
	q.RecursionDesired = false
	c := dns.Client{Net: "tcp", Timeout: 2 * time.Second}
	resp, _, err := c.Exchange(q, r.upstream())
	if err != nil {
		resp = new(dns.Msg)
		resp.SetRcode(req, dns.RcodeServerFailure)
	}
	resp.Id, resp.RecursionAvailable, resp.RecursionDesired, resp.Authoritative = req.Id, true, req.RecursionDesired, false
	if !req.RecursionDesired {
		resp.SetRcode(req, dns.RcodeRefused)
	}
	if r.twist != nil {
		if resp = r.twist(req, resp, tcp); resp == nil {
			return
		}
	}
	if o := req.IsEdns0(); !tcp {
		size := dns.MinMsgSize
		if o != nil {
			size = int(o.UDPSize())
		}
		resp.Truncate(size)
	}
	w.WriteMsg(resp)
}

// checker makes a Checker that lives in the little Internet.
func (w *world) checker(t testing.TB, site Site, resolvers ...string) *Checker {
	t.Helper()
	c, err := NewChecker(Config{Site: site, Resolvers: resolvers, Dial: w.dial, Roots: w.ca.Pool(), Wait: 500 * time.Millisecond})
	if err != nil {
		t.Fatal(err)
	}
	return c
}
