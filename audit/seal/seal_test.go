package seal

import (
	"bytes"
	"encoding/json"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"
)

func signedDocument(t *testing.T) ([]byte, Key) {
	t.Helper()
	k, err := NewKey()
	if err != nil {
		t.Fatal(err)
	}
	doc := map[string]any{
		"format": 1, "empty": []any{}, "clean": true,
		"users":   []any{map[string]any{"user": "ann@example.org", "n": 3}, map[string]any{"user": "bob@example.org", "n": 4}},
		"journal": map[string]any{"head": "abc", "blocks": 7},
	}
	if doc["signature"], err = Sign(doc, k); err != nil {
		t.Fatal(err)
	}
	doc["sha256"] = "not covered"
	data, err := json.MarshalIndent(doc, "", " ")
	if err != nil {
		t.Fatal(err)
	}
	return data, k
}

func TestSign(t *testing.T) {
	data, k := signedDocument(t)
	for _, key := range []string{"", k.Public()} {
		r, err := Check(data, key)
		if err != nil || !r.OK() || r.Key != k.Public() || r.Parts != 7 {
			t.Fatalf("%+v, %v", r, err)
		}
	}
	other, _ := NewKey()
	if r, _ := Check(data, other.Public()); r.OK() || !strings.Contains(r.Wrong[0], "and not with") {
		t.Fatalf("%+v", r)
	}
}

// The check names what was changed.
func TestTampered(t *testing.T) {
	data, _ := signedDocument(t)
	for _, tt := range []struct{ from, to, want string }{
		{`"n": 4`, `"n": 5`, "users/1 (bob@example.org) was changed"},
		{`"head": "abc"`, `"head": "abd"`, "journal/head was changed"},
		{`"clean": true`, `"clean": false`, "clean was changed"},
		{`"format": 1`, `"format": 1, "more": "x"`, "more was added"},
		{`"empty": []`, `"empty": [1]`, "empty was signed and is not there; empty/0 was added"},
		{`"clean": true,`, ``, "clean was signed and is not there"},
		{`"key": "`, `"key": "A`, "the signature"},
		{`"value": "`, `"value": "AAAA`, "the signature"},
		{`"journal/head": "`, `"journal/head": "0`, "the signature: it does not fit the list of digests"},
	} {
		bad := bytes.Replace(data, []byte(tt.from), []byte(tt.to), 1)
		if bytes.Equal(bad, data) {
			t.Fatalf("%q is not in %s", tt.from, data)
		}
		r, err := Check(bad, "")
		if err != nil || r.OK() || !strings.Contains(strings.Join(r.Wrong, "; "), tt.want) {
			t.Errorf("%s: %+v, %v, want %q", tt.to, r, err, tt.want)
		}
	}
}

// Each octet counts: whichever is changed, it is an error or named, unless it is
// white space or what is not covered.
func TestEveryOctet(t *testing.T) {
	data, k := signedDocument(t)
	before, _ := Check(data, k.Public())
	for i := range data {
		bad := bytes.Clone(data)
		bad[i] ^= 1
		r, err := Check(bad, k.Public())
		if err != nil || !r.OK() {
			continue
		}
		line := data[bytes.LastIndexByte(data[:i], '\n')+1:]
		if r.Parts == before.Parts && (bytes.Contains(line[:min(len(line), 12)], []byte("sha256"))) {
			continue
		}
		t.Fatalf("octet %d, %q made %q, was not seen", i, data[i], bad[i])
	}
}

// Of a part of a document nothing is said about the rest.
func TestOnly(t *testing.T) {
	k, _ := NewKey()
	s, err := Sign(map[string]any{"mine": map[string]any{"x": 1}}, k, "mine")
	if err != nil {
		t.Fatal(err)
	}
	for x, want := range map[int]bool{1: true, 2: false} {
		data, _ := json.Marshal(map[string]any{"mine": map[string]any{"x": x}, "other": "y", "signature": s})
		if r, err := Check(data, k.Public()); err != nil || r.OK() != want {
			t.Errorf("%d: %+v, %v", x, r, err)
		}
	}
	s.Only = nil
	data, _ := json.Marshal(map[string]any{"mine": map[string]any{"x": 1}, "signature": s})
	if r, _ := Check(data, ""); r.OK() {
		t.Error("what it covers was changed")
	}
}

func TestNotSigned(t *testing.T) {
	for _, bad := range []string{"", "[]", "{}", `{"signature": 1}`, `{"a": 1.5, "signature": {}}`} {
		if r, err := Check([]byte(bad), ""); err == nil && r.OK() {
			t.Errorf("%s was taken", bad)
		}
	}
	if _, err := Sign(map[string]any{"x": 1}, Key{}); err == nil {
		t.Error("signed without a key")
	}
	k, _ := NewKey()
	if _, err := Sign(map[string]any{"x": 1.5}, k); err == nil {
		t.Error("a broken number was signed")
	}
}

func TestLoadOrCreate(t *testing.T) {
	path := filepath.Join(t.TempDir(), "signing.key")
	k, created, err := LoadOrCreate(path)
	if err != nil || !created {
		t.Fatalf("%v, %v", created, err)
	}
	again, created, err := LoadOrCreate(path)
	if err != nil || created || again.Public() != k.Public() {
		t.Fatalf("%v, %v, %s", created, err, again.Public())
	}
	if info, _ := os.Stat(path); info.Mode().Perm() != 0o600 {
		t.Errorf("mode %v", info.Mode())
	}
	if err := os.WriteFile(path, []byte("x"), 0o600); err != nil {
		t.Fatal(err)
	}
	if _, _, err := LoadOrCreate(path); err == nil {
		t.Error("a key that cannot be read was replaced")
	}
}

func FuzzCheck(f *testing.F) {
	f.Add([]byte(`{"a": [1, {"user": "x"}], "signature": {"alg": "Ed25519", "key": "", "digests": {}}}`))
	f.Fuzz(func(t *testing.T, data []byte) {
		if r, err := Check(data, ""); err == nil && r.OK() {
			t.Fatal("nobody signed this")
		}
	})
}

// TestCanonical holds the form to what RFC 8785 says.
func TestCanonical(t *testing.T) {
	var v any
	dec := json.NewDecoder(strings.NewReader("{\"b\": [1, true, null], \"\u20ac\": \"\\u2028<&>\\u0007\\\"\\n\\u007f\", \"a\": {}, \"\\ud83d\\ude00\": 0, \"\ufb33\": -1}"))
	dec.UseNumber()
	if err := dec.Decode(&v); err != nil {
		t.Fatal(err)
	}
	got, err := Canonical(v)
	if err != nil {
		t.Fatal(err)
	}
	want := "{\"a\":{},\"b\":[1,true,null],\"\u20ac\":\"\u2028<&>\\u0007\\\"\\n\u007f\",\"\U0001f600\":0,\"\ufb33\":-1}"
	if string(got) != want {
		t.Errorf("%s\nwant %s", got, want)
	}
}

// Of two members with one name readers take one or the other; encoding/json also takes
// "Clean" for "clean". What is signed must not be said by one and shown by the other.
func TestTwoReaders(t *testing.T) {
	data, k := signedDocument(t)
	for _, tt := range []struct{ from, to, want string }{
		{`"clean": true`, `"clean": false, "clean": true`, `two members "clean" and "clean"`},
		{`"clean": true`, `"clean": true, "Clean": false`, `two members "clean" and "Clean"`},
		{`"clean": true`, `"clean": true, "cl\u0065an": false`, `two members "clean" and "clean"`},
		{`"sha256": "`, `"sha256": "x", "\u017fha256": "`, `two members`}, // the long s is an s to encoding/json
		{`"n": 4`, `"n": 5, "n": 4`, `two members "n" and "n"`},
		{`"head": "abc"`, `"head": "abc", "Head": "abd"`, `two members "head" and "Head"`},
		{`"key": "`, `"key": "AAAA", "key": "`, `two members "key" and "key"`},
		{`"users/1": "`, `"users/1": "0", "users/1": "`, `two members "users/1"`},
		{`"signature": {`, `"signature": {}, "signature": {`, `two members "signature"`},
		{`ann@example.org`, "ann@ex\xffmple.org", "not UTF-8"},
		{`ann@example.org`, `ann@ex\ud800mple.org`, "half a character"},
		{`ann@example.org`, `ann@ex\udc00\ud800mple.org`, "half a character"},
	} {
		bad := bytes.Replace(data, []byte(tt.from), []byte(tt.to), 1)
		if bytes.Equal(bad, data) {
			t.Fatalf("%q is not in %s", tt.from, data)
		}
		if r, err := Check(bad, k.Public()); err == nil || !strings.Contains(err.Error(), tt.want) {
			t.Errorf("%s: %+v, %v, want %q", tt.to, r, err, tt.want)
		}
	}
	whole := map[string]any{"text": "\U0001f600 \\ud800 \" \\", "a": []any{map[string]any{"b": 1}, map[string]any{"b": 2}}}
	s, err := Sign(whole, k)
	if err != nil {
		t.Fatal(err)
	}
	text := fmt.Sprintf(`{"text": "\ud83d\ude00 \\ud800 \" \\", "a": [{"b":1},{"b":2}], "signature": %s}`, asText(t, s))
	if r, err := Check([]byte(text), k.Public()); err != nil || !r.OK() {
		t.Errorf("escapes of what was signed: %+v, %v", r, err)
	}
}

func asText(t *testing.T, v any) []byte {
	t.Helper()
	data, err := json.Marshal(v)
	if err != nil {
		t.Fatal(err)
	}
	return data
}
