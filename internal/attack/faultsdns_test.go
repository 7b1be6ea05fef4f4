package attack

import (
	"bytes"
	"crypto"
	"crypto/rand"
	"crypto/rsa"
	"crypto/x509"
	"encoding/base64"
	"fmt"
	"math/big"
	"net"
	"slices"
	"strconv"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"crossfade/internal/mailtest"

	"github.com/emersion/go-msgauth/dkim"
	"github.com/miekg/dns"
)

// dnsFault is what the DNS of a sender's domain does instead of answering: twist
// gets the right answer, and gives another one or none. The verdicts are those that
// Authentication-Results has then; the message is taken whatever they are.
type dnsFault struct {
	name             string
	twist            func(q, right *dns.Msg, tcp bool) *dns.Msg
	spf, dkim, dmarc string
}

func rcode(code int) func(q, right *dns.Msg, tcp bool) *dns.Msg {
	return func(q, _ *dns.Msg, _ bool) *dns.Msg { return new(dns.Msg).SetRcode(q, code) }
}

// instead answers TXT questions with records of the name that was asked.
func instead(records ...string) func(q, right *dns.Msg, tcp bool) *dns.Msg {
	return func(q, right *dns.Msg, _ bool) *dns.Msg {
		right.Answer = nil
		for _, r := range records {
			right.Answer = append(right.Answer, rrOf(q.Question[0].Name+" 60 IN "+r))
		}
		return right
	}
}

// besides puts n TXT records of a name, @ for the one that was asked, before the right one.
func besides(n int, name string) func(q, right *dns.Msg, tcp bool) *dns.Msg {
	return func(q, right *dns.Msg, _ bool) *dns.Msg {
		more := make([]dns.RR, 0, n+1)
		owner := dns.RR_Header{Name: strings.Replace(name, "@", q.Question[0].Name, 1), Rrtype: dns.TypeTXT, Class: dns.ClassINET, Ttl: 60}
		for i := range n {
			more = append(more, &dns.TXT{Hdr: owner, Txt: []string{"x" + strconv.Itoa(i)}})
		}
		right.Answer = append(more, right.Answer...)
		return right
	}
}

func rrOf(text string) dns.RR {
	r, err := dns.NewRR(text)
	if err != nil {
		panic(fmt.Sprintf("%.200q: %v", text, err))
	}
	return r
}

// dnsFaults are answers that do not come, lie, or are too large.
var dnsFaults = []dnsFault{
	{"no answer", func(_, _ *dns.Msg, _ bool) *dns.Msg { return nil }, "temperror", "temperror", "temperror"},
	{"cut short, and no answer over TCP", func(_, right *dns.Msg, tcp bool) *dns.Msg {
		right.Truncated = true
		if tcp {
			return nil
		}
		return right
	}, "temperror", "temperror", "temperror"},
	{"cut short over TCP too", func(_, right *dns.Msg, _ bool) *dns.Msg { right.Truncated = true; return right }, "temperror", "temperror", "temperror"},
	{"SERVFAIL", rcode(dns.RcodeServerFailure), "temperror", "temperror", "temperror"},
	{"REFUSED", rcode(dns.RcodeRefused), "temperror", "temperror", "temperror"},
	{"FORMERR, with EDNS and without", rcode(dns.RcodeFormatError), "temperror", "temperror", "temperror"},
	{"NOTIMP", rcode(dns.RcodeNotImplemented), "temperror", "temperror", "temperror"},
	{"another id", func(_, right *dns.Msg, _ bool) *dns.Msg { right.Id++; return right }, "temperror", "temperror", "temperror"},
	{"the answer to another name", func(_, right *dns.Msg, _ bool) *dns.Msg { right.Question[0].Name = "other.test."; return right }, "temperror", "temperror", "temperror"},
	{"the answer to another type", func(_, right *dns.Msg, _ bool) *dns.Msg { right.Question[0].Qtype = dns.TypeMX; return right }, "temperror", "temperror", "temperror"},
	{"the answer to another class", func(_, right *dns.Msg, _ bool) *dns.Msg { right.Question[0].Qclass = dns.ClassCHAOS; return right }, "temperror", "temperror", "temperror"},
	{"a question instead of an answer", func(_, right *dns.Msg, _ bool) *dns.Msg { right.Response = false; return right }, "temperror", "temperror", "temperror"},
	{"two questions", func(_, right *dns.Msg, _ bool) *dns.Msg {
		right.Question = append(right.Question, right.Question[0])
		return right
	}, "temperror", "temperror", "temperror"},
	{"no such name", rcode(dns.RcodeNameError), "none", "permerror", "none"},
	{"nothing of that type", instead(), "none", "permerror", "none"},
	{"records of another name", func(_, right *dns.Msg, _ bool) *dns.Msg {
		right.Answer[0].Header().Name = "other.test."
		return right
	}, "none", "permerror", "none"},
	{"records of another type", instead("A 127.0.0.1"), "none", "permerror", "none"},
	{"records of another class", func(_, right *dns.Msg, _ bool) *dns.Msg {
		right.Answer[0].Header().Class = dns.ClassCHAOS
		return right
	}, "none", "permerror", "none"},
	{"a CNAME to itself", func(q, right *dns.Msg, _ bool) *dns.Msg {
		right.Answer = []dns.RR{rrOf(q.Question[0].Name + " 60 IN CNAME " + q.Question[0].Name)}
		return right
	}, "permerror", "permerror", "permerror"},
	{"CNAMEs in a circle", func(q, right *dns.Msg, _ bool) *dns.Msg {
		right.Answer = []dns.RR{rrOf(q.Question[0].Name + " 60 IN CNAME loop.test."), rrOf("loop.test. 60 IN CNAME " + q.Question[0].Name)}
		return right
	}, "permerror", "permerror", "permerror"},
	{"100 CNAMEs in a row", func(q, right *dns.Msg, _ bool) *dns.Msg {
		right.Answer = []dns.RR{rrOf(q.Question[0].Name + " 60 IN CNAME c0.test.")}
		for i := range 100 {
			right.Answer = append(right.Answer, rrOf(fmt.Sprintf("c%d.test. 60 IN CNAME c%d.test.", i, i+1)))
		}
		return right
	}, "permerror", "permerror", "permerror"},
	{"1,000 records", besides(1000, "@"), "permerror", "permerror", "permerror"},
	{"1,000 records of another name", besides(1000, "x.test."), "pass", "pass", "pass"},
	{"a record of 50 KB", instead("TXT " + strings.Repeat(`"`+strings.Repeat("x", 250)+`" `, 200)), "none", "policy", "none"},
	{"a policy of SPF of 50 KB", instead(`TXT "v=spf1 " ` + strings.Repeat(`"`+strings.Repeat("a:b.c ", 40)+`" `, 200)), "permerror", "policy", "none"},
	{"each record twice", func(_, right *dns.Msg, _ bool) *dns.Msg {
		again := dns.Copy(right.Answer[0]).(*dns.TXT)
		again.Txt = append(again.Txt, " ")
		right.Answer = append(right.Answer, again)
		return right
	}, "permerror", "permerror", "permerror"},
	{"a TTL of 68 years", func(_, right *dns.Msg, _ bool) *dns.Msg {
		right.Answer[0].Header().Ttl = 1<<31 - 1
		return right
	}, "pass", "pass", "pass"},
	{"SPF that includes itself", func(q, right *dns.Msg, _ bool) *dns.Msg {
		if !strings.HasPrefix(q.Question[0].Name, "d") {
			return right
		}
		return instead(`TXT "v=spf1 include:`+strings.TrimSuffix(q.Question[0].Name, ".")+` -all"`)(q, right, false)
	}, "permerror", "pass", "pass"},
	{"SPF that includes ever more", func(q, right *dns.Msg, _ bool) *dns.Msg {
		n := q.Question[0].Name
		if strings.HasPrefix(n, "_dmarc") || strings.Contains(n, "_domainkey") {
			return right
		}
		return instead(`TXT "v=spf1 include:a.`+n+` include:b.`+n+` mx -all"`)(q, right, false)
	}, "permerror", "pass", "pass"},
}

// keyFaults are public keys that cost whoever computes with them.
var keyFaults = []dnsFault{
	{"RSA, 8,192 bits", largeKey(8192, 65537), "pass", "policy", "pass"},
	{"RSA, 16,384 bits", largeKey(16384, 65537), "pass", "policy", "pass"},
	{"RSA, 16,384 bits, and as many in the exponent", largeKey(16384, 0), "pass", "policy", "pass"},
	{"RSA, 65,536 bits", largeKey(65536, 65537), "pass", "policy", "pass"},
	{"RSA, 2,048 bits with an exponent of 31", largeKey(2048, 1<<31-1), "pass", "fail", "pass"},
	{"no key, 25,000 bits of it", keyText(strings.Repeat("A", 4200)), "pass", "policy", "pass"},
}

// keyText gives a key of that text, in base64.
func keyText(p string) func(q, right *dns.Msg, tcp bool) *dns.Msg {
	return func(q, right *dns.Msg, _ bool) *dns.Msg {
		if strings.Contains(q.Question[0].Name, "_domainkey") {
			right.Answer = []dns.RR{&dns.TXT{Hdr: dns.RR_Header{Name: q.Question[0].Name, Rrtype: dns.TypeTXT, Class: dns.ClassINET, Ttl: 60}, Txt: pieced("v=DKIM1; p=" + p)}}
		}
		return right
	}
}

// largeKey gives a key with a modulus of so many bits, which nobody can use; with
// the exponent 0 that is as large.
func largeKey(bits, exponent int) func(q, right *dns.Msg, tcp bool) *dns.Msg {
	n := make([]byte, bits/8)
	_, _ = rand.Read(n) // it never fails
	n[0] |= 0x80
	n[len(n)-1] |= 1
	der := x509.MarshalPKCS1PublicKey(&rsa.PublicKey{N: new(big.Int).SetBytes(n), E: max(exponent, 3)})
	if exponent == 0 {
		// The exponent is the last integer: it becomes one like the modulus.
		integer := der[4 : len(der)-3]
		der = append([]byte{0x30, 0x82, byte(2 * len(integer) >> 8), byte(2 * len(integer))}, append(bytes.Clone(integer), integer...)...)
	}
	return keyText(base64.StdEncoding.EncodeToString(der))
}

// pieced cuts a text into the strings of a TXT record.
func pieced(s string) (out []string) {
	for len(s) > 0 {
		n := min(len(s), 255)
		out, s = append(out, s[:n]), s[n:]
	}
	return out
}

// domains is a name server for the domains d0.test, d1.test and so on, of which each
// has one fault, and the key that signs for all of them.
type domains struct {
	*mailtest.DNS
	key *rsa.PrivateKey
	txt string
}

// someKey is made once: it takes its time.
var someKey = sync.OnceValues(func() (*rsa.PrivateKey, error) { return rsa.GenerateKey(rand.Reader, 2048) })

func startDomains(t *testing.T, twist func(domain int, q, right *dns.Msg, tcp bool) *dns.Msg) *domains {
	t.Helper()
	key, err := someKey()
	if err != nil {
		t.Fatal(err)
	}
	pub, err := x509.MarshalPKIXPublicKey(&key.PublicKey)
	if err != nil {
		t.Fatal(err)
	}
	s := &domains{key: key, txt: "v=DKIM1; k=rsa; p=" + base64.StdEncoding.EncodeToString(pub)}
	if s.DNS, err = mailtest.NewDNS(func(q *dns.Msg, tcp bool) *dns.Msg {
		right, domain := s.right(q)
		return twist(domain, q, right, tcp)
	}); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(s.Close)
	return s
}

// right is the right answer; domain is -1 for what belongs to none of the domains.
func (s *domains) right(q *dns.Msg) (m *dns.Msg, domain int) {
	m, domain = new(dns.Msg).SetReply(q), -1
	labels := dns.SplitDomainName(q.Question[0].Name)
	if len(labels) < 2 || labels[len(labels)-1] != "test" {
		return m, domain
	}
	if _, err := fmt.Sscanf(labels[len(labels)-2], "d%d", &domain); err != nil {
		return m.SetRcode(q, dns.RcodeNameError), -1
	}
	text := "v=spf1 ip4:" + stranger + " -all"
	switch labels[0] {
	case "_dmarc":
		text = "v=DMARC1; p=reject"
	case "s":
		text = s.txt
	}
	if q.Question[0].Qtype == dns.TypeTXT {
		m.Answer = []dns.RR{&dns.TXT{Hdr: dns.RR_Header{Name: q.Question[0].Name, Rrtype: dns.TypeTXT, Class: dns.ClassINET, Ttl: 60}, Txt: pieced(text)}}
	}
	return m, domain
}

func (s *domains) sign(domain, msg string) (string, error) {
	var b bytes.Buffer
	err := dkim.Sign(&b, strings.NewReader(msg), &dkim.SignOptions{Domain: domain, Selector: "s", Signer: s.key, Hash: crypto.SHA256,
		HeaderCanonicalization: "relaxed", BodyCanonicalization: "relaxed", HeaderKeys: []string{"From", "Subject", "To", "Date"}})
	return b.String(), err
}

// TestFaultsDNS: whatever the DNS of a sender answers, his message is taken within the
// time allowed, arrives as it was sent, and has the verdict of the fault and no better
// one; a resolver that passes such answers on is not blamed for them.
func TestFaultsDNS(t *testing.T) {
	t.Parallel()
	const patient = 4 * time.Second
	all := append(append([]dnsFault{}, dnsFaults...), keyFaults...)
	all = append(all, dnsFault{"nothing", func(_, right *dns.Msg, _ bool) *dns.Msg { return right }, "pass", "pass", "pass"})
	ns := startDomains(t, func(domain int, q, right *dns.Msg, tcp bool) *dns.Msg {
		if domain < 0 {
			return right
		}
		return all[domain].twist(q, right, tcp)
	})
	sink, err := mailtest.NewSink(mailtest.SinkConfig{})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = sink.Close() })
	f := startFront(t, sink.URL(""), fmt.Sprintf(", resolvers: [%q], authentication: {enforce: reject, timeout: %s}", ns.Addr, patient), "")
	sent, took := make([]string, len(all)), make([]time.Duration, len(all))
	var list []int
	for i := range all {
		list = append(list, i)
	}
	for _, err := range each(list, len(list), func(i int) error {
		domain := fmt.Sprintf("d%d.test", i)
		signed, err := ns.sign(domain, letterOf(domain, fmt.Sprintf("fault-%02d", i)))
		if err != nil {
			return err
		}
		sent[i] = signed
		began := time.Now()
		reply, err := give(f.smtp, "ann@"+domain, sent[i], nil)
		took[i] = time.Since(began)
		if err != nil || !strings.HasPrefix(reply, "250") || took[i] > 5*patient {
			return fmt.Errorf("%s: %s, %v, after %v", all[i].name, reply, err, took[i])
		}
		return nil
	}) {
		t.Error(err)
	}
	got, err := sink.Wait(t.Context(), len(all))
	if err != nil {
		t.Fatal(err)
	}
	for _, m := range got {
		i := -1
		if _, err := fmt.Sscanf(subject(append([]byte("\r\n"), m.Body...)), "fault-%02d", &i); err != nil || i >= len(all) {
			t.Fatalf("nobody sent %q", m.Body)
		}
		top, err := asSent(m.Body, sent[i])
		if err != nil {
			t.Errorf("%s: %v:\n%q", all[i].name, err, m.Body)
		}
		for _, want := range []string{"spf=" + all[i].spf, "dkim=" + all[i].dkim, "dmarc=" + all[i].dmarc} {
			if took[i] >= patient && strings.Contains(top, "temperror") {
				continue // on a machine that has other things to do an answer of 50 KB is one that does not come
			}
			if !strings.Contains(top, want+" ") && !strings.Contains(top, want+";") && !strings.Contains(top, want+"\r\n") {
				t.Errorf("%s: no %s in\n%s", all[i].name, want, top)
			}
		}
	}
	for _, line := range []string{
		`crossfade_resolver_lookups_total{result="temporary",type="TXT"}`, `crossfade_resolver_lookups_total{result="permanent",type="TXT"}`,
		`crossfade_authentication_results_total{method="dkim",result="policy"}`, `crossfade_authentication_results_total{method="spf",result="temperror"}`,
	} {
		if !f.counts(line) {
			t.Errorf("the metrics do not count %s", line)
		}
	}
	if status, w := f.readyz(); status != 200 || w != "" || f.counts("crossfade_resolvers_down") {
		t.Errorf("the resolver is blamed for strangers: %d, %q", status, w)
	}
	figure(t, "%d faults of the DNS of senders, %d keys: all taken, at most %d ms each", len(dnsFaults), len(keyFaults), slices.Max(took).Milliseconds())
}

// resolverFault is what becomes of the resolver that all is asked of.
type resolverFault struct {
	name  string
	twist func(right *dns.Msg) *dns.Msg // nil: it is no name server at all
	says  string                        // in /readyz
}

var resolverFaults = []resolverFault{
	{"nobody is there", nil, "refused"},
	{"it answers with octets that are no message", nil, ""},
	{"it is silent", func(*dns.Msg) *dns.Msg { return nil }, "no answer"},
	{"it answers with other ids", func(m *dns.Msg) *dns.Msg { m.Id++; return m }, "another question"},
	{"it answers other questions", func(m *dns.Msg) *dns.Msg { m.Question[0].Name = "lie.test."; return m }, "another question"},
}

// TestFaultsResolver: with a resolver that is of no use mail is taken, soon without
// waiting; /readyz and the metrics say which one, and no more when it is mended.
func TestFaultsResolver(t *testing.T) {
	t.Parallel()
	atOnce(t, resolverFaults, func(f resolverFault) string { return f.name }, func(t *testing.T, f resolverFault) { f.try(t) })
	figure(t, "%d faults of the resolver itself", len(resolverFaults))
}

func (fault resolverFault) try(t *testing.T) {
	t.Helper()
	var mended atomic.Bool
	ns := startDomains(t, func(_ int, _, right *dns.Msg, _ bool) *dns.Msg {
		if mended.Load() || fault.twist == nil {
			return right
		}
		return fault.twist(right)
	})
	addr := ns.Addr
	switch {
	case fault.twist == nil && fault.says == "":
		addr = startNoise(t)
	case fault.twist == nil:
		addr = closedPort
	}
	sink, err := mailtest.NewSink(mailtest.SinkConfig{})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = sink.Close() })
	f := startFront(t, sink.URL(""), fmt.Sprintf(", resolvers: [%q], authentication: {enforce: reject, timeout: 500ms}", addr), "")
	if status, w := f.readyz(); status != 200 || w != "" {
		t.Errorf("before: %d, %q", status, w)
	}
	n := 0
	send := func() {
		n++
		reply, err := give(f.smtp, fmt.Sprintf("ann@d%d.test", n), letterOf(fmt.Sprintf("d%d.test", n), fmt.Sprintf("fault-%d", n)), nil)
		if err != nil || !strings.HasPrefix(reply, "250") {
			t.Fatalf("%s, %v", reply, err)
		}
	}
	until(t, 20*time.Second, "the warning", func() error {
		send()
		status, w := f.readyz()
		if status != 200 || !strings.Contains(w, "the DNS resolver "+addr+" has been of no use since") || !strings.Contains(w, fault.says) {
			return fmt.Errorf("%d, %q after %d messages", status, w, n)
		}
		return nil
	})
	if !f.counts("crossfade_resolvers_down 1") {
		t.Error("the metrics do not say it")
	}
	began := time.Now()
	send()
	if took := time.Since(began); took > 5*time.Second {
		t.Errorf("with a resolver that is known to be of no use a message waits %v", took)
	}
	if fault.twist != nil {
		mended.Store(true)
		until(t, 30*time.Second, "the warning to go", func() error {
			send()
			if _, w := f.readyz(); w != "" || f.counts("crossfade_resolvers_down") {
				return fmt.Errorf("%q", w)
			}
			return nil
		})
	}
	if got, err := sink.Wait(t.Context(), n); err != nil || len(got) != n {
		t.Errorf("%d were taken, %d arrived: %v", n, len(got), err)
	}
}

// startNoise answers every packet with octets that are no DNS message; over TCP
// nobody is there.
func startNoise(t *testing.T) (addr string) {
	t.Helper()
	pc, err := net.ListenPacket("udp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	var wg sync.WaitGroup
	wg.Go(func() {
		for buf := make([]byte, 4096); ; {
			_, from, err := pc.ReadFrom(buf)
			if err != nil {
				return
			}
			_, _ = pc.WriteTo([]byte("\x00\x00\x80\x00\x00\x01\xff\xff\x00\x00\x00\x00\xc0\x0c"), from)
		}
	})
	t.Cleanup(func() {
		_ = pc.Close()
		wg.Wait()
	})
	return pc.LocalAddr().String()
}
