package imapconn

import (
	"context"
	"encoding/base64"
	"errors"
	"fmt"
	"slices"
	"strings"
	"sync/atomic"
	"testing"

	"github.com/xdg-go/scram"
)

// tokenList gives its tokens one after the other, the last again and again.
type tokenList struct {
	tokens []string
	asked  atomic.Int64
	err    error
}

func (l *tokenList) Token(_ context.Context, _, refused string) (string, error) {
	n := int(l.asked.Add(1))
	if refused != "" && l.err != nil {
		return "", l.err
	}
	return l.tokens[min(n, len(l.tokens))-1], nil
}

const longToken = "ya29.a-token-of-some-length-that-must-not-show"

// bearerFake takes one token and refuses all others as the mechanisms want it.
func bearerFake(t *testing.T, mech Mechanism, good, refusal string) (*fake, *[]string) {
	f := newFake(t)
	f.caps = "IMAP4rev1 SASL-IR AUTH=" + string(mech)
	answers := &[]string{}
	f.hook = func(c *fakeConn, tag, cmd string) bool {
		rest, ok := strings.CutPrefix(cmd, "AUTHENTICATE "+string(mech)+" ")
		if !ok {
			return false
		}
		ir, err := base64.StdEncoding.DecodeString(rest)
		if err == nil && strings.Contains(string(ir), "auth=Bearer "+good+"\x01\x01") {
			c.say("%s OK [CAPABILITY IMAP4rev1] in\r\n", tag)
			return true
		}
		c.say("+ %s\r\n", base64.StdEncoding.EncodeToString([]byte(`{"status":"401","schemes":"bearer","scope":"mail"}`)))
		line, err := c.br.ReadString('\n')
		if err != nil {
			return true
		}
		f.mu.Lock()
		*answers = append(*answers, strings.TrimRight(line, "\r\n"))
		f.mu.Unlock()
		c.say("%s NO %s\r\n", tag, strings.ReplaceAll(refusal, "SENT", longToken[:20]))
		return true
	}
	return f, answers
}

func TestBearerTokenIsRenewedOnce(t *testing.T) {
	for mech, dummy := range map[Mechanism]string{MechanismXOAuth2: "", MechanismOAuthBearer: "AQ=="} {
		f, answers := bearerFake(t, mech, "good", "[AUTHENTICATIONFAILED] no SENT")
		acct := f.account()
		tokens := &tokenList{tokens: []string{longToken, "good"}}
		acct.Login = Login{User: "anna@example.org", Mechanism: mech, Tokens: tokens}
		s, err := (&Dialer{}).Open(t.Context(), acct)
		if err != nil {
			t.Fatal(mech, err)
		}
		s.Close()
		if tokens.asked.Load() != 2 || f.conns != 2 || !slices.Equal(*answers, []string{dummy}) {
			t.Errorf("%s: %d tokens, %d connections, answers %q", mech, tokens.asked.Load(), f.conns, *answers)
		}
	}
}

// TestBearerRefused: who, what the server said, what to do, and no token.
func TestBearerRefused(t *testing.T) {
	tests := map[string]struct {
		tokens  *tokenList
		refusal string
		want    []string
		asked   int64
	}{
		"twice":          {&tokenList{tokens: []string{longToken, longToken + "2"}}, "[AUTHENTICATIONFAILED] no SENT", []string{"anna", "XOAUTH2", "AUTHENTICATIONFAILED", "status 401, scope mail", "a new token was refused"}, 2},
		"no other token": {&tokenList{tokens: []string{longToken}}, "AUTHENTICATE failed.", []string{"AUTHENTICATE failed.", "docs/logins.md"}, 2},
		"no renewal":     {&tokenList{tokens: []string{longToken}, err: errors.New("the tenant is gone")}, "no", []string{"the tenant is gone", "the server answered NO"}, 2},
		"busy":           {&tokenList{tokens: []string{longToken, "other"}}, "[UNAVAILABLE] later", []string{"tried again later"}, 1},
		"too many":       {&tokenList{tokens: []string{longToken, "other"}}, "Too many simultaneous connections.", []string{"tried again later"}, 1},
	}
	for name, tt := range tests {
		t.Run(name, func(t *testing.T) {
			f, _ := bearerFake(t, MechanismXOAuth2, "good", tt.refusal)
			acct := f.account()
			acct.Login = Login{User: "anna@example.org", Mechanism: MechanismXOAuth2, Tokens: tt.tokens}
			_, err := (&Dialer{}).Open(t.Context(), acct)
			var refused *LoginError
			var answer *Error
			if !errors.As(err, &refused) || errors.As(err, &answer) {
				t.Fatalf("%v", err)
			}
			for _, w := range tt.want {
				if !strings.Contains(err.Error(), w) {
					t.Errorf("%v lacks %q", err, w)
				}
			}
			if strings.Contains(err.Error(), longToken[:14]) || tt.tokens.asked.Load() != tt.asked {
				t.Errorf("%d tokens: %v", tt.tokens.asked.Load(), err)
			}
		})
	}
}

// TestFirstMessages: the octets of the mechanisms, and names that would break out of them.
func TestFirstMessages(t *testing.T) {
	for _, tt := range []struct {
		mech             Mechanism
		user, want, fail string
	}{
		{MechanismXOAuth2, "a@b", "user=a@b\x01auth=Bearer tok\x01\x01", ""},
		{MechanismOAuthBearer, "a=,b@c", "n,a=a=3D=2Cb@c,\x01host=imap.example\x01port=993\x01auth=Bearer tok\x01\x01", ""},
		{MechanismXOAuth2, "a\x01auth=Bearer x", "", "control character"},
	} {
		c, err := newBearer(tt.mech, tt.user, "tok", "imap.example:993")
		if tt.fail != "" {
			if err == nil || !strings.Contains(err.Error(), tt.fail) {
				t.Error(err)
			}
			continue
		}
		if _, ir, _ := c.Start(); err != nil || string(ir) != tt.want {
			t.Errorf("%q, %v", ir, err)
		}
	}
}

// TestLongTokenWaits: a line that servers do not take is not sent.
func TestLongTokenWaits(t *testing.T) {
	f := newFake(t)
	f.caps = "IMAP4rev1 SASL-IR AUTH=XOAUTH2"
	f.hook = func(c *fakeConn, tag, cmd string) bool {
		if cmd != "AUTHENTICATE XOAUTH2" {
			return false
		}
		c.say("+ \r\n")
		line, _ := c.br.ReadString('\n')
		c.say("%s OK %d\r\n", tag, len(line))
		return true
	}
	acct := f.account()
	acct.Login = Login{User: "a", Mechanism: MechanismXOAuth2, Tokens: &tokenList{tokens: []string{strings.Repeat("x", 9000)}}}
	s, err := (&Dialer{}).Open(t.Context(), acct)
	if err != nil {
		t.Fatal(err)
	}
	s.Close()
}

// scramFake is a server with SCRAM-SHA-256 for anna.
func scramFake(t *testing.T, change func(step int, say string) string) *fake {
	client, err := scram.SHA256.NewClient("anna", "pencil-of-hunter2", "")
	if err != nil {
		t.Fatal(err)
	}
	stored, err := client.GetStoredCredentialsWithError(scram.KeyFactors{Salt: "salt-of-16-bytes", Iters: 4096})
	if err != nil {
		t.Fatal(err)
	}
	srv, err := scram.SHA256.NewServer(func(string) (scram.StoredCredentials, error) { return stored, nil })
	if err != nil {
		t.Fatal(err)
	}
	f := newFake(t)
	f.caps = "IMAP4rev1 SASL-IR LOGINDISABLED AUTH=SCRAM-SHA-256"
	f.hook = func(c *fakeConn, tag, cmd string) bool {
		msg, ok := strings.CutPrefix(cmd, "AUTHENTICATE SCRAM-SHA-256 ")
		if !ok {
			return false
		}
		conv := srv.NewConversation()
		for step := range 2 {
			in, _ := base64.StdEncoding.DecodeString(msg)
			out, err := conv.Step(string(in))
			if err != nil {
				c.say("%s NO [AUTHENTICATIONFAILED] %v\r\n", tag, err)
				return true
			}
			if change != nil {
				out = change(step, out)
			}
			if out == "" {
				break
			}
			c.say("+ %s\r\n", base64.StdEncoding.EncodeToString([]byte(out)))
			line, _ := c.br.ReadString('\n')
			if msg = strings.TrimRight(line, "\r\n"); msg == "*" {
				c.say("%s BAD cancelled\r\n", tag)
				return true
			}
		}
		c.say("%s OK [CAPABILITY IMAP4rev1] in\r\n", tag)
		return true
	}
	return f
}

func TestSCRAM(t *testing.T) {
	for name, tt := range map[string]struct {
		password, want string
		change         func(int, string) string
	}{
		"good":           {"pencil-of-hunter2", "", nil},
		"wrong password": {"other-hunter2-word", "AUTHENTICATIONFAILED", nil},
		"server without proof": {"pencil-of-hunter2", "did not prove", func(step int, say string) string {
			if step == 1 {
				return ""
			}
			return say
		}},
		"server with a wrong proof": {"pencil-of-hunter2", "AUTHENTICATE", func(step int, say string) string {
			if step == 1 {
				return "v=" + base64.StdEncoding.EncodeToString(make([]byte, 32))
			}
			return say
		}},
		"work without end": {"pencil-of-hunter2", "iterations", func(_ int, say string) string { return strings.Replace(say, "i=4096", "i=2147483647", 1) }},
		"too little work":  {"pencil-of-hunter2", "iterations", func(_ int, say string) string { return strings.Replace(say, "i=4096", "i=1", 1) }},
	} {
		t.Run(name, func(t *testing.T) {
			f := scramFake(t, tt.change)
			acct := f.account()
			acct.Login = Login{User: "anna", Password: tt.password} // nothing else is possible
			s, err := (&Dialer{}).Open(t.Context(), acct)
			if tt.want == "" {
				if err != nil {
					t.Fatal(err)
				}
				s.Close()
				return
			}
			if err == nil || !strings.Contains(err.Error(), tt.want) || strings.Contains(err.Error(), "hunter2") {
				t.Errorf("%v, want %q", err, tt.want)
			}
		})
	}
}

// TestMechanismMustBeOffered: nothing weaker is taken in its place.
func TestMechanismMustBeOffered(t *testing.T) {
	for _, mech := range []Mechanism{MechanismSCRAM, MechanismXOAuth2, MechanismOAuthBearer} {
		f := newFake(t)
		acct := f.account()
		acct.Login.Mechanism, acct.Login.Tokens = mech, &tokenList{tokens: []string{"t"}}
		_, err := (&Dialer{}).Open(t.Context(), acct)
		if err == nil || !strings.Contains(err.Error(), "does not offer AUTH="+string(mech)+" on this connection; it offers PLAIN, LOGIN") {
			t.Error(err)
		}
		for _, cmd := range f.seen() {
			if strings.HasPrefix(cmd, "LOGIN") || strings.HasPrefix(cmd, "AUTH") {
				t.Errorf("%s: sent %q", mech, cmd)
			}
		}
	}
}

func TestLoginPrintsNoPassword(t *testing.T) {
	l := Login{User: "anna", Password: "hunter2", Authz: "bob"}
	if text := fmt.Sprintf("%v %+v %#v %s %x", l, Account{Login: l}, l, l, l); strings.Contains(text, "hunter2") || strings.Contains(text, "68756e74") {
		t.Error(text)
	}
}
