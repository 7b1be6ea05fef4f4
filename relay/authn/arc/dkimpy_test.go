package arc

import (
	"bytes"
	"crypto/rsa"
	"crypto/x509"
	"encoding/pem"
	"math/rand/v2"
	"strings"
	"testing"

	"crossfade/internal/mailtest/realtest"
	"crossfade/relay/authn/dkim"
)

func pemOf(key *rsa.PrivateKey) string {
	return string(pem.EncodeToMemory(&pem.Block{Type: "RSA PRIVATE KEY", Bytes: x509.MarshalPKCS1PrivateKey(key)}))
}

// flat is a zone as dkimpy gets it.
func (z *zone) flat() map[string]string {
	out := map[string]string{}
	for name, records := range z.records {
		out[name] = records[0]
	}
	return out
}

// TestDKIMPyVerifiesOurs: chains of one to three of our sets, some changed on the
// way.
func TestDKIMPyVerifiesOurs(t *testing.T) {
	k, z := testKeys(), testZone(t)
	list := strings.Replace(chained(t, 1), "Subject: A", "Subject: [list] A", 1) + "-- \r\nthe list\r\n"
	failed := mustSeal(t, list, "two.example", "s1", k.usual, verify(t, z, list))
	resealed := mustSeal(t, list, "two.example", "s1", k.usual, Result{Status: Pass, Sets: 1}) // a list that judged before it wrote
	plain := "DKIM-Signature: v=1; a=rsa-sha256; d=x.example; s=y;\r\n\tb=z\r\nList-Id: <a.b>\r\nReferences: <1@x>\r\n <2@y>\r\n" + plainMessage
	cases := []struct {
		name, msg, status string
		ams               map[int]bool
	}{
		{"one", chained(t, 1), "pass", map[int]bool{1: true}},
		{"two", chained(t, 2), "pass", map[int]bool{1: true, 2: true}},
		{"three", chained(t, 3), "pass", map[int]bool{1: true, 2: true, 3: true}},
		{"many fields", sealAs(t, z, plain, "two.example", "s1", k.usual), "pass", map[int]bool{1: true}},
		{"utf-8", sealAs(t, z, "From: Änn <a@b.example>\r\n\r\nö\r\n", "two.example", "s1", k.usual), "pass", map[int]bool{1: true}},
		{"no body", sealAs(t, z, "From: a@b.example\r\n\r\n", "two.example", "s1", k.usual), "pass", map[int]bool{1: true}},
		{"changed by a list that seals", resealed, "pass", map[int]bool{1: false, 2: true}},
		{"changed and not sealed", list, "fail", map[int]bool{1: false}},
		{"failed, and sealed so", failed, "", map[int]bool{1: false, 2: true}},
	}
	var jobs []realtest.DKIMPyJob
	for _, c := range cases {
		jobs = append(jobs, realtest.DKIMPyJob{Op: "verify", Message: []byte(c.msg)})
	}
	jobs = append(jobs, realtest.DKIMPyJob{Op: "alone", Message: []byte(without(without(without(failed, asName, 1), amsName, 1), aarName, 1))})
	answers := realtest.DKIMPy(t, z.flat(), jobs...)
	for i, c := range cases {
		a := answers[i]
		if a.Status != c.status {
			t.Errorf("%s: dkimpy says %q (%s), want %q\n%s", c.name, a.Status, a.Reason, c.status, c.msg)
		}
		for n, want := range c.ams {
			if got := a.Sets[n]; got.AMS != want || (!got.Seal && c.status != "") {
				t.Errorf("%s: instance %d: %+v", c.name, n, got)
			}
		}
	}
	if a := answers[len(cases)]; a.Status != "fail" || !a.Sets[2].Seal || !a.Sets[2].AMS {
		t.Errorf("the set that says cv=fail alone: %+v", a)
	}
}

// TestWeVerifyDKIMPys: it seals, alone and in turns with us.
func TestWeVerifyDKIMPys(t *testing.T) {
	k, z := testKeys(), testZone(t)
	seal := func(msg, domain string, key *rsa.PrivateKey, arc Status) string {
		t.Helper()
		msg = "Authentication-Results: " + domain + "; spf=pass smtp.mailfrom=sender.example; arc=" + string(arc) + "\r\n" + msg
		a := realtest.DKIMPy(t, z.flat(), realtest.DKIMPyJob{
			Op: "sign", Message: []byte(msg), Selector: "s1", Domain: domain, Authserv: domain, Key: pemOf(key),
		})[0]
		if len(a.Lines) == 0 {
			t.Fatalf("dkimpy does not seal: %s", a.Reason)
		}
		return string(a.Lines) + msg
	}
	one := seal(plainMessage, "one.example", k.small, None)
	two := seal(sealAs(t, z, one, "two.example", "s1", k.usual), "three.example", k.other, Pass)
	changed := strings.Replace(one, "Subject: A", "Subject: B", 1)
	failed := seal(changed, "two.example", k.usual, Fail)
	for _, c := range []struct {
		name, msg string
		want      Status
		oldest    int
		ended     bool
	}{
		{"its one", one, Pass, 0, false}, {"its, ours, its", two, Pass, 0, false}, {"changed", changed, Fail, -1, false},
		{"its cv=fail", failed, Fail, -1, true}, {"ours on its", sealAs(t, z, two, "two.example", "s1", k.usual), Pass, 0, false},
		{"ours on changed", mustSeal(t, changed, "two.example", "s1", k.usual, Result{Status: Pass, Sets: 1}), Pass, 2, false},
	} {
		if r := verify(t, z, c.msg); r.Status != c.want || r.OldestPass != c.oldest || r.Ended != c.ended {
			t.Errorf("%s: %+v\n%s", c.name, r, c.msg)
		}
	}
}

// TestBodiesLikeDKIMPy: random bodies have the same canonical hash.
func TestBodiesLikeDKIMPy(t *testing.T) {
	r := rand.New(rand.NewPCG(3, 4))
	pieces := []string{" ", "\t", "\r\n", "\r\n", "a", "bc", "  ", "\r\n\r\n", "=20", "ü", "\x00"}
	var jobs []realtest.DKIMPyJob
	var bodies []string
	for range 400 {
		var b strings.Builder
		for range r.IntN(12) {
			b.WriteString(pieces[r.IntN(len(pieces))])
		}
		bodies = append(bodies, b.String()+"\r\n")
		for _, form := range []string{"simple", "relaxed"} {
			jobs = append(jobs, realtest.DKIMPyJob{Op: "body", Message: []byte(b.String() + "\r\n"), Form: form})
		}
	}
	answers := realtest.DKIMPy(t, nil, jobs...)
	for i, body := range bodies {
		for j, form := range []dkim.Canon{dkim.Simple, dkim.Relaxed} {
			h := dkim.NewBodyHash(form)
			h.Write([]byte(body))
			if got := h.Sum(); !bytes.Equal(got, answers[2*i+j].Lines) {
				t.Errorf("%s: %q is hashed to %x, by dkimpy to %x", form, body, got, answers[2*i+j].Lines)
			}
		}
	}
}
