package tlsreport

import (
	"bytes"
	"compress/gzip"
	"context"
	"crypto/x509"
	"encoding/base64"
	"encoding/json"
	"errors"
	"io"
	"mime"
	"mime/multipart"
	"net/http"
	"net/http/httptest"
	netmail "net/mail"
	"net/netip"
	"slices"
	"strings"
	"testing"
	"time"

	"crossfade/mail"
	"crossfade/relay/tlspolicy"
)

func TestTargets(t *testing.T) {
	for _, tt := range []struct {
		records []string
		want    []string
	}{
		{nil, nil},
		{[]string{"v=TLSRPTv1; rua=mailto:tls@example.com"}, []string{"mailto:tls@example.com"}},
		{[]string{"v=spf1 -all", "v=TLSRPTv1;rua=https://r.example.com/v1/tls"}, []string{"https://r.example.com/v1/tls"}},
		{[]string{"v=TLSRPTv1; x=y; rua = mailto:a@b.example , https://c.example/ ;"}, []string{"mailto:a@b.example", "https://c.example/"}},
		{[]string{"v=TLSRPTv1; rua=MAILTO:a%2Bb@c.example"}, []string{"MAILTO:a%2Bb@c.example"}},
		{[]string{"v=TLSRPTv1; rua=ftp://a.example,http://b.example/,https://,https://u:p@c.example/,mailto:,mailto:x,mailto:<>,nothing"}, nil},
		{[]string{"v=TLSRPTv1; rua=" + strings.Repeat("mailto:a@b.example,", 50)}, slices.Repeat([]string{"mailto:a@b.example"}, maxTargets)},
		{[]string{"v=TLSRPTv1; rua=mailto:a@b.example; rua=mailto:c@d.example"}, []string{"mailto:a@b.example"}},
		{[]string{"v=TLSRPTv1"}, nil},
		{[]string{"v=TLSRPTv2; rua=mailto:a@b.example"}, nil},
		{[]string{"v=TLSRPTv11; rua=mailto:a@b.example"}, nil},
		{[]string{"rua=mailto:a@b.example; v=TLSRPTv1"}, nil},
		{[]string{"v=TLSRPTv1; rua=mailto:a@b.example", "v=TLSRPTv1; rua=mailto:c@d.example"}, nil},
	} {
		if got := targets(tt.records); !slices.Equal(got, tt.want) {
			t.Errorf("%q: %q, want %q", tt.records, got, tt.want)
		}
	}
}

var testDay = time.Date(2026, 11, 20, 0, 0, 0, 0, time.UTC)

func testReport() tlspolicy.Report {
	var c tlspolicy.Counts
	ours := tlspolicy.Session{Server: "backends.old.smtp", Host: "mx1.example.com", Owner: "example.com", Policy: "sts"}
	for _, result := range []string{tlspolicy.Success, tlspolicy.Expired} {
		ours.Result = result
		c.Add(testDay.Add(time.Hour), ours)
	}
	c.Add(testDay.Add(2*time.Hour), tlspolicy.Session{Server: "backends.new.smtp", Result: tlspolicy.Success})
	return c.Reports("mx.example.org")[0].For("example.com", "2026-11-20_a@mx.example.org", []string{"version: STSv1", "mode: testing", "mx: *.example.com", "mx: mx.example.net", "max_age: 86400"})
}

// read unpacks a report.
func read(t *testing.T, packed []byte) (out map[string]any) {
	t.Helper()
	z, err := gzip.NewReader(bytes.NewReader(packed))
	if err != nil {
		t.Fatal(err)
	}
	if err := json.NewDecoder(z).Decode(&out); err != nil {
		t.Fatal(err)
	}
	return out
}

// wantReport is the report as RFC 8460, 4.4 writes it.
const wantReport = `{"organization-name":"mx.example.org","date-range":{"start-datetime":"2026-11-20T00:00:00Z","end-datetime":"2026-11-20T23:59:59Z"},
"contact-info":"postmaster@example.org","report-id":"2026-11-20_a@mx.example.org","policies":[{"policy":{"policy-type":"sts","policy-string":["version: STSv1","mode: testing","mx: *.example.com","mx: mx.example.net","max_age: 86400"],"policy-domain":"example.com","mx-host":["*.example.com","mx.example.net"]},
"summary":{"total-successful-session-count":1,"total-failure-session-count":1},"failure-details":[{"result-type":"certificate-expired","receiving-mx-hostname":"mx1.example.com","failed-session-count":1}]}]}`

func sameReport(t *testing.T, packed []byte) {
	t.Helper()
	var want map[string]any
	if err := json.Unmarshal([]byte(wantReport), &want); err != nil {
		t.Fatal(err)
	}
	a, _ := json.Marshal(want)
	b, _ := json.Marshal(read(t, packed))
	if !bytes.Equal(a, b) {
		t.Errorf("the report is\n%s\nwant\n%s", b, a)
	}
}

type queued struct {
	env     *mail.Envelope
	message []byte
}

func newSender(t *testing.T, change func(*Config)) (*Sender, *[]queued) {
	t.Helper()
	var out []queued
	cfg := Config{
		Contact:   mail.Address{Local: "postmaster", Domain: "example.org"},
		LookupTXT: func(context.Context, string) ([]string, error) { return nil, nil },
		Submit: func(_ context.Context, env *mail.Envelope, message []byte) error {
			out = append(out, queued{env, message})
			return nil
		},
		Sign: func(m []byte) ([]byte, error) { return append([]byte("DKIM-Signature: v=1\r\n"), m...), nil },
		Now:  func() time.Time { return testDay.Add(30 * time.Hour) },
	}
	if change != nil {
		change(&cfg)
	}
	s, err := New(cfg)
	if err != nil {
		t.Fatal(err)
	}
	return s, &out
}

func TestMail(t *testing.T) {
	s, out := newSender(t, nil)
	if err := s.Send(t.Context(), "example.com", "mailto:tls%2Breports@example.com?subject=no", testReport()); err != nil {
		t.Fatal(err)
	}
	if len(*out) != 1 {
		t.Fatalf("%d messages", len(*out))
	}
	q := (*out)[0]
	if q.env.From.String() != "postmaster@example.org" || len(q.env.Recipients) != 1 || q.env.Recipients[0].Addr.String() != "tls+reports@example.com" ||
		!q.env.TLSOptional || q.env.RequireTLS || q.env.Size != int64(len(q.message)) {
		t.Errorf("the envelope is %+v", q.env)
	}
	for line := range strings.SplitSeq(strings.TrimSuffix(string(q.message), "\r\n"), "\r\n") {
		if len(line) > 100 || strings.ContainsAny(line, "\r\n") {
			t.Errorf("the line %q", line)
		}
	}
	msg, err := netmail.ReadMessage(bytes.NewReader(q.message))
	if err != nil {
		t.Fatal(err)
	}
	for name, want := range map[string]string{
		"From": "<postmaster@example.org>", "To": "<tls+reports@example.com>", "TLS-Report-Domain": "example.com", "TLS-Report-Submitter": "mx.example.org",
		"TLS-Required": "No", "Message-ID": q.env.MessageID, "DKIM-Signature": "v=1",
		"Subject": "Report Domain: example.com Submitter: mx.example.org Report-ID: <2026-11-20_a@mx.example.org>",
	} {
		if got := msg.Header.Get(name); got != want {
			t.Errorf("%s is %q, want %q", name, got, want)
		}
	}
	kind, params, err := mime.ParseMediaType(msg.Header.Get("Content-Type"))
	if err != nil || kind != "multipart/report" || params["report-type"] != "tlsrpt" {
		t.Fatalf("%s %v %v", kind, params, err)
	}
	parts := multipart.NewReader(msg.Body, params["boundary"])
	if p, err := parts.NextPart(); err != nil || !strings.HasPrefix(p.Header.Get("Content-Type"), "text/plain") {
		t.Fatal(p, err)
	}
	p, err := parts.NextPart()
	if err != nil || p.Header.Get("Content-Type") != "application/tlsrpt+gzip" {
		t.Fatal(p, err)
	}
	if want := "mx.example.org!example.com!1795132800!1795219199!" + string(q.env.ID) + ".json.gz"; p.FileName() != want {
		t.Errorf("the file is %s, want %s", p.FileName(), want)
	}
	packed, err := io.ReadAll(base64.NewDecoder(base64.StdEncoding, p))
	if err != nil {
		t.Fatal(err)
	}
	sameReport(t, packed)
	if _, err := parts.NextPart(); !errors.Is(err, io.EOF) {
		t.Error("there is more:", err)
	}
}

func TestPost(t *testing.T) {
	var got []byte
	var kind string
	status := http.StatusCreated
	srv := httptest.NewTLSServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		kind = r.Method + " " + r.URL.Path + " " + r.Header.Get("Content-Type")
		got, _ = io.ReadAll(r.Body)
		w.Header().Set("Location", "/elsewhere")
		w.WriteHeader(status)
	}))
	defer srv.Close()
	s, out := newSender(t, func(c *Config) {
		c.Sign = nil // a web server needs no signature
		c.Client = srv.Client()
		c.Client.CheckRedirect = func(*http.Request, []*http.Request) error { return http.ErrUseLastResponse }
	})
	if err := s.Send(t.Context(), "example.com", srv.URL+"/v1", testReport()); err != nil {
		t.Fatal(err)
	}
	if kind != "POST /v1 application/tlsrpt+gzip" || len(*out) != 0 {
		t.Errorf("%s; %d messages", kind, len(*out))
	}
	sameReport(t, got)
	for _, status = range []int{302, 404, 503} {
		if err := s.Send(t.Context(), "example.com", srv.URL+"/v1", testReport()); err == nil || !strings.HasPrefix(kind, "POST /v1 ") {
			t.Errorf("%d is taken for success, or followed: %s", status, kind)
		}
	}
	strict, _ := newSender(t, func(c *Config) { c.Client = newClient(func(netip.Addr) bool { return true }) })
	var unknown x509.UnknownAuthorityError
	if err := strict.Send(t.Context(), "example.com", srv.URL, testReport()); !errors.As(err, &unknown) {
		t.Error("any certificate is believed:", err)
	}
}

// TestPostOutside: who says where his reports go cannot have us speak to what only we reach, by no name and in no form.
func TestPostOutside(t *testing.T) {
	reached := false
	srv := httptest.NewTLSServer(http.HandlerFunc(func(http.ResponseWriter, *http.Request) { reached = true }))
	defer srv.Close()
	s, _ := newSender(t, nil)
	s.cfg.Client.Transport.(*http.Transport).TLSClientConfig = srv.Client().Transport.(*http.Transport).TLSClientConfig // believed
	for _, host := range []string{"127.0.0.1", "localhost", "[::ffff:127.0.0.1]"} {
		err := s.Send(t.Context(), "example.com", "https://"+host+srv.URL[strings.LastIndexByte(srv.URL, ':'):]+"/admin", testReport())
		if err == nil || !strings.Contains(err.Error(), "no public address") || reached {
			t.Errorf("%s: %v, reached %t", host, err, reached)
		}
	}
	for address, want := range map[string]bool{
		"8.8.8.8": true, "2001:4860:4860::8888": true, "127.0.0.1": false, "::1": false, "10.1.2.3": false, "192.168.1.1": false, "172.16.0.1": false,
		"169.254.169.254": false, "fe80::1": false, "fd00::1": false, "0.0.0.0": false, "::": false, "100.64.0.1": false, "224.0.0.1": false, "255.255.255.255": false,
	} {
		if public(netip.MustParseAddr(address)) != want {
			t.Errorf("%s is public: %t", address, !want)
		}
	}
}

func TestNotSent(t *testing.T) {
	s, out := newSender(t, func(c *Config) { c.Sign = nil })
	if err := s.Send(t.Context(), "example.com", "mailto:a@example.com", testReport()); !errors.Is(err, ErrUnsigned) || len(*out) > 0 {
		t.Errorf("without a key: %v, %d messages", err, len(*out))
	}
	s, _ = newSender(t, func(c *Config) {
		c.Submit = func(context.Context, *mail.Envelope, []byte) error { return errors.New("the queue is full") }
	})
	if err := s.Send(t.Context(), "example.com", "mailto:a@example.com", testReport()); err == nil || !strings.Contains(err.Error(), "the queue is full") {
		t.Error(err)
	}
	s, _ = newSender(t, func(c *Config) {
		c.LookupTXT = func(context.Context, string) ([]string, error) { return nil, errors.New("no answer") }
	})
	if _, err := s.Targets(t.Context(), "example.com"); err == nil || !strings.Contains(err.Error(), "_smtp._tls.example.com") {
		t.Error(err)
	}
	if _, err := New(Config{}); err == nil {
		t.Error("a sender without anything")
	}
}
