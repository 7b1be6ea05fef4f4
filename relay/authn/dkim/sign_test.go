package dkim_test

import (
	"crypto"
	"crypto/ed25519"
	"crypto/rand"
	"crypto/rsa"
	"strings"
	"testing"
	"time"

	"crossfade/relay/authn/arc"
	"crossfade/relay/authn/dkim"

	msgauth "github.com/emersion/go-msgauth/dkim"
)

// TestSign: what we sign is verified by go-msgauth, and no longer when a letter of it is changed, or a field that was named
// once more than it is there is added.
func TestSign(t *testing.T) {
	rsaKey, err := rsa.GenerateKey(rand.Reader, 2048)
	if err != nil {
		t.Fatal(err)
	}
	_, edKey, err := ed25519.GenerateKey(rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	msg := "From: <a@one.example>\r\nTo: <b@two.example>\r\nSubject:  folded\r\n\tonce\r\n\r\nA body  \r\n\r\n\r\n"
	for _, key := range []crypto.Signer{rsaKey, edKey} {
		field, err := (&dkim.Signer{Domain: "one.example", Selector: "sel", Key: key, Names: []string{"from", "to", "subject", "from", "date"}}).Sign([]byte(msg), time.Unix(1795000000, 0))
		if err != nil {
			t.Fatal(err)
		}
		for line := range strings.SplitSeq(strings.TrimSuffix(field, "\r\n"), "\r\n") {
			if len(line) > 100 {
				t.Errorf("a line of %d octets", len(line))
			}
		}
		verify := func(m string) error {
			v, err := msgauth.VerifyWithOptions(strings.NewReader(m), &msgauth.VerifyOptions{LookupTXT: func(string) ([]string, error) {
				record, err := arc.Record(key.Public())
				return []string{record}, err
			}})
			if err != nil || len(v) != 1 {
				t.Fatal(v, err)
			}
			return v[0].Err
		}
		if err := verify(field + msg); err != nil {
			t.Errorf("%T: %v\n%s", key, err, field)
		}
		for _, change := range [][2]string{{"body", "bodies"}, {"once", "twice"}, {"b@two", "c@two"}, {"From:", "From: <c@one.example>\r\nFrom:"}, {"To:", "Date: now\r\nTo:"}} {
			if verify(field+strings.Replace(msg, change[0], change[1], 1)) == nil {
				t.Errorf("%T: with %q changed it is still good", key, change[0])
			}
		}
	}
	if _, err := (&dkim.Signer{Domain: "one.example", Selector: "sel", Key: rsaKey, Names: []string{"from"}}).Sign([]byte("no header\r\n"), time.Now()); err == nil {
		t.Error("what is no message is signed")
	}
}
