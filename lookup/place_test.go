package lookup

import (
	"context"
	"errors"
	"strings"
	"testing"

	"crossfade/mail"
	"crossfade/router"
)

// TestSides: a proxy reads from the side that is current, also while the user's
// mail is held.
func TestSides(t *testing.T) {
	w := newWorld(t, router.PolicyVerify, settings())
	want := map[router.State]string{
		router.StateOld: "10.0.0.1:143", router.StateSyncing: "10.0.0.1:143", router.StateReady: "10.0.0.1:143", router.StateCutover: "10.0.0.1:143",
		router.StateNew: "10.0.0.2:1143", router.StateDone: "10.0.0.2:1143", router.StateRollback: "10.0.0.2:1143",
	}
	for _, s := range router.States() {
		got, err := w.Service.table(t.Context(), "imap", string(s))
		if err != nil || got != want[s] {
			t.Errorf("%s: %q, %v; want %q", s, got, err, want[s])
		}
	}
}

// TestTransports: mail has no way to either side while it is held.
func TestTransports(t *testing.T) {
	oldWay, newWay, relay := "smtp:[10.0.0.1]:25", "lmtp:inet:10.0.0.2:24", "smtp:[10.0.0.9]:25"
	for _, tt := range []struct{ key, with, without string }{
		{"old@example.org", oldWay, oldWay}, {"syncing@example.org", oldWay, oldWay}, {"ready@example.org", oldWay, oldWay},
		{"cutover@example.org", relay, keepIt}, {"rollback@example.org", relay, keepIt},
		{"new@example.org", newWay, newWay}, {"done@example.org", newWay, newWay},
		{"info@example.org", newWay, newWay}, {"New+tag@Example.ORG", newWay, newWay}, {"info@alias.example", newWay, newWay},
		{"olds@example.org", oldWay, oldWay}, {"both@example.org", relay, "members on both sides"},
		{"loop@example.org", "form a loop", "form a loop"},
		{"onlynew@example.org", newWay, newWay}, {"onlyold@example.org", oldWay, oldWay}, {"nobody@example.org", "-", "-"},
		{"ann@elsewhere.test", "-", "-"}, {"example.org", "-", "-"}, {"@example.org", "-", "-"}, {"*", "-", "-"}, {"a b\"c@example.org", "-", "-"},
		{"x%new@example.org", "-", "-"}, {"new@example.org@example.org", "-", "-"},
	} {
		for _, set := range []Settings{settings(), func() Settings { s := settings(); s.Transports.Relay = ""; return s }()} {
			w := newWorld(t, router.PolicyVerify, set)
			got, err := w.Service.table(t.Context(), "transport", tt.key)
			want := tt.with
			if set.Transports.Relay == "" {
				want = tt.without
			}
			switch {
			case want == "-":
				if !errors.Is(err, errNobody) {
					t.Errorf("%s: %q, %v; want nothing", tt.key, got, err)
				}
			case strings.Contains(want, ":"):
				if err != nil || got != want {
					t.Errorf("%s: %q, %v; want %q", tt.key, got, err, want)
				}
			case answerOf(err) != AnswerTemporary || !strings.Contains(err.Error(), want):
				t.Errorf("%s: %q, %v; want a temporary failure %q", tt.key, got, err, want)
			}
		}
	}
}

func TestPolicies(t *testing.T) {
	for policy, want := range map[router.Policy]string{
		router.PolicyOld: "old", router.PolicyNew: "new", router.PolicyReject: "", router.PolicyVerify: "",
	} {
		w := newWorld(t, policy, settings())
		got, err := w.Service.table(t.Context(), "side", "stranger@example.org")
		if got != want || want == "" && !errors.Is(err, errNobody) {
			t.Errorf("%s: %q, %v", policy, got, err)
		}
		rcpt, _ := w.Service.table(t.Context(), "recipient", "stranger@example.org")
		if (rcpt == "OK") != (want != "") {
			t.Errorf("%s: recipient %q", policy, rcpt)
		}
	}
	w := newWorld(t, router.PolicyVerify, settings(), func(c *Config) { c.Unknown = nil })
	if got, err := w.Service.table(t.Context(), "side", "stranger@example.org"); got != "old" {
		t.Errorf("nobody to ask: %q, %v", got, err)
	}
}

// TestLoginNames: what the backend is told is the name that it knows.
func TestLoginNames(t *testing.T) {
	w := newWorld(t, router.PolicyVerify, settings())
	for given, want := range map[string]string{
		"new": "new", "New@Example.org": "New@Example.org", "new+x@example.org": "new@example.org",
		"info": "new@example.org", "named": "named1", "old@alias.example": "old@example.org",
	} {
		l, err := w.loginPlace(t.Context(), IMAP, given)
		if err != nil || l.name != want {
			t.Errorf("%s: %q, %v; want %q", given, l.name, err, want)
		}
	}
	w.table.set(router.User{Address: "named@example.org", Kind: router.KindMailbox, State: router.StateCutover, OldLogin: "DOM\\named", NewLogin: "named1"})
	if l, err := w.loginPlace(t.Context(), IMAP, "named"); err != nil || l.name != "DOM\\named" || l.up != serversOfTest.Old {
		t.Errorf("before the flip: %+v, %v", l, err)
	}
	for _, given := range []string{"both", "nobody", "", "a\x00b", strings.Repeat("x", 300), "ann@elsewhere.test"} {
		if l, err := w.loginPlace(t.Context(), IMAP, given); !errors.Is(err, errNobody) {
			t.Errorf("%q: %+v, %v", given, l, err)
		}
	}
	if _, err := w.loginPlace(t.Context(), Sieve, "new"); !errors.Is(err, errRefused) {
		t.Errorf("a protocol without servers: %v", err)
	}
	if _, err := w.loginPlace(t.Context(), LMTP, "cutover"); answerOf(err) != AnswerTemporary {
		t.Errorf("a delivery to a user who is held: %v", err)
	}
}

func TestAlias(t *testing.T) {
	w := newWorld(t, router.PolicyVerify, settings())
	for key, want := range map[string]string{
		"info@example.org": "new@example.org", "both@example.org": "old@example.org, new@example.org", "old@alias.example": "old@example.org",
		"info+tag@example.org": "new+tag@example.org",
		"new@example.org":      "", "new+tag@example.org": "", "stranger@example.org": "", "ann@elsewhere.test": "", "example.org": "",
	} {
		got, err := w.Service.table(t.Context(), "alias", key)
		if got != want || want == "" && !errors.Is(err, errNobody) {
			t.Errorf("%s: %q, %v; want %q", key, got, err, want)
		}
	}
}

// TestStoreErrors: what cannot be looked up is temporary, for each table and
// each way in, and never an unknown user.
func TestStoreErrors(t *testing.T) {
	w := newWorld(t, router.PolicyReject, settings())
	w.table.break_(errStore)
	for _, name := range Tables() {
		if name == "sieve" {
			continue // has no servers here
		}
		if got, err := w.Service.table(t.Context(), name, "new@example.org"); answerOf(err) != AnswerTemporary {
			t.Errorf("%s: %q, %v", name, got, err)
		}
	}
	if got := w.socketmap(t.Context(), "transport new@example.org"); !strings.Contains(got, ":TEMP ") {
		t.Errorf("socketmap: %q", got)
	}
	if got := w.tcpTable(t.Context(), "transport", "get new@example.org"); !strings.HasPrefix(got, "400 ") {
		t.Errorf("tcp_table: %q", got)
	}
	if w.said["transport/"+AnswerTemporary] != 3 || w.said["transport/"+AnswerUnknown] != 0 {
		t.Errorf("counted: %v", w.said)
	}
	w.table.break_(nil)
	if got := w.socketmap(t.Context(), "transport new@example.org"); got != netstring("OK lmtp:inet:10.0.0.2:24") {
		t.Errorf("afterwards: %q", got)
	}
}

// TestElsewhere: the Postfix of a side keeps its own users, and sends the
// others here.
func TestElsewhere(t *testing.T) {
	w := newWorld(t, router.PolicyVerify, settings(), func(c *Config) {
		c.Unknown = func(context.Context, mail.Address) Known {
			t.Error("the sides are asked, although one of them asks us")
			return Known{}
		}
	})
	for key, want := range map[string][2]string{ // at old, at new; true: elsewhere
		"old@example.org": {"", "r"}, "ready@example.org": {"", "r"}, "new@example.org": {"r", ""}, "done@example.org": {"r", ""},
		"cutover@example.org": {"r", "r"}, "rollback@example.org": {"r", "r"}, "both@example.org": {"r", "r"}, "olds@example.org": {"", "r"},
		"info@example.org": {"r", ""}, "onlynew@example.org": {"", ""}, "nobody@example.org": {"", ""}, "ann@elsewhere.test": {"", ""},
	} {
		for i, name := range []string{"elsewhere-old", "elsewhere-new"} {
			got, err := w.Service.table(t.Context(), name, key)
			if (got == settings().Transports.Relay) != (want[i] == "r") || (want[i] == "") != errors.Is(err, errNobody) {
				t.Errorf("%s %s: %q, %v", name, key, got, err)
			}
		}
	}
	set := settings()
	set.Transports.Relay = ""
	w.Update(set)
	if got, err := w.Service.table(t.Context(), "elsewhere-old", "new@example.org"); !errors.Is(err, errRefused) {
		t.Errorf("without a way here: %q, %v", got, err)
	}
}

func TestUpdate(t *testing.T) {
	w := newWorld(t, router.PolicyVerify, settings())
	set := settings()
	set.Transports.New = "smtp:[10.9.9.9]"
	w.Update(set)
	if got, err := w.Service.table(t.Context(), "transport", "new@example.org"); got != "smtp:[10.9.9.9]" {
		t.Errorf("%q, %v", got, err)
	}
	w.Update(Settings{})
	if _, err := w.Service.table(t.Context(), "transport", "new@example.org"); !errors.Is(err, errRefused) {
		t.Errorf("without transports: %v", err)
	}
	if (Sides{}).of(mail.New) != (Upstream{}) {
		t.Error("sides")
	}
}
