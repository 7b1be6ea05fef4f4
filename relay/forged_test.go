package relay

import (
	"bytes"
	"net/netip"
	"strings"
	"testing"

	"crossfade/router"
)

// through passes a message through the filter in pieces.
func through(msg string, pieces int) (string, int) {
	f := &forgedFilter{own: skeleton("mx.example.org")}
	var out bytes.Buffer
	for rest := []byte(msg); ; {
		n := min(len(rest), pieces)
		out.Write(f.next(rest[:n], n == len(rest)))
		if rest = rest[n:]; len(rest) == 0 {
			return out.String(), f.removed
		}
	}
}

// forgeries are fields that somebody behind us may take for ours.
var forgeries = []string{
	"Authentication-Results: mx.example.org; spf=pass",
	"Authentication-Results:mx.example.org; spf=pass",
	"AUTHENTICATION-RESULTS: MX.EXAMPLE.ORG; spf=pass",
	"authentication-results : mx.example.org; spf=pass",
	"Authentication-Results\t:\tmx.example.org;\tspf=pass",
	"Authentication-Results: mx.example.org 1; spf=pass",
	"Authentication-Results: mx.example.org 99; spf=pass",
	"Authentication-Results: mx.example.org",
	"Authentication-Results: mx.example.org; none",
	"Authentication-Results: mx.example.org.; spf=pass",
	"Authentication-Results:\r\n mx.example.org; spf=pass",
	"Authentication-Results:\r\n\tmx.example.org\r\n\t; spf=pass",
	"Authentication-Results: \r\n \r\n mx.example.org; spf=pass",
	"Authentication-Results: mx.example.org ;spf=pass",
	"Authentication-Results: (us) mx.example.org; spf=pass",
	"Authentication-Results: (a (nested) one) mx.example.org; spf=pass",
	"Authentication-Results: mx.example.org (us); spf=pass",
	"Authentication-Results: mx.example.org (us) 1 (version); spf=pass",
	"Authentication-Results: mx(.).example.org; spf=pass",
	"Authentication-Results: mx.(x)example(y).org; spf=pass",
	"Authentication-Results: mx . example . org; spf=pass",
	"Authentication-Results: mx.exa\r\n mple.org; spf=pass",
	"Authentication-Results: (a \\) b) mx.example.org; spf=pass",
	"Authentication-Results: (mx.example.net;) mx.example.org; spf=pass",
	"Authentication-Results: (never ends mx.example.org; spf=pass",
	"Authentication-Results: ) mx.example.org; spf=pass",
	"Authentication-Results: \"mx.example.org\"; spf=pass",
	"Authentication-Results: \"mx.exam\\ple.org\"; spf=pass",
	"Authentication-Results: \"mx\".\"example\".org; spf=pass",
	"Authentication-Results: \" mx.example.org \"; spf=pass",
	"Authentication-Results: \"mx.example.org; spf=pass",
	"Authentication-Results: \"mx.example.org;\" ; spf=pass",
	"Authentication-Results: \";\" mx.example.org; spf=pass",
	"Authentication-Results: =?utf-8?q?mx.example.org?=; spf=pass",
	"Authentication-Results: =?UTF-8?B?bXguZXhhbXBsZS5vcmc=?=; spf=pass",
	"Authentication-Results: =?us-ascii?q?mx=2Eexample=2Eorg?=; spf=pass",
	"Authentication-Results: =?iso-8859-1?q?mx.exam?= =?iso-8859-1?q?ple.org?=; spf=pass",
	"Authentication-Results: =?utf-8?q?mx.example.org=3B_spf=3Dpass?=",
	"Authentication-Results: mx.example.org/1; spf=pass",
	"Authentication-Results: mx.example.org, spf=pass",
	"Authentication-Results: mx.example.org spf=pass",
	"Authentication-Results: mx.example.org=1; spf=pass",
	"Authentication-Results: <mx.example.org>; spf=pass",
	"Authentication-Results: @mx.example.org; spf=pass",
	"Authentication-Results: mx.example.org\x00; spf=pass",
	"Authentication-Results: m\x00x.example.org; spf=pass",
	"Authentication-Results: mx.ex\u00adample.org; spf=pass",
	"Authentication-Results: mx\u200b.example.org; spf=pass",
	"Authentication-Results: \uff4d\uff58.example.org; spf=pass",
	"Authentication-Results: mx\u3002example\u3002org; spf=pass",
	"Authentication-Results: mx.example.org\u00a0; spf=pass",
	"Authentication-Results: mx.\x80example.org; spf=pass",
	"\ufeffAuthentication-Results: mx.example.org; spf=pass",
	"Authentication-Results\u00a0: mx.example.org; spf=pass",
	"Authentication\x00-Results: mx.example.org; spf=pass",
	"Authentication-Results\r\n : mx.example.org; spf=pass",
	"Authentication-Results:" + strings.Repeat("\r\n (a comment)", 10_000) + "\r\n mx.example.org; spf=pass",
	"Authentication-Results: mx.example.org; spf=pass" + strings.Repeat("\r\n x.y=z", 10_000),
	"Authentication-Results: " + strings.Repeat("(", 5000) + "x" + strings.Repeat(")", 5000) + " mx.example.org; spf=pass",
}

// genuine are fields that are nobody's business but their writers'.
var genuine = []string{
	"Authentication-Results: mx.example.net; spf=pass smtp.mailfrom=mx.example.org",
	"Authentication-Results: mx.example.org.evil.net; spf=pass",
	"Authentication-Results: xmx.example.org; spf=pass",
	"Authentication-Results: mx2.example.org 1; dkim=pass (mx.example.org)",
	"Authentication-Results: example.org; spf=pass",
	"Authentication-Results: i=1; mx.example.org; spf=pass", // of ARC, in the wrong field: not in our name
	"Authentication-Results: spf=pass (sender IP is 192.0.2.1)\r\n smtp.mailfrom=example.net; dkim=none",
	"Authentication-Results: (comment) mx.example.net; spf=pass",
	"Authentication-Results:",
	"ARC-Authentication-Results: i=1; mx.example.org; spf=pass",
	"X-Authentication-Results: mx.example.org; spf=pass",
	"Authentication-Results-Original: mx.example.org; spf=pass",
	"Authentication: mx.example.org; spf=pass",
	"Authentication-Result: mx.example.org; spf=pass",
	"Subject: Authentication-Results: mx.example.org; spf=pass",
	"Subject: folded\r\n Authentication-Results: mx.example.org; spf=pass",
	"A: b",
	"a",
}

func TestForgedResults(t *testing.T) {
	for _, pieces := range []int{1 << 20, 1, 2, 5, 1000} {
		for _, at := range []string{"F\r\nSubject: x\r\n", "Subject: x\r\nF\r\n", "no field at all\r\nF\r\n \r\nSubject: y\r\n", "F\r\nF\r\nA: b\r\n"} {
			body := "\r\nAuthentication-Results: mx.example.org; in the body\r\n"
			for _, field := range forgeries {
				if pieces < 1000 && len(field) > 1000 {
					continue
				}
				in := strings.ReplaceAll(at, "F\r\n", field+"\r\n") + body
				want := strings.ReplaceAll(at, "F\r\n", "") + body
				if strings.HasPrefix(at, "no field") {
					want = "no field at all\r\nSubject: y\r\n" + body // the line of blanks continues what goes
				}
				if got, n := through(in, pieces); got != want || n != strings.Count(at, "F\r\n") {
					t.Errorf("in pieces of %d, %d removed:\n%.300q\ngave\n%.300q", pieces, n, in, got)
				}
			}
			for _, field := range genuine {
				in := strings.ReplaceAll(at, "F\r\n", field+"\r\n") + body
				if got, n := through(in, pieces); got != in || n != 0 {
					t.Errorf("in pieces of %d, %d removed:\n%.300q\ngave\n%.300q", pieces, n, in, got)
				}
			}
		}
	}
	t.Logf("%d forms of forged fields", len(forgeries))
	for _, in := range []string{"Authentication-Results: mx.example.org", "Authentication-Results: mx.example.org; x\r\n", "Authentication-Results: mx.example.org; x\r\n y"} {
		if got, n := through(in, 3); got != "" || n != 1 {
			t.Errorf("%q, a message that is nothing else: %q, %d", in, got, n)
		}
	}
}

// TestForgedResultsOfStrangers: they go from mail of strangers, and stay in that of our own systems, which may have written
// them; inspectors see the message as it was sent, and as it is kept.
func TestForgedResultsOfStrangers(t *testing.T) {
	forged := "Authentication-Results: mx.example.net;\r\n dkim=pass\r\n"
	body := "Subject: x\r\n\r\n" + strings.Repeat("long body\r\n", 20_000)
	for _, ours := range []bool{false, true} {
		look, counted := &spy{}, 0
		s := newSite(t, router.PolicyReject, func(c *ServerConfig) {
			c.Inspectors = []Inspector{look}
			c.Metrics.Forged = func(n int) { counted += n }
			if ours {
				c.Wire.Trusted = func(netip.Addr) bool { return true }
			}
		})
		forged := strings.ReplaceAll(forged, "mx.example.net", s.srv.cfg.Hostname)
		if got := s.hello().deliver(forged+body, "ann@example.org"); !strings.HasPrefix(got, "250") {
			t.Fatal(got)
		}
		want, n := body, 1
		if ours {
			want, n = forged+body, 0
		}
		if msg := s.queue.one(t); !strings.HasSuffix(msg.body, want) || strings.Contains(msg.body, "dkim=pass") != ours {
			t.Errorf("ours %v: stored %.400q", ours, msg.body)
		}
		if counted != n || look.sent.String() != forged+body || look.kept.String() != want {
			t.Errorf("ours %v: %d counted, the inspector saw %.100q, kept %.100q", ours, counted, look.sent.String(), look.kept.String())
		}
	}
}

// FuzzForgedResults: the pieces in which a message comes change nothing, what is left is what came without some of its
// lines, and nothing in our name is left.
func FuzzForgedResults(f *testing.F) {
	for _, field := range append(append([]string(nil), forgeries...), genuine...) {
		if len(field) < 1000 {
			f.Add(field+"\r\nSubject: x\r\n\r\nbody\r\n", 3)
		}
	}
	f.Fuzz(func(t *testing.T, in string, pieces int) {
		whole, n := through(in, 1<<20)
		if parts, m := through(in, 1+(pieces&0xFF)); parts != whole || m != n {
			t.Fatalf("in pieces %q, %d removed; whole %q, %d", parts, m, whole, n)
		}
		rest := in
		for _, line := range strings.SplitAfter(whole, "\n") {
			i := strings.Index(rest, line)
			if i < 0 {
				t.Fatalf("%q is not in the message", line)
			}
			rest = rest[i+len(line):]
		}
		if again, m := through(whole, 1<<20); again != whole || m != 0 {
			t.Fatalf("a second time takes more: %q, %d", again, m)
		}
		if n == 0 && whole != in {
			t.Fatalf("it changed without a count: %q", whole)
		}
	})
}
