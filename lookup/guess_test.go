package lookup

import (
	"context"
	"errors"
	"testing"

	"crossfade/mail"
	"crossfade/router"
)

// TestElsewhereWithEachPolicy: who is in no table stays with the server that asks,
// whatever the policy says of strangers, and so does who has both sides.
func TestElsewhereWithEachPolicy(t *testing.T) {
	for _, policy := range []router.Policy{router.PolicyVerify, router.PolicyOld, router.PolicyNew, router.PolicyReject} {
		w := newWorld(t, policy, settings())
		w.table.set(router.User{Address: "dual@example.org", Kind: router.KindMailbox, State: router.StateNew, Deliver: router.DeliverBoth})
		for _, key := range []string{"stranger@example.org", "dual@example.org"} {
			for _, name := range []string{"elsewhere-old", "elsewhere-new"} {
				if got, err := w.Service.table(t.Context(), name, key); !errors.Is(err, errNobody) {
					t.Errorf("policy %s, %s %s: %q, %v", policy, name, key, got, err)
				}
			}
		}
	}
}

// TestGuessIsTemporary: a side that cannot be asked is no answer: who asks us does
// not ask the other side afterwards, as our own delivery does.
func TestGuessIsTemporary(t *testing.T) {
	w := newWorld(t, router.PolicyVerify, settings(), func(c *Config) {
		c.Unknown = func(context.Context, mail.Address) Known { return Known{Exists: true, Side: mail.Old, Guess: true} }
	})
	if got, err := w.Service.table(t.Context(), "transport", "stranger@example.org"); answerOf(err) != AnswerTemporary {
		t.Errorf("transport: %q, %v", got, err)
	}
	for _, p := range []Protocol{IMAP, LMTP} {
		if got, err := w.Service.loginPlace(t.Context(), p, "stranger@example.org"); answerOf(err) != AnswerTemporary {
			t.Errorf("%s: %+v, %v", p, got, err)
		}
	}
}

// TestGroupOverLMTP: a group is somebody.
func TestGroupOverLMTP(t *testing.T) {
	w := newWorld(t, router.PolicyReject, settings())
	for name, members := range map[string][]string{"allnew": {"new@example.org", "done@example.org"}, "mixed": {"new@example.org", "old@example.org"}, "held": {"new@example.org", "cutover@example.org"}} {
		w.table.set(router.User{Address: name + "@example.org", Kind: router.KindGroup, Targets: members})
	}
	if got, err := w.Service.loginPlace(t.Context(), LMTP, "allnew@example.org"); err != nil || got.up.Host != "10.0.0.2" || got.name != "allnew@example.org" {
		t.Errorf("a group on one side: %+v, %v", got, err)
	}
	for _, name := range []string{"mixed", "held"} {
		if got, err := w.Service.loginPlace(t.Context(), LMTP, name+"@example.org"); answerOf(err) != AnswerTemporary {
			t.Errorf("%s: %+v, %v", name, got, err)
		}
	}
	if _, err := w.Service.loginPlace(t.Context(), IMAP, "allnew@example.org"); !errors.Is(err, errNobody) {
		t.Errorf("somebody logs in as a group: %v", err)
	}
}
