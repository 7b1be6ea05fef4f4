// Package tlsreport tells the owners of domains how TLS with their servers fared (RFC 8460): it finds out where a domain
// wants its reports, writes them, and hands them over by HTTPS or as mail.
package tlsreport

import (
	"bytes"
	"compress/gzip"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/netip"
	"net/url"
	"strings"
	"syscall"
	"time"

	"crossfade/mail"
	"crossfade/relay/tlspolicy"
)

// Bounds of what a domain may ask for.
const (
	maxTargets = 5
	dialTime   = 20 * time.Second
	postTime   = time.Minute
	maxAnswer  = 64 << 10 // octets of a web server's answer that are read
)

// ErrUnsigned is a report that would have to go by mail while there is no key to sign it with (RFC 8460, 3).
var ErrUnsigned = errors.New("a report by mail needs a DKIM signature, and there is no key: set smtp.arc, whose key signs reports too")

// Config is what a [Sender] works with. Contact, LookupTXT and Submit are needed.
type Config struct {
	Contact mail.Address // who answers for the reports; they are from this address
	// LookupTXT gives the TXT records of a name, each in one string, and none for a name without any.
	LookupTXT func(ctx context.Context, name string) ([]string, error)
	// Submit queues a message.
	Submit func(ctx context.Context, env *mail.Envelope, message []byte) error
	// Sign puts a DKIM-Signature on top of a message; nil: there is no key.
	Sign   func(message []byte) ([]byte, error)
	Client *http.Client     // nil: one that goes to public addresses alone, follows no redirection and trusts the system's roots
	Now    func() time.Time // nil: time.Now
}

// Sender sends reports. Many goroutines may use it.
type Sender struct{ cfg Config }

// New makes a Sender.
func New(cfg Config) (*Sender, error) {
	if cfg.Contact.IsNull() || cfg.LookupTXT == nil || cfg.Submit == nil {
		return nil, errors.New("tlsreport: a sender needs a contact, a resolver and a queue")
	}
	if cfg.Client == nil {
		cfg.Client = newClient(public)
	}
	if cfg.Now == nil {
		cfg.Now = time.Now
	}
	return &Sender{cfg}, nil
}

// newClient makes a client for addresses that are allowed. It knows no proxy, which would go where we do not.
func newClient(allowed func(netip.Addr) bool) *http.Client {
	dialer := net.Dialer{Timeout: dialTime, Control: func(_, address string, _ syscall.RawConn) error {
		if at, err := netip.ParseAddrPort(address); err != nil || !allowed(at.Addr().Unmap()) {
			return fmt.Errorf("%s is no public address: reports go to web servers that everybody reaches", address)
		}
		return nil
	}}
	return &http.Client{
		Transport:     &http.Transport{DialContext: dialer.DialContext, DisableKeepAlives: true, MaxResponseHeaderBytes: maxAnswer},
		CheckRedirect: func(*http.Request, []*http.Request) error { return http.ErrUseLastResponse },
	}
}

// public tells whether an address is one that everybody may reach. Where a report goes is what a stranger writes into his DNS:
// without this he could have us post to what only we reach.
func public(a netip.Addr) bool {
	return a.IsGlobalUnicast() && !a.IsPrivate() && !carrier.Contains(a)
}

// carrier is the network that providers share among their customers (RFC 6598).
var carrier = netip.MustParsePrefix("100.64.0.0/10")

// Targets is where a domain wants its reports: URIs of the schemes mailto and https, five at most; none: it wants none.
// An error is temporary.
func (s *Sender) Targets(ctx context.Context, domain string) ([]string, error) {
	records, err := s.cfg.LookupTXT(ctx, "_smtp._tls."+domain)
	if err != nil {
		return nil, fmt.Errorf("look up where %s wants reports about TLS (TXT of _smtp._tls.%s): %w", domain, domain, err)
	}
	return targets(records), nil
}

// targets reads the records of RFC 8460, 3. Where not exactly one is for this version there is none.
func targets(records []string) (out []string) {
	var ours []string
	for _, r := range records {
		if version, _, _ := strings.Cut(r, ";"); strings.TrimSpace(version) == "v=TLSRPTv1" {
			ours = append(ours, r)
		}
	}
	if len(ours) != 1 {
		return nil
	}
	for field := range strings.SplitSeq(ours[0], ";") {
		name, value, _ := strings.Cut(field, "=")
		if strings.TrimSpace(name) != "rua" {
			continue
		}
		for uri := range strings.SplitSeq(value, ",") {
			if uri = strings.TrimSpace(uri); known(uri) && len(out) < maxTargets {
				out = append(out, uri)
			}
		}
		return out
	}
	return nil
}

func known(uri string) bool {
	if _, err := mailbox(uri); err == nil {
		return true
	}
	u, err := url.Parse(uri)
	return err == nil && strings.EqualFold(u.Scheme, "https") && u.Host != "" && u.User == nil
}

// mailbox is the address of a mailto URI.
func mailbox(uri string) (mail.Address, error) {
	u, err := url.Parse(uri)
	if err != nil || !strings.EqualFold(u.Scheme, "mailto") {
		return mail.Address{}, errors.New("no mailto URI")
	}
	text, err := url.PathUnescape(u.Opaque)
	if err != nil {
		return mail.Address{}, err
	}
	a, err := mail.ParseAddress(text)
	if err == nil && (a.IsNull() || a.Domain == "" || !a.IsASCII()) {
		err = errors.New("no address in ASCII")
	}
	return a, err
}

// Send hands a report over to one of a domain's targets. By mail that means that it is in the queue.
func (s *Sender) Send(ctx context.Context, domain, target string, r tlspolicy.Report) error {
	r.Contact = s.cfg.Contact.String()
	packed, err := pack(r)
	if err != nil {
		return err
	}
	if to, err := mailbox(target); err == nil {
		return s.mail(ctx, domain, to, r, packed)
	}
	return s.post(ctx, target, packed)
}

// pack is a report as it is sent (RFC 8460, 4.1).
func pack(r tlspolicy.Report) ([]byte, error) {
	text, err := json.Marshal(r)
	if err != nil {
		return nil, fmt.Errorf("write the report %s: %w", r.ID, err)
	}
	var b bytes.Buffer
	z := gzip.NewWriter(&b)
	_, _ = z.Write(text) // into memory
	if err := z.Close(); err != nil {
		return nil, fmt.Errorf("pack the report %s: %w", r.ID, err)
	}
	return b.Bytes(), nil
}

// post hands it over by HTTPS (RFC 8460, 5.4).
func (s *Sender) post(ctx context.Context, target string, packed []byte) error {
	ctx, cancel := context.WithTimeout(ctx, postTime)
	defer cancel()
	req, err := http.NewRequestWithContext(ctx, http.MethodPost, target, bytes.NewReader(packed))
	if err != nil {
		return fmt.Errorf("post the report: %w", err)
	}
	req.Header.Set("Content-Type", "application/tlsrpt+gzip")
	resp, err := s.cfg.Client.Do(req)
	if err != nil {
		return fmt.Errorf("post the report: %w", err)
	}
	defer resp.Body.Close()
	_, _ = io.Copy(io.Discard, io.LimitReader(resp.Body, maxAnswer))
	if resp.StatusCode/100 != 2 {
		return fmt.Errorf("post the report to %s: the server answers %s", target, resp.Status)
	}
	return nil
}

// mail queues it as a message (RFC 8460, 5.3), which says itself that no policy about TLS is to be in its way (RFC 8689, 3):
// it may be what tells of one that no server meets.
func (s *Sender) mail(ctx context.Context, domain string, to mail.Address, r tlspolicy.Report, packed []byte) error {
	if s.cfg.Sign == nil {
		return ErrUnsigned
	}
	id := mail.NewID()
	l := letter{id: id, from: s.cfg.Contact, to: to, date: s.cfg.Now(), domain: domain, report: r, packed: packed}
	message, err := s.cfg.Sign(l.write())
	if err != nil {
		return fmt.Errorf("sign the report %s: %w", r.ID, err)
	}
	env := &mail.Envelope{
		ID: id, From: s.cfg.Contact, Recipients: []mail.Recipient{{Addr: to}}, Received: s.cfg.Now(), Size: int64(len(message)),
		MessageID: messageID(id, s.cfg.Contact), TLSOptional: true,
	}
	if err := s.cfg.Submit(ctx, env, message); err != nil {
		return fmt.Errorf("queue the report %s to <%s>: %w", r.ID, to, err)
	}
	return nil
}
