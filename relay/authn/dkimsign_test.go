package authn

import (
	"bytes"
	"crypto/ed25519"
	"crypto/rsa"
	"crypto/x509"
	"encoding/base64"
	"encoding/pem"
	"os"
	"os/exec"
	"strings"
	"testing"

	"crossfade/internal/mailtest/realtest"
)

// TestDKIMPySigned: what dkimpy signs, in each form and with both kinds of keys, passes, and not when a letter is changed.
func TestDKIMPySigned(t *testing.T) {
	path := realtest.Need(t, "dkimsign")
	dir := t.TempDir()
	write := func(name string, text []byte) string {
		t.Helper()
		if err := os.WriteFile(dir+"/"+name, text, 0o600); err != nil {
			t.Fatal(err)
		}
		return dir + "/" + name
	}
	files := map[string]string{
		"rsa": write("rsa", pem.EncodeToMemory(&pem.Block{Type: "RSA PRIVATE KEY", Bytes: x509.MarshalPKCS1PrivateKey(keys()["rsa"].(*rsa.PrivateKey))})),
		"ed":  write("ed", []byte(base64.StdEncoding.EncodeToString(keys()["ed"].(ed25519.PrivateKey).Seed()))),
	}
	c := newChecker(t, nil, domain("example.com", "")...)
	msg := crlf("Received: from a\n\tby b;\n\tFri, 11 Jul 2003 21:01:54 -0700\nFrom: =?utf-8?q?J=C3=B6rg?=  <joe@example.com>\nTo: a@b.c,\n  d@e.f\nSUBJECT:   folded\n\tand  spaced \n" +
		"Date: x\nMessage-ID: <1@example.com>\n\n  A body,  with \t blanks \n\n\n.\n..dots\n" + strings.Repeat("\n", 5) + "end\n\n\n")
	for _, form := range [][3]string{
		{"rsa", "rsa-sha256", "simple/simple"}, {"rsa", "rsa-sha256", "simple/relaxed"}, {"rsa", "rsa-sha256", "relaxed/simple"}, {"rsa", "rsa-sha256", "relaxed/relaxed"},
		{"ed", "ed25519-sha256", "relaxed/relaxed"}, {"ed", "ed25519-sha256", "simple/simple"}, {"rsa", "rsa-sha1", "relaxed/relaxed"},
	} {
		head, body, _ := strings.Cut(form[2], "/")
		cmd := exec.Command(path, "--hcanon", head, "--bcanon", body, "--signalg", form[1], form[0], "example.com", files[form[0]])
		cmd.Stdin = bytes.NewReader(msg)
		var problem bytes.Buffer
		cmd.Stderr = &problem
		signed, err := cmd.Output()
		if err != nil {
			t.Fatalf("%s: %v: %s", form, err, problem.String())
		}
		want := Pass
		if form[1] == "rsa-sha1" {
			want = Policy
		}
		r := check(t, c, "joe@example.com", signed, 100)
		if len(r.DKIM) != 1 || r.DKIM[0].Result != want || r.DKIM[0].Algorithm != form[1] {
			t.Errorf("%s: %+v", form, r.DKIM)
		}
		for _, change := range [][2]string{{"dots", "dogs"}, {"folded", "scolded"}, {"joe@", "jon@"}} {
			r := check(t, c, "joe@example.com", bytes.Replace(signed, []byte(change[0]), []byte(change[1]), 1), whole)
			if want == Pass && r.DKIM[0].Result != Fail {
				t.Errorf("%s, %s changed: %+v", form, change[0], r.DKIM)
			}
		}
	}
}
