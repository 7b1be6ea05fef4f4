package router

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"log/slog"
	"strings"
	"testing"

	"crossfade/mail"

	"pgregory.net/rapid"
)

func newRouter(t testing.TB, policy Policy, table Table) *Router {
	t.Helper()
	r, err := New(Config{
		Hostname: "mx.example.org", Domains: []string{"Example.org", "example.net"}, Subaddress: "+", Unknown: policy,
	}, table)
	if err != nil {
		t.Fatal(err)
	}
	return r
}

func addr(t testing.TB, s string) mail.Address {
	t.Helper()
	a, err := mail.ParseAddress(s)
	if err != nil {
		t.Fatal(err)
	}
	return a
}

func TestResolve(t *testing.T) {
	table := newTable(
		mailbox("ann@example.org"), mailbox("bob@example.org"), mailbox("own+tag@example.org"), mailbox("own@example.org"), mailbox("50%off@example.org"),
		mailbox("ann@example.net"),
		alias("info@example.org", "ann@example.org"), alias("hello@example.org", "info@example.org"),
		alias("fixed@example.org", "ann+fixed@example.org"),
		alias("gone@example.org", "nobody@example.org"),
		group("team@example.org", "ann@example.org", "bob@example.org", "info@example.org"),
		group("all@example.org", "team@example.org", "ann@example.org", "ghost@example.org"),
		alias("@example.net", "@example.org"),
		alias("loop1@example.org", "loop2@example.org"), alias("loop2@example.org", "loop1@example.org"),
	)
	for _, test := range []struct {
		in     string
		policy Policy
		want   string
	}{
		{in: "ann@example.org", want: "known: ann@example.org"},
		{in: "Ann@EXAMPLE.org", want: "known: Ann@example.org(ann@example.org)"},
		{in: "ann+x@example.org", want: "known: ann+x@example.org(ann@example.org)"},
		{in: "own+tag@example.org", want: "known: own+tag@example.org"},
		{in: "own+TAG@example.org", want: "known: own+TAG@example.org(own+tag@example.org)"},
		{in: "own+other@example.org", want: "known: own+other@example.org(own@example.org)"},
		{in: "info@example.org", want: "known: ann@example.org"},
		{in: "hello@example.org", want: "known: ann@example.org"},
		{in: "hello+T@example.org", want: "known: ann+T@example.org(ann@example.org)"},
		{in: "fixed+x@example.org", want: "known: ann+fixed@example.org(ann@example.org)"},
		{in: "gone@example.org", want: "known: nobody@example.org<old"},
		{in: "gone@example.org", policy: PolicyReject, want: "known: nobody@example.org<old"},
		{in: "gone@example.org", policy: PolicyNew, want: "known: nobody@example.org<new"},
		{in: "team@example.org", want: "known: ann@example.org bob@example.org"},
		{in: "all@example.org", want: "known: ann@example.org bob@example.org ghost@example.org<old"},
		{in: "ann@example.net", want: "known: ann@example.net"}, // exact wins over the domain alias
		{in: "bob@example.net", want: "known: bob@example.org"},
		{in: "bob+x@example.net", want: "known: bob+x@example.org(bob@example.org)"},
		{in: "team@example.net", want: "known: ann@example.org bob@example.org"},
		{in: "nobody@example.net", want: "unknown: nobody@example.org"},
		{in: "nobody+x@example.org", want: "unknown: nobody+x@example.org(nobody@example.org)"},
		{in: "nobody@example.org", policy: PolicyOld, want: "known: nobody@example.org<old"},
		{in: "nobody@example.org", policy: PolicyNew, want: "known: nobody@example.org<new"},
		{in: "nobody@example.org", policy: PolicyReject, want: "unknown: nobody@example.org"},
		{in: "+x@example.org", want: "unknown: +x@example.org"},
		{in: "ann@example.com", want: "not ours: "},
		{in: "ann@sub.example.org", want: "not ours: "},
		{in: "", want: "not ours: "},
		{in: "postmaster@example.org", policy: PolicyReject, want: "known: postmaster@example.org<old"},
		{in: "Postmaster@mx.example.org", policy: PolicyReject, want: "known: Postmaster@example.org(postmaster@example.org)<old"},
		{in: "postmaster@example.org", policy: PolicyNew, want: "known: postmaster@example.org<new"},
		{in: "abuse@mx.example.org", policy: PolicyReject, want: "unknown: abuse@example.org"},
		{in: "ann@mx.example.org", want: "not ours: "},
		// A route inside the local part is one that a backend might follow.
		{in: `"ann@example.com"@example.org`, want: "not ours: "},
		{in: "ann%example.com@example.org", want: "not ours: "},
		{in: "ann%example.com@example.org", policy: PolicyOld, want: "not ours: "},
		{in: "example.com!ann@example.org", policy: PolicyNew, want: "not ours: "},
		{in: "ann+x%example.com@example.org", want: "not ours: "}, // known but for its tag
		{in: "hello+x%example.com@example.org", want: "not ours: "},
		{in: `"+@example.com"@example.net`, want: "not ours: "},
		{in: "50%off@example.org", want: "known: 50%off@example.org"}, // an operator's own
	} {
		t.Run(test.in+"/"+string(test.policy), func(t *testing.T) {
			res, err := newRouter(t, test.policy, table).Resolve(t.Context(), addr(t, test.in))
			if err != nil {
				t.Fatal(err)
			}
			if got := show(res); got != test.want {
				t.Errorf("got  %s\nwant %s", got, test.want)
			}
			for _, r := range res.Recipients {
				if got := r.Given().String(); got != addr(t, test.in).String() {
					t.Errorf("the given address is lost: %s", got)
				}
			}
		})
	}
}

func TestResolveWithoutSubaddress(t *testing.T) {
	r, err := New(Config{Domains: []string{"example.org"}}, newTable(mailbox("ann@example.org")))
	if err != nil {
		t.Fatal(err)
	}
	res, err := r.Resolve(t.Context(), addr(t, "ann+x@example.org"))
	if err != nil || res.Status != Unknown {
		t.Errorf("got %s, %v", show(res), err)
	}
}

func TestResolveTroubleIsTemporary(t *testing.T) {
	long := []User{mailbox("end@example.org")}
	for i := range MaxHops + 1 {
		long = append(long, alias(fmt.Sprintf("h%d@example.org", i), fmt.Sprintf("h%d@example.org", i+1)))
	}
	long[len(long)-1].Targets = []string{"end@example.org"}
	table := newTable(append(long,
		alias("a@example.org", "b@example.org"), alias("b@example.org", "a@example.org"), alias("self@example.org", "self@example.org"),
		group("g@example.org", "end@example.org", "g2@example.org"), group("g2@example.org", "g@example.org"),
		alias("out@example.org", "ann@gmail.example"), alias("none@example.org", ""), User{Address: "empty@example.org", Kind: KindGroup},
		alias("@example.net", "@elsewhere.example"))...)
	var log bytes.Buffer
	r, err := New(Config{Domains: []string{"example.org", "example.net"}, Logger: slog.New(slog.NewTextHandler(&log, nil))}, table)
	if err != nil {
		t.Fatal(err)
	}
	for in, want := range map[string]string{
		"a@example.org":     "loop: a@example.org -> b@example.org -> a@example.org",
		"self@example.org":  "loop",
		"g@example.org":     "loop",
		"h0@example.org":    "more than 16 aliases",
		"out@example.org":   "outside of our domains",
		"none@example.org":  "no address",
		"empty@example.org": "has no target",
		"any@example.net":   "no domain of ours",
	} {
		_, err := r.Resolve(t.Context(), addr(t, in))
		if err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("%s: %v, want %q", in, err, want)
			continue
		}
		if code := mail.AsReply(err).Code; code != 451 {
			t.Errorf("%s: the peer is told %d, not 451", in, code)
		}
		if !strings.Contains(log.String(), in) {
			t.Errorf("%s: nothing in the log", in)
		}
	}
	if res, err := r.Resolve(t.Context(), addr(t, "h1@example.org")); err != nil {
		t.Errorf("a chain of %d was refused: %v", MaxHops, err)
	} else if got := show(res); got != "known: end@example.org" {
		t.Error(got)
	}
	table.fail = errors.New("disk on fire")
	if _, err := r.Resolve(t.Context(), addr(t, "end@example.org")); mail.AsReply(err).Code != 451 || strings.Contains(mail.AsReply(err).Text, "fire") {
		t.Errorf("a sick table: %v", mail.AsReply(err))
	}
}

func TestResolveGroupTooLarge(t *testing.T) {
	users := []User{{Address: "top@example.org", Kind: KindGroup}}
	for g := range 5 {
		sub := group(fmt.Sprintf("g%d@example.org", g))
		for m := range MaxMembers/4 - 1 {
			sub.Targets = append(sub.Targets, fmt.Sprintf("m%d-%d@example.org", g, m))
		}
		users[0].Targets = append(users[0].Targets, sub.Address)
		users = append(users, sub)
	}
	_, err := newRouter(t, PolicyOld, newTable(users...)).Resolve(t.Context(), addr(t, "top@example.org"))
	if !errors.Is(err, ErrTooMany) {
		t.Error(err)
	}
}

// Whatever the table holds, a resolution ends, gives each recipient once, all
// of them ours and none an alias, and gives the same twice.
func TestResolveProperty(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		name := rapid.SampledFrom([]string{"a", "b", "c", "d", "a+t", "b+t"})
		domain := rapid.SampledFrom([]string{"example.org", "example.net"})
		full := rapid.Custom(func(t *rapid.T) string { return name.Draw(t, "name") + "@" + domain.Draw(t, "domain") })
		table := newTable()
		for range rapid.IntRange(0, 12).Draw(t, "users") {
			u := User{Address: full.Draw(t, "address"), Epoch: 1, State: StateOld,
				Kind: rapid.SampledFrom([]Kind{KindMailbox, KindAlias, KindGroup}).Draw(t, "kind")}
			switch u.Kind {
			case KindAlias:
				u.Targets = []string{full.Draw(t, "target")}
			case KindGroup:
				u.Targets = rapid.SliceOfN(full, 1, 4).Draw(t, "targets")
			}
			table.users[u.Address] = u
		}
		for _, d := range []string{"example.org", "example.net"} {
			if rapid.Bool().Draw(t, "domain alias") {
				u := alias("@"+d, "@"+domain.Draw(t, "to"))
				table.users[u.Address] = u
			}
		}
		r, err := New(Config{Domains: []string{"example.org", "example.net"}, Subaddress: "+"}, table)
		if err != nil {
			t.Fatal(err)
		}
		var all []User
		for _, u := range table.users {
			all = append(all, u)
		}
		checked := r.CheckAliases(context.Background(), all)
		for key, u := range table.users {
			if key[0] == '@' {
				key = "zz" + key
			}
			a, err := mail.ParseAddress(key)
			if err != nil {
				t.Fatal(err)
			}
			one, err1 := r.Resolve(context.Background(), a)
			two, err2 := r.Resolve(context.Background(), a)
			if show(one) != show(two) || (err1 == nil) != (err2 == nil) {
				t.Fatalf("%s: %s, %v and then %s, %v", key, show(one), err1, show(two), err2)
			}
			if err1 != nil {
				var loop *LoopError
				if !errors.As(err1, &loop) {
					t.Fatalf("%s: %v", key, err1)
				}
				if checked == nil && u.Kind != KindMailbox {
					t.Fatalf("%s loops, and CheckAliases saw nothing", key)
				}
				continue
			}
			seen := make(map[string]bool)
			for _, rcpt := range one.Recipients {
				final := table.users[rcpt.User]
				if seen[rcpt.Addr.Key()] || !r.Ours(rcpt.Addr.Domain) || final.Kind == KindAlias || final.Kind == KindGroup {
					t.Fatalf("%s: a wrong recipient in %s", key, show(one))
				}
				seen[rcpt.Addr.Key()] = true
			}
		}
	})
}

func TestCheckAliases(t *testing.T) {
	r := newRouter(t, PolicyVerify, newTable(mailbox("ann@example.org"), alias("a@example.org", "b@example.org")))
	if err := r.CheckAliases(t.Context(), []User{
		alias("info@example.org", "ann@example.org"), group("g@example.org", "ann@example.org", "info@example.org"),
		alias("@example.net", "@example.org"), {Address: "new@example.org", Kind: KindMailbox},
	}); err != nil {
		t.Errorf("good lines were refused: %v", err)
	}
	for want, u := range map[string]User{
		"loop: b@example.org -> a@example.org -> b@example.org": alias("b@example.org", "a@example.org"),
		"this relay does not forward; let the mailbox do it":    alias("x@example.org", "ann@gmail.example"),
		"this relay does not forward":                           alias("@example.net", "@gmail.example"),
		"example.com is none of our domains":                    alias("x@example.com", "ann@example.org"),
		"add it to domains in the configuration first":          alias("@example.com", "@example.org"),
		"one target of the form @example.org":                   alias("@example.net", "ann@example.org"),
		"an alias has one target, not 2":                        {Address: "x@example.org", Kind: KindAlias, Targets: []string{"ann@example.org", "b@example.org"}},
		"a group needs at least one target":                     {Address: "x@example.org", Kind: KindGroup},
		"a mailbox has no target":                               {Address: "x@example.org", Kind: KindMailbox, Targets: []string{"ann@example.org"}},
		"write x@example.org":                                   alias("X@example.org", "ann@example.org"),
		"loop: ":                                                alias("@example.org", "@example.org"),
	} {
		err := r.CheckAliases(t.Context(), []User{u})
		if err == nil || !strings.Contains(err.Error(), want) || !strings.Contains(err.Error(), u.Address) {
			t.Errorf("%v: %v, want %q", u, err, want)
		}
	}
}

func TestReload(t *testing.T) {
	r := newRouter(t, PolicyVerify, newTable(mailbox("ann@example.org")))
	for want, c := range map[string]Config{
		"domains: at least one": {},
		"domains: ":             {Domains: []string{"bad domain"}},
		"hostname: ":            {Domains: []string{"example.com"}, Hostname: "a b"},
		"routing.unknown":       {Domains: []string{"example.com"}, Unknown: "maybe"},
		"routing.subaddress":    {Domains: []string{"example.com"}, Subaddress: "@"},
	} {
		if err := r.Reload(c); err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("%+v: %v, want %q", c, err, want)
		}
	}
	if !r.Ours("example.org") {
		t.Fatal("a bad configuration took effect")
	}
	if err := r.Reload(Config{Domains: []string{"example.com"}, Unknown: PolicyNew}); err != nil {
		t.Fatal(err)
	}
	if r.Ours("example.org") || !r.Ours("example.com") || r.Unknown() != PolicyNew || strings.Join(r.Domains(), " ") != "example.com" {
		t.Error("the new configuration did not take effect")
	}
	if _, err := New(Config{Domains: []string{"example.com"}}, nil); err == nil {
		t.Error("no table, no error")
	}
}

func TestExplain(t *testing.T) {
	held := User{Address: "held@example.org", State: StateCutover, Epoch: 7, Deliver: DeliverBoth}
	table := newTable(held, alias("info@example.org", "held@example.org"), alias("a@example.org", "a@example.org"),
		alias("@example.net", "@example.org"), group("team@example.org", "held@example.org", "ghost@example.org"))
	r := newRouter(t, PolicyVerify, table)
	e, err := r.Explain(t.Context(), addr(t, "info+tag@example.net"))
	if err != nil {
		t.Fatal(err)
	}
	var steps []string
	for _, s := range e.Steps {
		steps = append(steps, string(s.Kind))
	}
	if got := strings.Join(steps, " "); got != "lookup subaddress lookup lookup domain-alias lookup subaddress lookup alias lookup subaddress lookup" {
		t.Error(got)
	}
	if len(e.Destinations) != 1 {
		t.Fatalf("%+v", e)
	}
	d := e.Destinations[0]
	if d.Address.String() != "held+tag@example.org" || d.User != "held@example.org" || !d.Held || d.Route != "" || d.Epoch != 7 || d.State != StateCutover || !d.InTable {
		t.Errorf("%+v", d)
	}
	if b, err := json.Marshal(e); err != nil || !strings.Contains(string(b), `"address":"held+tag@example.org"`) {
		t.Errorf("%s, %v", b, err)
	}
	for in, want := range map[string]string{
		"ann@example.com":   "550 5.7.1",
		"a@example.org":     "451 4.3.0",
		"ghost@example.org": "",
	} {
		if e, err := r.Explain(t.Context(), addr(t, in)); err != nil || !strings.HasPrefix(e.Reply, want) || want == "" && e.Reply != "" {
			t.Errorf("%s: %+v, %v", in, e, err)
		}
	}
	if e, _ := r.Explain(t.Context(), addr(t, "team@example.org")); len(e.Destinations) != 2 || e.Destinations[1].InTable || e.Destinations[1].Route != mail.Old {
		t.Errorf("%+v", e)
	}
	if e, _ := newRouter(t, PolicyReject, table).Explain(t.Context(), addr(t, "ghost@example.org")); e.Reply != "550 5.1.1 no such user" || len(e.Destinations) != 0 {
		t.Errorf("%+v", e)
	}
	table.fail = errors.New("sick")
	if _, err := r.Explain(t.Context(), addr(t, "a@example.org")); err == nil {
		t.Error("a sick table is an error")
	}
}

func BenchmarkResolve(b *testing.B) {
	r := newRouter(b, PolicyVerify, newTable(mailbox("ann@example.org")))
	a := addr(b, "ann@example.org")
	b.ReportAllocs()
	for b.Loop() {
		if _, err := r.Resolve(b.Context(), a); err != nil {
			b.Fatal(err)
		}
	}
}
