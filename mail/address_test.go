package mail

import (
	"encoding/json"
	"strings"
	"testing"
)

func TestParseAddress(t *testing.T) {
	for in, want := range map[string]string{
		"":                                "",
		"ann@example.org":                 "ann@example.org",
		"Ann@EXAMPLE.Org.":                "Ann@example.org",
		"a.b+c@example.org":               "a.b+c@example.org",
		`"ann"@example.org`:               "ann@example.org",
		`"a b"@example.org`:               `"a b"@example.org`,
		`"a\ \"\\b"@example.org`:          `"a \"\\b"@example.org`,
		`"a@b"@example.org`:               `"a@b"@example.org`,
		`".a"@example.org`:                `".a"@example.org`,
		"jörg@example.org":                "jörg@example.org",
		"ann@bücher.example":              "ann@xn--bcher-kva.example",
		"ann@BÜCHER.example":              "ann@xn--bcher-kva.example",
		"ann@[192.0.2.1]":                 "ann@[192.0.2.1]",
		"ann@[IPv6:2001:DB8::1]":          "ann@[IPv6:2001:db8::1]",
		"ann@_srv.example.org":            "ann@_srv.example.org",
		strings.Repeat("a", 256) + "@b.c": strings.Repeat("a", 256) + "@b.c",
	} {
		a, err := ParseAddress(in)
		if err != nil || a.String() != want {
			t.Errorf("%q: got %q, %v, want %q", in, a, err, want)
		}
	}
	for _, in := range []string{
		"ann", "@example.org", "ann@", "ann@.", "ann@a..b", "ann@-a.b", "ann@a-.b", "ann@a b", "a b@example.org", "a..b@example.org",
		".a@example.org", "a.@example.org", `"a@example.org`, `"a"b@example.org`, `"a\`, `a"b@example.org`, "a@b@c", "ann@[1.2.3]",
		"ann@[2001:db8::1]", "ann@[IPv6:1.2.3.4]", "ann@[IPv6:fe80::1%eth0]", "ann@[1.2.3.4", "a\x00b@example.org", "\"a\rb\"@example.org",
		"a\xffb@example.org", "\"\"@example.org", strings.Repeat("a", 257) + "@b.c", "a@" + strings.Repeat("b", 64) + ".c",
		"a@" + strings.Repeat("bbb.", 64) + "cc", "ann@exa>mple.org", "<ann@example.org>", "ann@example.org\r\nRCPT TO:<x@y>",
		"a\u0085b@example.org",
	} {
		if a, err := ParseAddress(in); err == nil {
			t.Errorf("%q was taken as %q", in, a)
		} else if !strings.HasPrefix(err.Error(), "address ") {
			t.Errorf("%q: %v does not say what it was about", in, err)
		}
	}
}

// go-smtp removes the quoting of a local part. Put back, it cannot say
// anything but a local part: this was a way to relay through us.
func TestFromUnquotedCannotInject(t *testing.T) {
	for in, want := range map[string]string{
		"victim@other.example> NOTIFY=NEVER @example.org": `"victim@other.example> NOTIFY=NEVER "@example.org`,
		"ann@example.org":    "ann@example.org",
		`a"b\c@example.org`:  `"a\"b\\c"@example.org`,
		" @example.org":      `" "@example.org`,
		"a@b@example.org":    `"a@b"@example.org`,
		"jörg ü@example.org": `"jörg ü"@example.org`,
	} {
		a, err := FromUnquoted(in)
		if err != nil || a.String() != want {
			t.Errorf("%q: got %q, %v, want %q", in, a, err, want)
			continue
		}
		if again, err := ParseAddress(a.String()); err != nil || again != a {
			t.Errorf("%q does not come back: %q, %v", a, again, err)
		}
	}
	for _, in := range []string{"ann", "a\nb@example.org", "a\rb@example.org", "a\x00@example.org", "@example.org", "a@ex ample.org", "a@example.org> SIZE=1"} {
		if a, err := FromUnquoted(in); err == nil {
			t.Errorf("%q was taken as %q", in, a)
		}
	}
}

func TestKey(t *testing.T) {
	for in, want := range map[string]string{
		"Ann.B@Example.org": "ann.b@example.org",
		`"A b"@example.org`: `"a b"@example.org`,
		`"ann"@example.org`: "ann@example.org",
		"JO\u0308RG@x.org":  "j\u00f6rg@x.org",
		"JÖRG@x.org":        "jörg@x.org",
		"":                  "",
	} {
		a, err := ParseAddress(in)
		if err != nil || a.Key() != want {
			t.Errorf("%q: got %q, %v, want %q", in, a.Key(), err, want)
		}
	}
}

func TestAddressJSON(t *testing.T) {
	in := Envelope{ID: NewID(), From: Address{}, Recipients: []Recipient{{Addr: Address{Local: "a b", Domain: "example.org"}}}}
	b, err := json.Marshal(in)
	if err != nil {
		t.Fatal(err)
	}
	var out Envelope
	if err := json.Unmarshal(b, &out); err != nil || out.Recipients[0].Addr != in.Recipients[0].Addr || !out.From.IsNull() || !out.ID.Valid() {
		t.Errorf("%s: %+v, %v", b, out, err)
	}
	if strings.Contains(string(b), "orig") {
		t.Errorf("%s holds empty addresses", b)
	}
	if err := json.Unmarshal([]byte(`{"from":"nobody"}`), &out); err == nil {
		t.Error("a bad address was read")
	}
}

func TestGivenAndNotify(t *testing.T) {
	a, b := Address{Local: "a", Domain: "x"}, Address{Local: "b", Domain: "x"}
	if (Recipient{Addr: a}).Given() != a || (Recipient{Addr: a, Orig: b}).Given() != b {
		t.Error("Given")
	}
	for _, test := range []struct {
		set, what Notify
		want      bool
	}{
		{0, NotifyFailure, true}, {0, NotifyDelay, true}, {0, NotifySuccess, false},
		{NotifyNever, NotifyFailure, false}, {NotifySuccess, NotifyFailure, false}, {NotifyFailure | NotifySuccess, NotifySuccess, true},
	} {
		if got := test.set.Wants(test.what); got != test.want {
			t.Errorf("%v wants %v: %v", test.set, test.what, got)
		}
	}
	if Old.Other() != New || New.Other() != Old || Out.Other() != Out {
		t.Error("Other")
	}
	if ID("short").Valid() || ID("").Valid() {
		t.Error("Valid")
	}
}

// Every address that is read prints as one that reads as the same, on one
// line, within its path; and its key is the key of its key.
func FuzzAddress(f *testing.F) {
	for _, s := range []string{"ann@example.org", `"a b\"\\"@x.org`, "j\u0308@b\u00fccher.example", "a@[IPv6:::1]", "victim@other.example> NOTIFY=NEVER @x", "\u212a\u0130@x"} {
		f.Add(s)
	}
	f.Fuzz(func(t *testing.T, in string) {
		for _, read := range []func(string) (Address, error){ParseAddress, FromUnquoted} {
			a, err := read(in)
			if err != nil {
				continue
			}
			s := a.String()
			if again, err := ParseAddress(s); err != nil || again != a {
				t.Fatalf("%q prints as %q, which reads as %#v, %v", in, s, again, err)
			}
			if strings.ContainsAny(s, "\r\n\x00") {
				t.Fatalf("%q prints as %q", in, s)
			}
			if !strings.HasPrefix(s, `"`) && strings.ContainsAny(s, "<> \t") {
				t.Fatalf("%q prints as %q, which ends a path", in, s)
			}
			key := a.Key()
			k, err := ParseAddress(key)
			if err != nil {
				continue // folding may lengthen a local part beyond its limit
			}
			if k.Key() != key {
				t.Fatalf("%q has the key %q, which has the key %q", in, key, k.Key())
			}
		}
	})
}
