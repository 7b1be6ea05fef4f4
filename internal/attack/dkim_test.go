package attack

import (
	"bytes"
	"crypto/rand"
	"crypto/rsa"
	"crypto/x509"
	"encoding/base64"
	"encoding/json"
	"encoding/pem"
	"os/exec"
	"testing"

	"crossfade/internal/mailtest/realtest"
)

// dkimpy signs and verifies, by another implementation than ours: a JSON object
// for each message, one a line, both ways.
const dkimpy = `
import sys, json, base64, dkim
key = base64.b64decode(sys.argv[2]); txt = base64.b64decode(sys.argv[3])
for line in sys.stdin:
    x = json.loads(line); m = base64.b64decode(x["mail"] or "")
    try:
        if sys.argv[1] == "sign":
            how = x["how"].encode()
            sig = dkim.sign(m, b"s", b"signer.test", key, canonicalize=(how, how), include_headers=[b"from", b"subject", b"to", b"date", b"message-id"])
            out = {"mail": base64.b64encode(sig + m).decode(), "ok": True}
        else:
            out = {"ok": dkim.verify(m, dnsfunc=lambda name, timeout=5: txt)}
    except Exception as e:
        out = {"ok": False, "error": str(e)}
    print(json.dumps(out))
`

type dkimLine struct {
	Mail  []byte `json:"mail"`
	How   string `json:"how,omitempty"`
	OK    bool   `json:"ok"`
	Error string `json:"error,omitempty"`
}

// signer is a key and its record.
type signer struct{ key, txt []byte }

// newSigner makes a key.
func newSigner(t *testing.T) *signer {
	t.Helper()
	key, err := rsa.GenerateKey(rand.Reader, 2048)
	if err != nil {
		t.Fatal(err)
	}
	pub, err := x509.MarshalPKIXPublicKey(&key.PublicKey)
	if err != nil {
		t.Fatal(err)
	}
	return &signer{
		key: pem.EncodeToMemory(&pem.Block{Type: "RSA PRIVATE KEY", Bytes: x509.MarshalPKCS1PrivateKey(key)}),
		txt: []byte("v=DKIM1; k=rsa; p=" + base64.StdEncoding.EncodeToString(pub)),
	}
}

func (s *signer) run(t *testing.T, mode string, in []dkimLine) (out []dkimLine) {
	t.Helper()
	python := realtest.Need(t, "/usr/bin/python3") // Debian's own has Debian's packages
	var b bytes.Buffer
	enc := json.NewEncoder(&b)
	for _, l := range in {
		if err := enc.Encode(l); err != nil {
			t.Fatal(err)
		}
	}
	cmd := exec.CommandContext(t.Context(), python, "-c", dkimpy, mode, base64.StdEncoding.EncodeToString(s.key), base64.StdEncoding.EncodeToString(s.txt))
	cmd.Stdin = &b
	var errs bytes.Buffer
	cmd.Stderr = &errs
	printed, err := cmd.Output()
	if err != nil {
		t.Fatalf("dkimpy (Debian: apt-get install python3-dkim): %v\n%s", err, errs.String())
	}
	dec := json.NewDecoder(bytes.NewReader(printed))
	for range in {
		var l dkimLine
		if err := dec.Decode(&l); err != nil {
			t.Fatal(err)
		}
		out = append(out, l)
	}
	return out
}

// signedLetters are a sample of messages, each signed in two ways. What the
// signer itself does not take, or does not verify afterwards, is left out.
func (s *signer) letters(t *testing.T, all []letter) (out []letter) {
	t.Helper()
	every := 1 + len(all)/5
	if long() {
		every = 1 + len(all)/100
	}
	var in []dkimLine
	var from []letter
	for i, l := range all {
		if i%every != 0 {
			continue
		}
		for _, how := range []string{"simple", "relaxed"} {
			in, from = append(in, dkimLine{Mail: l.body, How: how}), append(from, l)
		}
	}
	signed := s.run(t, "sign", in)
	for i, v := range s.run(t, "verify", signed) {
		if signed[i].OK && v.OK {
			out = append(out, letter{n: len(all) + len(out), name: from[i].name + ", signed " + in[i].How, raw: signed[i].Mail, body: signed[i].Mail, signed: true})
		}
	}
	if len(out) < len(in)/2 {
		t.Fatalf("only %d of %d could be signed: %+v", len(out), len(in), signed[0].Error)
	}
	return out
}
