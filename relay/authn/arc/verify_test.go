package arc

import (
	"context"
	"crypto"
	"encoding/base64"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"crossfade/relay/authn/dkim"
)

// swap replaces something that has to be there.
func swap(t testing.TB, msg, old, new string) string {
	t.Helper()
	if !strings.Contains(msg, old) {
		t.Fatalf("%q is not in the message", old)
	}
	return strings.Replace(msg, old, new, 1)
}

// without takes the fields of a name and instance out.
func without(msg, name string, instance int) string {
	head, body := split(msg)
	out := ""
	for _, f := range fieldsOf(head) {
		if !isField(f, name, instance) {
			out += f
		}
	}
	return out + "\r\n" + body
}

func isField(field, name string, instance int) bool {
	return strings.HasPrefix(field, name+":") && strings.Contains(field, fmt.Sprintf(" i=%d;", instance))
}

func only(msg, name string, instance int) string {
	head, _ := split(msg)
	for _, f := range fieldsOf(head) {
		if isField(f, name, instance) {
			return f
		}
	}
	return ""
}

// replaced puts another field in the place of one.
func replaced(t testing.TB, msg, name string, instance int, change func(string) string) string {
	t.Helper()
	old := only(msg, name, instance)
	return swap(t, msg, old, change(old))
}

func set1() forged { return forged{instance: 1, ams: amsTags(1), as: asTags(1, None)} }

type verdict struct {
	name   string
	msg    func(t *testing.T) string
	want   Status
	reason string
	oldest int // where the chain passes
}

// made is a message with one set made by hand, changed before it is signed.
func made(change func(f *forged)) func(t *testing.T) string {
	return func(t *testing.T) string {
		f := set1()
		change(&f)
		return f.add(t, plainMessage)
	}
}

// edited is a message with a chain of n sets, changed after it was sealed.
func edited(n int, change func(t *testing.T, msg string) string) func(t *testing.T) string {
	return func(t *testing.T) string { return change(t, chained(t, n)) }
}

func structure() []verdict {
	drop := func(n int, name string, i int) func(t *testing.T) string {
		return edited(n, func(_ *testing.T, m string) string { return without(m, name, i) })
	}
	twice := func(n int, name string, i int) func(t *testing.T) string {
		return edited(n, func(_ *testing.T, m string) string { return only(m, name, i) + m })
	}
	return []verdict{
		{"no chain", edited(0, func(_ *testing.T, m string) string { return m }), None, "", 0},
		{"an empty message", func(*testing.T) string { return "" }, None, "", 0},
		{"no header", func(*testing.T) string { return "\r\nHello\r\n" }, None, "", 0},
		{"no body", func(t *testing.T) string { return set1().add(t, "From: a@b.example\r\nTo: c\r\n\r\n") }, Pass, "", 0},
		{"one set", edited(1, func(_ *testing.T, m string) string { return m }), Pass, "", 0},
		{"two sets", edited(2, func(_ *testing.T, m string) string { return m }), Pass, "", 0},
		{"three sets", edited(3, func(_ *testing.T, m string) string { return m }), Pass, "", 0},
		{"no AAR", drop(1, aarName, 1), Fail, "has no arc-authentication-results", 0},
		{"no AMS", drop(1, amsName, 1), Fail, "has no arc-message-signature", 0},
		{"no AS", drop(1, asName, 1), Fail, "has no arc-seal", 0},
		{"no AAR of the first of two", drop(2, aarName, 1), Fail, "i=1", 0},
		{"no AMS of the first of two", drop(2, amsName, 1), Fail, "i=1", 0},
		{"no AS of the first of two", drop(2, asName, 1), Fail, "i=1", 0},
		{"no AS of the second of two", drop(2, asName, 2), Fail, "i=2", 0},
		{"no AAR of the second of two", drop(2, aarName, 2), Fail, "i=2", 0},
		{"an AAR twice", twice(1, aarName, 1), Fail, "twice", 0},
		{"an AMS twice", twice(2, amsName, 2), Fail, "twice", 0},
		{"an AS twice", twice(2, asName, 1), Fail, "twice", 0},
		{"a gap", edited(3, func(_ *testing.T, m string) string {
			return without(without(without(m, aarName, 2), amsName, 2), asName, 2)
		}), Fail, "no set with i=2", 0},
		{"begins with 2", edited(2, func(_ *testing.T, m string) string {
			return without(without(without(m, aarName, 1), amsName, 1), asName, 1)
		}), Fail, "no set with i=1", 0},
		{"the whole set twice", edited(1, func(_ *testing.T, m string) string {
			return only(m, asName, 1) + only(m, amsName, 1) + only(m, aarName, 1) + m
		}), Fail, "twice", 0},
		{"fields in another order", edited(2, func(_ *testing.T, m string) string {
			moved := only(m, aarName, 1) + only(m, asName, 2)
			return moved + without(without(m, aarName, 1), asName, 2)
		}), Pass, "", 0},
		{"a chain below other fields", edited(1, func(_ *testing.T, m string) string {
			return "Received: from c by d; Sat, 21 Nov 2026 13:00:00 +0000\r\nX-New: 1\r\nAuthentication-Results: d; none\r\n" + m
		}), Pass, "", 0},
		{"51 fields of a kind", edited(1, func(t *testing.T, m string) string {
			for n := 2; n <= MaxSets+1; n++ {
				m = fmt.Sprintf("ARC-Authentication-Results: i=%d; x; none\r\n", min(n, 50)) + m
			}
			return m
		}), Fail, "more than 50", 0},
		{"instance 51", edited(1, func(_ *testing.T, m string) string { return "ARC-Seal: i=51; cv=pass\r\n" + m }), Fail, "above 50", 0},
		{"instance 0", edited(1, func(_ *testing.T, m string) string { return "ARC-Seal: i=0; cv=pass\r\n" + m }), Fail, "1 to 50", 0},
		{"instance 100", edited(1, func(_ *testing.T, m string) string { return "ARC-Seal: i=100; cv=pass\r\n" + m }), Fail, "1 to 50", 0},
		{"instance -1", edited(1, func(_ *testing.T, m string) string { return "ARC-Seal: i=-1; cv=pass\r\n" + m }), Fail, "1 to 50", 0},
		{"instance +1", edited(0, func(_ *testing.T, m string) string { return "ARC-Seal: i=+1; cv=pass\r\n" + m }), Fail, "1 to 50", 0},
		{"instance a", edited(1, func(_ *testing.T, m string) string { return "ARC-Message-Signature: i=a\r\n" + m }), Fail, "1 to 50", 0},
		{"no instance", edited(1, func(_ *testing.T, m string) string { return "ARC-Message-Signature: a=b\r\n" + m }), Fail, "no instance", 0},
		{"an empty field", edited(1, func(_ *testing.T, m string) string { return "ARC-Seal:\r\n" + m }), Fail, "no tags", 0},
		{"a header that is none", edited(1, func(_ *testing.T, m string) string { return swap(t0, m, "MIME-Version: 1.0", "no field") }), Fail, "not a header field", 0},
		{"no chain in a header that is none", func(*testing.T) string { return "From: a\r\nno field\r\n\r\n" }, None, "", 0},
	}
}

// t0 is for edits whose text is surely there.
var t0 testing.TB = &testing.T{}

func aars() []verdict {
	aar := func(text string) func(t *testing.T) string { return made(func(f *forged) { f.aar = text }) }
	return []verdict{
		{"AAR with comments", aar(" (a (b) \\) c) i (x) = (y)\r\n 1 (z) ; one.example; none"), Pass, "", 0},
		{"AAR with i=01", aar(" i=01; one.example; none"), Pass, "", 0},
		{"AAR without space", aar("i=1;one.example;none"), Pass, "", 0},
		{"AAR with odd results", aar(` i=1; not; an " authres ((payload`), Pass, "", 0},
		{"AAR with i= last", aar(" one.example; none; i=1"), Fail, "does not come first", 0},
		{"AAR without i=", aar(" one.example; none"), Fail, "does not come first", 0},
		{"AAR without semicolon", aar(" i=1 one.example"), Fail, "no semicolon", 0},
		{"AAR with I=", aar(" I=1; one.example; none"), Fail, "does not come first", 0},
		{"AAR with open comment", aar(" (i=1; one.example"), Fail, "does not come first", 0},
		{"AAR of another instance", aar(" i=2; one.example; none"), Fail, "has no", 0},
		{"AAR changed", edited(1, func(t *testing.T, m string) string { return swap(t, m, "spf=pass", "spf=fail") }), Fail, "seal of instance 1", 0},
		{"AAR of the first of two changed", edited(2, func(t *testing.T, m string) string {
			return replaced(t, m, aarName, 1, func(s string) string { return swap(t, s, "dmarc=pass", "dmarc=fail") })
		}), Fail, "seal of instance 2", 0},
		{"AAR refolded", edited(1, func(t *testing.T, m string) string {
			return replaced(t, m, aarName, 1, func(s string) string { return strings.ReplaceAll(s, " ", "\r\n \t ") })
		}), Pass, "", 0},
	}
}

func seals() []verdict {
	as := func(tags string) func(t *testing.T) string { return made(func(f *forged) { f.as = tags }) }
	more := func(tags string) func(t *testing.T) string { return as(asTags(1, None) + "; " + tags) }
	field := func(old, new string) func(t *testing.T) string {
		return edited(2, func(t *testing.T, m string) string {
			return replaced(t, m, asName, 2, func(s string) string { return swap(t, s, old, new) })
		})
	}
	return []verdict{
		{"AS with unknown tags", more("zz=1; c=simple; bh=; l=5"), Pass, "", 0},
		{"AS with h=", more("h=from"), Fail, "h= is not allowed", 0},
		{"AS with a tag twice", more("cv=none"), Fail, "", 0},
		{"AS with an odd tag name", more("_="), Fail, "valid name", 0},
		{"AS with S= for s=", as(strings.Replace(asTags(1, None), "s=s1", "S=s1", 1)), Fail, "s= is missing", 0},
		{"AS spaced before it was signed", as(strings.NewReplacer("=", " = ", ";", "\t;").Replace(asTags(1, None))), Pass, "", 0},
		{"AS first cv=pass", as(asTags(1, Pass)), Fail, "cv=pass", 0},
		{"AS first cv=fail", as(asTags(1, Fail)), Fail, "says that the chain failed", 0},
		{"AS cv of another kind", as(asTags(1, "maybe")), Fail, "cv=maybe", 0},
		{"AS cv in capitals", as(asTags(1, "NONE")), Fail, "cv=NONE", 0},
		{"AS cv empty", as(asTags(1, "")), Fail, "cv=", 0},
		{"AS without cv", as("i=1; a=rsa-sha256; d=one.example; s=s1"), Fail, "cv= is missing", 0},
		{"AS second cv=none", func(t *testing.T) string {
			return forged{instance: 2, ams: amsTags(2), as: asTags(2, None)}.add(t, chained(t, 1))
		}, Fail, "instance 2 says cv=none", 0},
		{"AS second cv=fail", func(t *testing.T) string {
			return forged{instance: 2, ams: amsTags(2), as: asTags(2, Fail), alone: true}.add(t, chained(t, 1))
		}, Fail, "instance 2 says that the chain failed", 0},
		{"AS cv=fail in the middle", func(t *testing.T) string {
			m := forged{instance: 2, ams: amsTags(2), as: asTags(2, Fail), alone: true}.add(t, chained(t, 1))
			return forged{instance: 3, ams: amsTags(3), as: asTags(3, Pass), alone: true}.add(t, m)
		}, Fail, "instance 2 says cv=fail", 0},
		{"AS that covers its own set only", func(t *testing.T) string {
			return forged{instance: 2, ams: amsTags(2), as: asTags(2, Pass), alone: true}.add(t, chained(t, 1))
		}, Fail, "seal of instance 2", 0},
		{"AS first cv=pass, sealed again", func(t *testing.T) string {
			return forged{instance: 2, ams: amsTags(2), as: asTags(2, Pass), alone: true}.add(t, as(asTags(1, Pass))(t))
		}, Fail, "instance 1 says cv=pass", 0},
		{"AS first wrong, sealed again", func(t *testing.T) string { // the seal above is right, and covers it
			m := made(func(f *forged) { f.sealKey = testKeys().other })(t)
			return mustSeal(t, m, "two.example", "s1", testKeys().usual, Result{Status: Pass, Sets: 1})
		}, Fail, "seal of instance 1: the signature is wrong", 0},
		{"AS of another key", made(func(f *forged) { f.sealKey = testKeys().other }), Fail, "seal of instance 1: the signature is wrong", 0},
		{"AS with sha1", as(strings.Replace(asTags(1, None), "sha256", "sha1", 1)), Fail, "algorithm", 0},
		{"AS without algorithm", as("i=1; cv=none; d=one.example; s=s1"), Fail, "a= is missing", 0},
		{"AS with an empty algorithm", as("i=1; a=; cv=none; d=one.example; s=s1"), Fail, "a= is missing", 0},
		{"AS without domain", as("i=1; a=rsa-sha256; cv=none; s=s1"), Fail, "d= is missing", 0},
		{"AS of no domain", as("i=1; a=rsa-sha256; cv=none; s=s1; d=not/a.domain"), Fail, "d= is not", 0},
		{"AS without selector", as("i=1; a=rsa-sha256; cv=none; d=one.example"), Fail, "s= is missing", 0},
		{"AS without time", as("i=1; a=rsa-sha256; cv=none; d=one.example; s=s1"), Pass, "", 0},
		{"AS with an empty time", as("i=1; a=rsa-sha256; cv=none; d=one.example; s=s1; t="), Fail, "t= is not", 0},
		{"AS with no time", as("i=1; a=rsa-sha256; cv=none; d=one.example; s=s1; t=noon"), Fail, "t= is not", 0},
		{"AS with a time in two pieces", as("i=1; a=rsa-sha256; cv=none; d=one.example; s=s1; t=1795 000000"), Fail, "t= is not", 0},
		{"AS with empty b", edited(1, func(t *testing.T, m string) string {
			return replaced(t, m, asName, 1, func(s string) string { return s[:strings.Index(s, "b=")] + "b=\r\n" })
		}), Fail, "b= is missing", 0},
		{"AS without b", edited(1, func(t *testing.T, m string) string {
			return replaced(t, m, asName, 1, func(s string) string { return s[:strings.Index(s, "b=")] + "\r\n" })
		}), Fail, "b= is missing", 0},
		{"AS with a wrong b", made(func(f *forged) { f.broken = func(b string) string { return "AAAA" + b[4:] } }), Fail, "signature is wrong", 0},
		{"AS with b that is no base64", edited(1, func(t *testing.T, m string) string {
			return replaced(t, m, asName, 1, func(s string) string { return s[:strings.Index(s, "b=")] + "b=?!\r\n" })
		}), Fail, "not base64", 0},
		{"b folded oddly", made(func(f *forged) {
			f.broken = func(b string) string { return "\r\n\t" + strings.Join(strings.Split(b, ""), "\r\n ") + " " }
		}), Pass, "", 0},
		{"semicolon at the end", made(func(f *forged) { f.last = "; " }), Pass, "", 0},
		{"tags behind b=", made(func(f *forged) { f.last = "; zz=1" }), Pass, "", 0},
		{"two semicolons", as(strings.Replace(asTags(1, None), ";", ";;", 1)), Fail, "without =", 0},
		{"AS t changed", field("t=1795000000", "t=1795000001"), Fail, "seal of instance 2", 0},
		{"AS domain in capitals later", field("d=two", "d=TWO"), Fail, "seal of instance 2: the signature is wrong", 0},
		{"AS of another domain with the same key", edited(3, func(t *testing.T, m string) string {
			return replaced(t, m, asName, 3, func(s string) string { return swap(t, s, "d=three", "d=wrong") })
		}), Fail, "seal of instance 3: the signature is wrong", 0},
		{"another AMS that is good", func(t *testing.T) string {
			other := only(made(func(f *forged) { f.ams += ":x-odd" })(t), amsName, 1)
			return replaced(t, set1().add(t, plainMessage), amsName, 1, func(string) string { return other })
		}, Fail, "seal of instance 1: the signature is wrong", 0},
		{"AS name in capitals", edited(2, func(t *testing.T, m string) string {
			return strings.ReplaceAll(strings.ReplaceAll(m, asName+":", "ARC-SEAL  :"), amsName, "arc-message-signature")
		}), Pass, "", 0},
		{"AS refolded", edited(2, func(t *testing.T, m string) string {
			return replaced(t, m, asName, 2, func(s string) string {
				return strings.ReplaceAll(strings.TrimSuffix(s, "\r\n"), "; ", "; \r\n\t ") + " \t\r\n"
			})
		}), Pass, "", 0},
		{"AS spaced where it matters", field("cv=pass", "cv = pass"), Fail, "seal of instance 2", 0},
	}
}

func messageSignatures() []verdict {
	ams := func(tags string) func(t *testing.T) string { return made(func(f *forged) { f.ams = tags }) }
	change := func(old, new string) func(t *testing.T) string { return ams(strings.Replace(amsTags(1), old, new, 1)) }
	body := func(n int, old, new string) func(t *testing.T) string {
		return edited(n, func(t *testing.T, m string) string { return swap(t, m, old, new) })
	}
	// put writes something in the place of a tag when the field has been signed.
	put := func(tag, text string) func(t *testing.T) string {
		return func(t *testing.T) string {
			return replaced(t, set1().add(t, plainMessage), amsName, 1, func(s string) string {
				at := strings.Index(s, "; "+tag+"=")
				return s[:at] + text + s[at+2+strings.IndexAny(s[at+2:], ";\r"):]
			})
		}
	}
	// twoTo has two fields of a name when it is signed, which are then others.
	twoTo := func(named, others string) func(t *testing.T) string {
		const signed = "To: a@one.example\r\nTo: b@one.example\r\n"
		return func(t *testing.T) string {
			f := set1()
			f.ams = strings.Replace(f.ams, "h=from:to", "h="+named, 1)
			return swap(t, f.add(t, swap(t, plainMessage, "To: list@one.example\r\n", signed)), signed, others)
		}
	}
	const simpler = "Subject: A letter,\r\n\tfolded  once"
	return []verdict{
		{"AMS simple/simple", change("relaxed/relaxed", "simple/simple"), Pass, "", 0},
		{"AMS simple", change("relaxed/relaxed", "simple"), Pass, "", 0},
		{"AMS relaxed", change("relaxed/relaxed", "relaxed"), Pass, "", 0},
		{"AMS simple/relaxed", change("relaxed/relaxed", "simple/relaxed"), Pass, "", 0},
		{"AMS without c=", change("c=relaxed/relaxed; ", ""), Pass, "", 0},
		{"AMS with another c=", change("relaxed/relaxed", "nofws"), Fail, "c=", 0},
		{"AMS with empty c=", change("relaxed/relaxed", ""), Fail, "c=", 0},
		{"AMS simple, header refolded", func(t *testing.T) string {
			return swap(t, change("relaxed/relaxed", "simple/relaxed")(t), simpler, "Subject: A letter, folded once")
		}, Fail, "message signature of instance 1", 0},
		{"AMS relaxed, header refolded", body(1, simpler, "SUBJECT : A letter, \r\n   folded once  "), Pass, "", 0},
		{"AMS relaxed, body spaced", body(1, "Hello  world ", "Hello \t world\t\t"), Pass, "", 0},
		{"AMS simple, body spaced", func(t *testing.T) string {
			return swap(t, change("relaxed/relaxed", "relaxed/simple")(t), "Hello  world ", "Hello world ")
		}, Fail, "body has been changed", 0},
		{"AMS simple, blank lines at the end", func(t *testing.T) string { return change("relaxed/relaxed", "relaxed/simple")(t) + "\r\n\r\n" }, Pass, "", 0},
		{"blank lines at the end", edited(1, func(_ *testing.T, m string) string { return m + "\r\n \r\n" }), Pass, "", 0},
		{"no line end at the end", edited(1, func(_ *testing.T, m string) string { return strings.TrimRight(m, " \t\r\n") }), Pass, "", 0},
		{"body changed", body(1, "Hello", "Hallo"), Fail, "message signature of instance 1: the body has been changed", 0},
		{"body longer", edited(2, func(_ *testing.T, m string) string { return m + "-- \r\nThe list\r\n" }), Fail, "instance 2: the body has been changed", 0},
		{"subject changed", body(1, "Subject: A", "Subject: [list] A"), Fail, "message signature of instance 1: the signature is wrong", 0},
		{"a second From", edited(1, func(_ *testing.T, m string) string { return "From: evil@bad.example\r\n" + m }), Fail, "message signature", 0},
		{"a field that is not signed", body(1, "X-Odd", "X-Other"), Pass, "", 0},
		{"h= with fields that are not there", change("h=from", "h=from:nothing:from:nothing:x-y"), Pass, "", 0},
		{"h= with a field that comes later", func(t *testing.T) string {
			return "X-Later: 1\r\n" + change("h=from", "h=from:x-later")(t)
		}, Fail, "signature is wrong", 0},
		{"h= in capitals and spaces", change("h=from:to:subject", "h=FROM :\r\n To: SUBJECT"), Pass, "", 0},
		{"h= with a field twice that is there twice", twoTo("from:to:to", "To: a@one.example\r\nTo: b@one.example\r\n"), Pass, "", 0},
		{"h= with a field twice, in another order", twoTo("from:to:to", "To: b@one.example\r\nTo: a@one.example\r\n"), Fail, "signature is wrong", 0},
		{"h= with a field once, of two the upper changed", twoTo("from:to", "To: c@one.example\r\nTo: b@one.example\r\n"), Pass, "", 0},
		{"h= with a field once, of two the lower changed", twoTo("from:to", "To: a@one.example\r\nTo: c@one.example\r\n"), Fail, "signature is wrong", 0},
		{"h= spelled otherwise when it was signed", put("h", "; h=From:to:subject:date"), Fail, "signature is wrong", 0},
		{"h= with an empty name", change("h=from", "h=from::to"), Fail, "no field", 0},
		{"h= in another order later", func(t *testing.T) string {
			return swap(t, set1().add(t, plainMessage), "h=from:to", "h=to:from")
		}, Fail, "message signature of instance 1: the signature is wrong", 0},
		{"h= without From", change("h=from:", "h="), Fail, "does not name From", 0},
		{"h= empty", change("h=from:to:subject:date", "h="), Fail, "h=", 0},
		{"h= missing", change("; h=from:to:subject:date", ""), Fail, "h= is missing", 0},
		{"h= names ARC-Seal", change("h=from", "h=from:ARC-Seal"), Fail, "names ARC-Seal", 0},
		{"h= names the AAR below", func(t *testing.T) string {
			return forged{instance: 2, ams: strings.Replace(amsTags(2), "h=from", "h=from:arc-authentication-results:authentication-results", 1), as: asTags(2, Pass)}.add(t, chained(t, 1))
		}, Pass, "", 0},
		{"h= names the AMS below", func(t *testing.T) string {
			return forged{instance: 2, ams: strings.Replace(amsTags(2), "h=from", "h=from:arc-message-signature", 1), as: asTags(2, Pass)}.add(t, chained(t, 1))
		}, Pass, "", 0},
		{"h= names no field", change("h=from", "h=from:a b"), Fail, "no field", 0},
		{"bh= with a space in it", func(t *testing.T) string {
			_, body := split(plainMessage)
			sum := dkim.NewBodyHash(dkim.Relaxed)
			sum.Write([]byte(body))
			b64 := base64.StdEncoding.EncodeToString(sum.Sum())
			return change("h=from", "bh="+b64[:1]+" "+b64[1:]+"; h=from")(t)
		}, Pass, "", 0},
		{"bh= missing", put("bh", ""), Fail, "bh= is missing", 0},
		{"bh= empty", put("bh", "; bh="), Fail, "bh= is missing", 0},
		{"bh= wrong", change("h=from", "bh=YWJj; h=from"), Fail, "body has been changed", 0},
		{"bh= refolded", edited(1, func(t *testing.T, m string) string {
			return replaced(t, m, amsName, 1, func(s string) string { return swap(t, s, "bh=", "bh=\r\n ") })
		}), Fail, "signature is wrong", 0},
		{"bh= no base64", change("h=from", "bh=#; h=from"), Fail, "bh=", 0},
		{"l=", change("h=from", "l=5; h=from"), Fail, "l= leaves out", 0},
		{"l=, body longer", func(t *testing.T) string { return change("h=from", "l=5; h=from")(t) + "more\r\n" }, Fail, "l= leaves out", 0},
		{"l= no number", change("h=from", "l=x; h=from"), Fail, "l=", 0},
		{"x= over", change("t=1795000000", "t=1700000000; x=1700000001"), Fail, "expired", 0},
		{"x= to come", change("t=1795000000", "t=1795000000; x=1795000001"), Pass, "", 0},
		{"x= before t=", change("t=1795000000", "t=1795000000; x=1794000000"), Fail, "x= lies before", 0},
		{"v= is not looked at", change("a=rsa", "v=7; a=rsa"), Pass, "", 0},
		{"q= of another kind", change("a=rsa", "q=http; a=rsa"), Fail, "q=", 0},
		{"t= with a space in it", change("t=1795000000", "t=1795 000000"), Fail, "t= is not", 0},
		{"a tag twice", put("s", "; s=s1; s=s1"), Fail, "s= is there twice", 0},
		{"a tag in capitals", put("h", "; H=from:to:subject:date"), Fail, "h= is missing", 0},
		{"a tag with an odd name", edited(1, func(t *testing.T, m string) string {
			return replaced(t, m, amsName, 1, func(s string) string { return swap(t, s, "a=rsa", "_=; a=rsa") })
		}), Fail, "valid name", 0},
		{"an unknown tag", change("a=rsa", "zz=; a=rsa"), Pass, "", 0},
		{"AMS without algorithm", change("a=rsa-sha256; ", ""), Fail, "message signature of instance 1: tag a= is missing", 0},
		{"AMS with an empty algorithm", change("rsa-sha256", ""), Fail, "message signature of instance 1: tag a= is missing", 0},
		{"AMS of an algorithm that nobody knows", change("rsa-sha256", "rsa-sha0"), Fail, "algorithm", 0},
		{"AMS without domain", change("d=one.example; ", ""), Fail, "message signature of instance 1: tag d= is missing", 0},
		{"AMS of no domain", change("d=one.example", "d=one..example"), Fail, "message signature of instance 1: tag d= is not", 0},
		{"AMS without b", put("b", ""), Fail, "message signature of instance 1: tag b= is missing", 0},
		{"AMS with empty b", put("b", "; b="), Fail, "message signature of instance 1: tag b= is missing", 0},
		{"AMS with b that is no base64", put("b", "; b=?!"), Fail, "message signature of instance 1: tag b= is not base64", 0},
		{"AMS with sha1", change("rsa-sha256", "rsa-sha1"), Fail, "algorithm", 0},
		{"AMS without selector", change(" s=s1;", ""), Fail, "s= is missing", 0},
		{"AMS with an empty selector", change("s=s1", "s="), Fail, "s= is missing", 0},
		{"AMS without time", change(" t=1795000000;", ""), Pass, "", 0},
		{"AMS with an empty time", change("t=1795000000", "t="), Fail, "t= is not", 0},
		{"AMS with no time", change("t=1795000000", "t=noon"), Fail, "t= is not", 0},
		{"AMS of another key", made(func(f *forged) { f.key, f.sealKey = testKeys().other, testKeys().small }), Fail, "message signature of instance 1: the signature is wrong", 0},
		{"Ed25519", made(func(f *forged) {
			f.key = testKeys().ed
			f.ams = strings.NewReplacer("rsa-", "ed25519-", "s=s1", "s=ed").Replace(f.ams)
			f.as = strings.NewReplacer("rsa-", "ed25519-", "s=s1", "s=ed").Replace(f.as)
		}), Pass, "", 0},
		{"Ed25519 with an RSA key", change("a=rsa-sha256", "a=ed25519-sha256"), Fail, "it is for rsa-sha256", 0},
	}
}

func older() []verdict {
	middle := func(change func(t *testing.T, m string) string, last string) func(t *testing.T) string {
		return func(t *testing.T) string {
			m := change(t, chained(t, 2))
			return mustSeal(t, m, last, "s1", testKeys().other, Result{Status: Pass, Sets: 2})
		}
	}
	return []verdict{
		{"a list changed the subject", middle(func(t *testing.T, m string) string { return swap(t, m, "Subject: A", "Subject: [l] A") }, "three.example"), Pass, "", 3},
		{"a list changed the body", middle(func(t *testing.T, m string) string { return m + "-- \r\nlist\r\n" }, "three.example"), Pass, "", 3},
		{"changed before the second", func(t *testing.T) string {
			m := swap(t, chained(t, 1), "Subject: A", "Subject: [l] A")
			m = mustSeal(t, m, "two.example", "s1", testKeys().usual, Result{Status: Pass, Sets: 1})
			return mustSeal(t, m, "three.example", "s1", testKeys().other, Result{Status: Pass, Sets: 2})
		}, Pass, "", 2},
		{"an older AMS with l=, body longer", func(t *testing.T) string {
			m := made(func(f *forged) { f.ams = strings.Replace(f.ams, "h=from", "l=5; h=from", 1) })(t) + "more\r\n"
			return mustSeal(t, m, "two.example", "s1", testKeys().usual, Result{Status: Pass, Sets: 1})
		}, Pass, "", 2},
		{"an older AMS that cannot be read", func(t *testing.T) string {
			m := made(func(f *forged) { f.ams = strings.Replace(f.ams, "h=from:", "h=", 1) })(t)
			return mustSeal(t, m, "two.example", "s1", testKeys().usual, Result{Status: Pass, Sets: 1})
		}, Pass, "", 2},
		{"an older AMS whose key is gone", func(t *testing.T) string {
			m := made(func(f *forged) { f.ams = strings.Replace(f.ams, "d=one", "d=gone", 1) })(t)
			return mustSeal(t, m, "two.example", "s1", testKeys().usual, Result{Status: Pass, Sets: 1})
		}, Pass, "", 2},
		{"an older AMS whose key cannot be looked up", func(t *testing.T) string {
			m := made(func(f *forged) { f.ams = strings.Replace(f.ams, "d=one", "d=sick", 1) })(t)
			return mustSeal(t, m, "two.example", "s1", testKeys().usual, Result{Status: Pass, Sets: 1})
		}, Pass, "", -1},
	}
}

func dnsCases() []verdict {
	domain := func(name string) func(t *testing.T) string {
		return made(func(f *forged) { f.as = strings.Replace(f.as, "d=one", "d="+name, 1) })
	}
	return []verdict{
		{"no key", domain("nobody"), Fail, "no key record", 0},
		{"a key that is revoked", domain("gone"), Fail, "revoked", 0},
		{"a record that is no key", domain("text"), Fail, "cannot be used", 0},
		{"a key in pieces", domain("pieces"), Pass, "", 0},
		{"a record that is no list", domain("list"), Fail, "cannot be used", 0},
		{"another key", domain("wrong"), Fail, "seal of instance 1: the signature is wrong", 0},
		{"the DNS fails", domain("sick"), TempError, "could not be looked up", 0},
		{"the DNS fails for the AMS", made(func(f *forged) { f.ams = strings.Replace(f.ams, "d=one", "d=sick", 1) }), TempError, "message signature of instance 1", 0},
	}
}

func TestVerify(t *testing.T) {
	var n int
	for _, table := range [][]verdict{structure(), aars(), seals(), messageSignatures(), older(), dnsCases()} {
		for _, c := range table {
			n++
			t.Run(c.name, func(t *testing.T) {
				r := verify(t, testZone(t), c.msg(t))
				if r.Status != c.want || !strings.Contains(r.Reason, c.reason) {
					t.Fatalf("%s, %q, want %s, %q", r.Status, r.Reason, c.want, c.reason)
				}
				if c.want == Pass && r.OldestPass != c.oldest {
					t.Errorf("oldest-pass is %d, want %d", r.OldestPass, c.oldest)
				}
				if (r.Reason == "") != (r.Status == Pass || r.Status == None) || strings.ContainsAny(r.Reason, "\"\\\r\n") {
					t.Errorf("reason %q of %s", r.Reason, r.Status)
				}
			})
		}
	}
	t.Logf("%d cases", n)
}

// TestFullChain: a chain of 50 is legal, asks once for each key, and is not
// extended.
func TestFullChain(t *testing.T) {
	z, k := testZone(t), testKeys()
	msg := plainMessage
	for n := range MaxSets {
		r := Result{Status: Pass, Sets: n}
		if n == 0 {
			r.Status = None
		}
		msg = mustSeal(t, msg, "one.example", "s1", k.small, r)
	}
	began := time.Now()
	r := verify(t, z, msg)
	t.Logf("a chain of %d sets, %d octets of header, in %s", r.Sets, strings.Index(msg, "\r\n\r\n"), time.Since(began).Round(100*time.Microsecond))
	if r.Status != Pass || r.OldestPass != 0 || len(r.Seals) != MaxSets || z.asked.Load() != 1 {
		t.Errorf("%s %q, oldest %d, %d seals, %d lookups", r.Status, r.Reason, r.OldestPass, len(r.Seals), z.asked.Load())
	}
	if _, err := trySeal(t, msg, "one.example", "s1", k.small, r); !errors.Is(err, ErrNotSealed) {
		t.Errorf("a full chain is extended: %v", err)
	}
}

// TestHostileChain: 50 sets of 50 domains, the largest keys, a header up to the
// bound with signatures over all of it: bounded work, which is printed.
func TestHostileChain(t *testing.T) {
	z, k := testZone(t), testKeys()
	long := "X-Long: " + strings.Repeat(strings.Repeat("x ", 35)+"\r\n ", 2000) + "\r\n" // 144 KB that every AMS signs
	msg := long + plainMessage
	for n := 1; n <= MaxSets; n++ {
		name := fmt.Sprintf("h%d.example", n)
		z.records["s1._domainkey."+name] = z.records["s1._domainkey.two.example"]
		cv := Pass
		if n == 1 {
			cv = None
		}
		ams := strings.Replace(strings.Replace(amsTags(n), "one.example", name, 1), "h=from", "h=from:x-long", 1)
		msg = forged{instance: n, ams: ams, as: strings.Replace(asTags(n, cv), "one.example", name, 1), key: k.usual}.add(t, msg)
	}
	began := time.Now()
	r := verify(t, z, msg)
	took := time.Since(began)
	t.Logf("50 sets of 50 domains, %d octets of header: %s in %s, %d lookups", strings.Index(msg, "\r\n\r\n"), r.Status, took.Round(time.Millisecond), z.asked.Load())
	if r.Status != Pass || z.asked.Load() != MaxSets || took > 5*time.Second {
		t.Errorf("%s %q in %s with %d lookups", r.Status, r.Reason, took, z.asked.Load())
	}
	// What is changed costs nothing: no lookup at all.
	z.asked.Store(0)
	if r := verify(t, z, msg+"x"); r.Status != Fail || z.asked.Load() != 0 {
		t.Errorf("%s with %d lookups for a body that was changed", r.Status, z.asked.Load())
	}
}

// TestLargeHeader: beyond the bound nothing is known, and nothing is kept.
func TestLargeHeader(t *testing.T) {
	msg := chained(t, 1)
	big := "X-Long: " + strings.Repeat(strings.Repeat("x", 70)+"\r\n ", 4000) + "\r\n"
	head, body := split(msg)
	if r := verify(t, testZone(t), head+big+"\r\n"+body); r.Status != Fail || !strings.Contains(r.Reason, "too large") {
		t.Errorf("%s %q", r.Status, r.Reason)
	}
	if r := verify(t, testZone(t), big+plainMessage); r.Status != None {
		t.Errorf("%s %q without a chain", r.Status, r.Reason)
	}
	if _, err := trySeal(t, big+plainMessage, "one.example", "s1", testKeys().small, Result{Status: None}); !errors.Is(err, ErrNotSealed) {
		t.Errorf("sealed: %v", err)
	}
}

// TestLookupErrors: which errors of a resolver are for good.
func TestLookupErrors(t *testing.T) {
	msg := chained(t, 1)
	for _, c := range []struct {
		err  error
		want Status
	}{
		{&net.DNSError{Err: "no such host", IsNotFound: true}, Fail},
		{fmt.Errorf("look up: %w", &net.DNSError{Err: "no such host", IsNotFound: true}), Fail},
		{&net.DNSError{Err: "server misbehaving", IsTemporary: true}, TempError},
		{&net.DNSError{Err: "timeout", IsTimeout: true}, TempError},
		{context.DeadlineExceeded, TempError}, {context.Canceled, TempError}, {errors.New("anything"), TempError},
	} {
		z := testZone(t)
		z.fails["s1._domainkey.one.example"] = c.err
		if r := verify(t, z, msg); r.Status != c.want {
			t.Errorf("%v: %s %q", c.err, r.Status, r.Reason)
		}
	}
	v, _ := NewVerifier(Config{Timeout: time.Nanosecond, LookupTXT: func(ctx context.Context, _ string) ([]string, error) {
		<-ctx.Done()
		return nil, ctx.Err()
	}})
	x := v.Begin()
	x.Write([]byte(msg))
	if r := x.Finish(t.Context()); r.Status != TempError {
		t.Errorf("a DNS that says nothing: %s %q", r.Status, r.Reason)
	}
	var told atomic.Int64
	v, _ = NewVerifier(Config{LookupTXT: func(context.Context, string) ([]string, error) { panic("odd") }, Now: func() time.Time { return testNow },
		Panicked: func(name string, what any) {
			if what == "odd" && strings.Contains(name, "._domainkey.") {
				told.Add(1)
			}
		}})
	x = v.Begin()
	x.Write([]byte(msg))
	if r := x.Finish(t.Context()); r.Status != TempError || told.Load() == 0 {
		t.Errorf("a reader that fails: %s %q, told %d times", r.Status, r.Reason, told.Load())
	}
	if _, err := NewVerifier(Config{}); err == nil {
		t.Error("a verifier without a way to look up keys")
	}
}

func TestMethod(t *testing.T) {
	ip4, ip6 := netip.MustParseAddr("::ffff:192.0.2.1"), netip.MustParseAddr("2001:db8::1%eth0")
	for _, c := range []struct {
		r    Result
		ip   netip.Addr
		want string
	}{
		{Result{Status: None}, ip4, "arc=none"},
		{Result{Status: Pass, OldestPass: 0}, ip4, "arc=pass smtp.remote-ip=192.0.2.1 header.oldest-pass=0"},
		{Result{Status: Pass, OldestPass: -1}, ip6, `arc=pass smtp.remote-ip="2001:db8::1"`},
		{Result{Status: Fail, Reason: "no luck", OldestPass: -1}, netip.Addr{}, `arc=fail reason="no luck"`},
	} {
		if got := c.r.Method(c.ip); got != c.want {
			t.Errorf("%s, want %s", got, c.want)
		}
	}
}

// FuzzVerify: nothing that a stranger writes in his header makes a chain pass
// that was not sealed, or harms.
func FuzzVerify(f *testing.F) {
	f.Add("ARC-Seal: i=1; cv=none; a=rsa-sha256; d=one.example; s=s1; b=YWJj\r\n", uint(3))
	f.Add("ARC-Authentication-Results: i=2; x; none\r\nARC-Message-Signature: i=2; h=from\r\n", uint(100))
	z := testZone(f)
	sealed := chained(f, 2)
	head, body := split(sealed)
	want := verify(f, z, sealed)
	f.Fuzz(func(t *testing.T, more string, at uint) {
		fields := fieldsOf(head)
		n := int(at % uint(len(fields)+1))
		msg := strings.Join(fields[:n], "") + more + strings.Join(fields[n:], "") + "\r\n" + body
		r := verify(t, z, msg)
		if r.Status == Pass && (len(r.Seals) != 2 || r.Seals[0] != want.Seals[0] || r.Seals[1] != want.Seals[1]) {
			t.Fatalf("%q made a chain %+v", more, r)
		}
		_, _ = trySeal(t, msg, "one.example", "ed", testKeys().ed, r)
		_ = Results(more, "one.example")
		_ = resultWords(more)
	})
}

// TestBudget: headers share a bound; beyond it nothing is judged, sealed or
// kept.
func TestBudget(t *testing.T) {
	msg := chained(t, 1)
	budget := dkim.NewBudget(20 << 10) // two headers of 8 KiB
	v, err := NewVerifier(Config{LookupTXT: testZone(t).lookup, Budget: budget, Now: func() time.Time { return testNow }})
	if err != nil {
		t.Fatal(err)
	}
	s, err := NewSealer(SealerConfig{Domain: "one.example", Selector: "s1", Budget: budget, Key: func() crypto.Signer { return testKeys().small }})
	if err != nil {
		t.Fatal(err)
	}
	first, second, third, sealing := v.Begin(), v.Begin(), v.Begin(), s.Begin()
	first.Write([]byte(msg[:10]))
	second.Write([]byte(msg[:10]))
	third.Write([]byte(msg))
	sealing.Write([]byte(msg))
	if r := third.Finish(t.Context()); r.Status != TempError || r.Sets != 0 {
		t.Errorf("without room: %+v", r)
	}
	if _, err := sealing.Seal(Result{Status: None}, "x; none", ""); !errors.Is(err, ErrNotSealed) || !strings.Contains(err.Error(), "at once") {
		t.Errorf("sealed without room: %v", err)
	}
	first.Write([]byte(msg[10:]))
	if used := budget.Used(); used != 8<<10 {
		t.Errorf("%d octets are held when one header is over", used)
	}
	if r := first.Finish(t.Context()); r.Status != Pass {
		t.Errorf("with room: %+v", r)
	}
	second.Close() // as when a message breaks off
	second.Close()
	if used := budget.Used(); used != 0 {
		t.Errorf("%d octets are held at the end", used)
	}
	fourth := v.Begin()
	fourth.Write([]byte("X: " + strings.Repeat("y", 15<<10)))
	fourth.Write([]byte(strings.Repeat("y", 15<<10)))
	if fourth.Close(); budget.Used() != 0 {
		t.Errorf("%d octets are held for a large header", budget.Used())
	}
}
