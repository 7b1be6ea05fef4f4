package lookup

import (
	"bufio"
	"errors"
	"io"
	"net/http"
	"strings"
	"testing"
	"unicode/utf8"
)

func FuzzSocketmap(f *testing.F) {
	for _, s := range []string{"3:abc,", "0:,", "20:transport a@b.test,,", "4096:", ":", "00:,", "99999999999:", "3:ab", "x"} {
		f.Add([]byte(s))
	}
	f.Fuzz(func(t *testing.T, b []byte) {
		r := bufio.NewReader(strings.NewReader(string(b)))
		text, err := readNetstring(r, maxQuestion)
		switch {
		case err == nil && len(text) > maxQuestion:
			t.Errorf("%d octets", len(text))
		case err == nil && !strings.HasPrefix(string(b), netstring(text)):
			t.Errorf("%q was read as %q", b, text)
		case err != nil && !errors.Is(err, errBad) && !errors.Is(err, io.EOF) && !errors.Is(err, io.ErrUnexpectedEOF):
			t.Errorf("%q: %v", b, err)
		}
	})
}

func FuzzTCPTable(f *testing.F) {
	for _, s := range []string{"get a", "get %41", "get %", "put a b", "get a%0ab", "get  x", "get a\r"} {
		f.Add(s)
	}
	f.Fuzz(func(t *testing.T, line string) {
		key, err := parseTCP(line)
		if err != nil {
			if !errors.Is(err, errBad) {
				t.Errorf("%q: %v", line, err)
			}
			return
		}
		wire := encodeTCP(key)
		if strings.ContainsFunc(wire, func(r rune) bool { return r <= ' ' || r > '~' }) {
			t.Errorf("%q is written as %q", key, wire)
		}
		again, err := decodeTCP(wire)
		if err != nil || again != key {
			t.Errorf("%q became %q by way of %q: %v", key, again, wire, err)
		}
	})
}

func FuzzNginx(f *testing.F) {
	f.Add("plain", "imap", "ann%40example.org", "1")
	f.Add("login", "smtp", "%zz", "-1")
	f.Add("", "pop3", "a+b", "99999999999999999999")
	f.Fuzz(func(t *testing.T, method, protocol, user, attempt string) {
		h := http.Header{"Auth-Method": {method}, "Auth-Protocol": {protocol}, "Auth-User": {user}, "Auth-Login-Attempt": {attempt}}
		q, err := parseNginx(h)
		if err != nil {
			if !errors.Is(err, errRefused) {
				t.Errorf("%v", err)
			}
			return
		}
		if q.protocol != IMAP && q.protocol != POP3 && q.protocol != Submission || !utf8.ValidString(q.user) || q.attempt < 1 {
			t.Errorf("%+v", q)
		}
	})
}
