package smtpclient

import (
	"context"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"strconv"
	"strings"

	"crossfade/mail"

	"github.com/pires/go-proxyproto"
)

// OriginMode says how a server is told which client a message came from.
type OriginMode int

// The modes.
const (
	// OriginNone tells it by the Received header alone.
	OriginNone OriginMode = iota
	// OriginXForward names the client with XFORWARD, for the server's log, where
	// the server offers that.
	OriginXForward
	// OriginXClient has the server treat the session as the client's own, with
	// XCLIENT, where the server offers that.
	OriginXClient
	// OriginProxyV1 and OriginProxyV2 begin each connection with a PROXY header:
	// the server must expect it.
	OriginProxyV1
	OriginProxyV2
)

// Origin is the client that a message came from.
type Origin struct {
	Addr  netip.AddrPort // the zero value: the message is our own
	Helo  string
	ESMTP bool
	ID    string // the message's queue id, told by XFORWARD as IDENT
}

// ErrOrigin means that the server did not take the client that it was told of: it
// said no to the command XCLIENT that it offered, or to the client, whom it knows by
// XCLIENT or by a PROXY header.
var ErrOrigin = errors.New("the server did not take the client's origin (XCLIENT or PROXY header)")

// identity is who a session is, so that it is used for nobody else. It is empty
// for our own mail, and where sessions do not differ.
func (t Target) identity(o Origin) string {
	switch t.Origin {
	case OriginXClient:
		if o.Addr.IsValid() {
			return o.Addr.Addr().String() + " " + strconv.FormatBool(o.ESMTP) + " " + o.Helo
		}
	case OriginProxyV1, OriginProxyV2:
		if o.Addr.IsValid() {
			return o.Addr.String()
		}
	}
	return ""
}

// Is tells whether the session is one of o already: o's own, or one of a server that
// was told of nobody and does not offer to be.
func (c *Conn) Is(o Origin) bool {
	return c.t.identity(o) == c.identity || c.t.Origin == OriginXClient && c.identity == "" && c.caps.XClient == ""
}

// Fits tells whether [Conn.Become] can make the session one of o. Postfix takes
// XCLIENT only once.
func (c *Conn) Fits(o Origin) bool {
	return c.Is(o) || c.t.Origin == OriginXClient && c.t.identity(o) != "" && c.caps.XClient != ""
}

// ForClient tells whether the server takes the session for one of a client, and not
// for ours: what it says of the session may be about that client.
func (c *Conn) ForClient() bool { return c.identity != "" }

// aboutClient marks the words with which a server that was told of a client ended a
// session before it began: it may have said no to that client.
func (c *Conn) aboutClient(step Step, err error) error {
	var said *mail.Reply
	if !c.ForClient() || step != StepGreeting && step != StepHello || !errors.As(err, &said) {
		return err
	}
	return fmt.Errorf("%w: %w", ErrOrigin, err)
}

// Become has the server take what follows as sent by o, where the session is not
// that already and the server offers a way. After an error the connection is
// closed; one that wraps [ErrOrigin] is about o and not about the server.
func (c *Conn) Become(ctx context.Context, o Origin) error {
	want := c.t.identity(o)
	if want == c.identity || c.t.Origin != OriginXClient || c.caps.XClient == "" {
		return nil
	}
	stop := c.watch(ctx)
	defer stop()
	if err := c.xclient(ctx, o); err != nil {
		return c.fail(StepOrigin, SentNothing, err)
	}
	c.identity, c.dirty = want, false
	return nil
}

// xclient sends XCLIENT. The server answers as it would greet the client, and
// the session begins anew with EHLO.
func (c *Conn) xclient(ctx context.Context, o Origin) error {
	r, err := c.command(ctx, xclientLine(c.caps.XClient, o), c.t.Timeouts.Greeting)
	if err == nil && r.Code != 220 {
		err = fmt.Errorf("%w: %w", ErrOrigin, unwelcome(r))
	}
	if err != nil {
		return err
	}
	// The name in EHLO counts, and not the one in XCLIENT.
	as := c.t.Hello
	c.t.Hello = helloOf(o, as)
	err = c.hello(ctx)
	c.t.Hello = as
	if err != nil {
		return fmt.Errorf("%w: %w", ErrOrigin, err)
	}
	return nil
}

// helloOf is the name of o for EHLO, if it is one; otherwise it is ours.
func helloOf(o Origin, ours string) string {
	if o.Helo == "" || len(o.Helo) > 255 {
		return ours
	}
	for i := range len(o.Helo) {
		switch c := o.Helo[i]; {
		case c >= 'a' && c <= 'z', c >= 'A' && c <= 'Z', c >= '0' && c <= '9', strings.IndexByte(".-_:[]", c) >= 0:
		default:
			return ours
		}
	}
	return o.Helo
}

// maxOriginLine is the least that a server must take as one command (RFC 5321,
// 4.5.3.1.4), CRLF included.
const maxOriginLine = 512

// attrs writes attributes that the server knows, as far as they fit into the
// line.
type attrs struct {
	b     []byte
	known string
}

func (a *attrs) add(name, value string) {
	if !strings.Contains(a.known, " "+name+" ") || value == "" {
		return
	}
	more := appendXtext([]byte(" "+name+"="), value)
	if len(a.b)+len(more)+len("\r\n") <= maxOriginLine {
		a.b = append(a.b, more...)
	}
}

func (a *attrs) client(o Origin) {
	// We have not looked the name up, and the server must not take ours for it.
	a.add("NAME", "[UNAVAILABLE]")
	a.add("ADDR", originAddr(o.Addr.Addr()))
	a.add("PORT", strconv.Itoa(int(o.Addr.Port())))
	proto := "SMTP"
	if o.ESMTP {
		proto = "ESMTP"
	}
	a.add("PROTO", proto)
}

func xclientLine(known string, o Origin) string {
	a := attrs{b: []byte("XCLIENT"), known: known}
	a.client(o)
	a.add("HELO", originHelo(o.Helo))
	return string(a.b) + "\r\n"
}

// appendXForward adds the XFORWARD commands of one message and counts them.
func appendXForward(b []byte, known string, o *Origin) ([]byte, int) {
	if o == nil || !o.Addr.IsValid() || known == "" {
		return b, 0
	}
	n := 0
	a := attrs{b: []byte("XFORWARD"), known: known}
	flush := func() {
		if len(a.b) > len("XFORWARD") {
			b = append(append(b, a.b...), "\r\n"...)
			n++
		}
		a.b = append(a.b[:0], "XFORWARD"...)
	}
	a.client(*o)
	a.add("IDENT", o.ID)
	a.add("SOURCE", "REMOTE")
	flush()
	a.add("HELO", originHelo(o.Helo)) // may be long
	flush()
	return b, n
}

func originAddr(ip netip.Addr) string {
	ip = ip.Unmap().WithZone("")
	if ip.Is6() {
		return "IPV6:" + ip.String()
	}
	return ip.String()
}

// originHelo keeps what is no host name from being one.
func originHelo(helo string) string {
	if helo == "" || len(helo) > 255 {
		return "[UNAVAILABLE]"
	}
	return helo
}

// sendProxy begins the connection with a PROXY header that names o and the
// server's end, or with one that says that the connection is our own.
func (c *Conn) sendProxy(ctx context.Context, o Origin) error {
	from, version := o.Addr, byte(2)
	if c.t.Origin == OriginProxyV1 {
		version = 1
	}
	if own, ok := c.raw.LocalAddr().(*net.TCPAddr); ok && !from.IsValid() && version == 1 {
		from = own.AddrPort() // version 1 has no LOCAL, and Postfix takes no UNKNOWN
	}
	h := &proxyproto.Header{Version: version, Command: proxyproto.LOCAL, TransportProtocol: proxyproto.UNSPEC}
	if from.IsValid() {
		src, dst := sameFamily(from, c.raw.RemoteAddr())
		h = proxyproto.HeaderProxyFromAddrs(version, src, dst)
	}
	b, err := h.Format()
	if err != nil {
		return fmt.Errorf("make the PROXY header: %w", err)
	}
	return c.send(ctx, b, c.t.Timeouts.Block)
}

// sameFamily gives both ends in the address family that a PROXY header needs to
// have in common.
func sameFamily(client netip.AddrPort, server net.Addr) (src, dst net.Addr) {
	from := netip.AddrPortFrom(client.Addr().Unmap().WithZone(""), client.Port())
	to := netip.AddrPortFrom(netip.IPv4Unspecified(), 0)
	if tcp, ok := server.(*net.TCPAddr); ok {
		to = tcp.AddrPort()
		to = netip.AddrPortFrom(to.Addr().Unmap().WithZone(""), to.Port())
	}
	if from.Addr().Is4() != to.Addr().Is4() {
		from = netip.AddrPortFrom(netip.AddrFrom16(from.Addr().As16()), from.Port())
		to = netip.AddrPortFrom(netip.AddrFrom16(to.Addr().As16()), to.Port())
	}
	return net.TCPAddrFromAddrPort(from), net.TCPAddrFromAddrPort(to)
}

// forward reads the replies to n XFORWARD commands. What the server cannot use
// for its log is no reason not to deliver.
func (x *transaction) forward(n int) *Error {
	for range n {
		if _, err := x.read(StepOrigin, x.c.t.Timeouts.Rcpt); err != nil {
			return err
		}
	}
	return nil
}

// forwardLines are the commands of this message.
func (x *transaction) forwardLines(b []byte) ([]byte, int) {
	if x.c.t.Origin != OriginXForward {
		return b, 0
	}
	return appendXForward(b, x.c.caps.XForward, x.Origin)
}

// DialAs is [Dial] for a message of o. An error that wraps [ErrOrigin] is about o
// and not about the server.
func DialAs(ctx context.Context, target Target, o Origin) (*Conn, error) {
	c, err := dialFor(ctx, target, o)
	if err != nil {
		return nil, err
	}
	if err := c.Become(ctx, o); err != nil {
		return nil, err
	}
	return c, nil
}
