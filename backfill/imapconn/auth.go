package imapconn

import (
	"context"
	"encoding/base64"
	"errors"
	"fmt"
	"io"
	"strings"

	"github.com/emersion/go-sasl"
)

// Mechanism is the way in which a login is proved to the server.
type Mechanism string

// The mechanisms.
const (
	// MechanismAuto takes AUTHENTICATE PLAIN where the server offers it, else
	// SCRAM-SHA-256 where LOGIN is forbidden, else LOGIN.
	MechanismAuto        Mechanism = ""
	MechanismPlain       Mechanism = "PLAIN"         // RFC 4616
	MechanismLogin       Mechanism = "LOGIN"         // the command of RFC 3501, 6.2.3
	MechanismSCRAM       Mechanism = "SCRAM-SHA-256" // RFC 7677: the password is not sent
	MechanismXOAuth2     Mechanism = "XOAUTH2"       // a bearer token; Google, Microsoft
	MechanismOAuthBearer Mechanism = "OAUTHBEARER"   // a bearer token, RFC 7628
)

// bearer tells whether a mechanism sends a token in place of a password.
func (m Mechanism) bearer() bool { return m == MechanismXOAuth2 || m == MechanismOAuthBearer }

// Tokens gives access tokens for logins. It is called for each connection, by
// several goroutines at once, so it keeps tokens and renews them.
type Tokens interface {
	// Token gives an access token for a login name. A token that the server has
	// just refused is named in refused, and another one is wanted; it is empty
	// at first. The same token may come back where there is no other.
	Token(ctx context.Context, user, refused string) (string, error)
}

// Login says who logs in, and as whom. It prints without its password.
type Login struct {
	User     string // the name that the password or token belongs to (authentication identity)
	Password string
	// Authz is the user whose mailbox is wanted when it is not User (SASL
	// authorization identity, RFC 4422, 3.4.1). Empty: User itself; master users
	// by suffix have it in User already, as "user*master". Not for tokens.
	Authz     string
	Mechanism Mechanism
	Tokens    Tokens // for XOAUTH2 and OAUTHBEARER
}

// name says who is meant, for errors.
func (l Login) name() string {
	if l.Authz != "" {
		return printable(l.Authz) + " (by " + printable(l.User) + ")"
	}
	return printable(l.User)
}

// String gives the names, and never the password.
func (l Login) String() string { return l.name() }

// Format writes the names for every verb, so that none reaches the password.
func (l Login) Format(f fmt.State, _ rune) { _, _ = io.WriteString(f, l.name()) }

// LoginError is a login that the server refused. It does not unwrap to the
// answer: an answer to a login says nothing of a folder or a message, and must
// not be taken for one by who looks for *Error.
type LoginError struct {
	Mechanism Mechanism
	Answer    Error  // secrets are cut out of its text
	Detail    string // what the server said within the mechanism; may be empty
	Renewed   bool   // the token was renewed, and refused again
}

// Error gives the server's words and what to do.
func (e *LoginError) Error() string {
	var b strings.Builder
	fmt.Fprintf(&b, "log in by %s: %s", e.Mechanism, e.Answer.Error())
	if e.Detail != "" {
		fmt.Fprintf(&b, " (%s)", e.Detail)
	}
	switch {
	case e.Busy():
		b.WriteString(": the server is busy or limits logins; this is tried again later")
	case e.Renewed:
		b.WriteString(": a new token was refused, too: may this application open this mailbox? See docs/logins.md")
	case e.Mechanism.bearer():
		b.WriteString(": may this application open this mailbox? See docs/logins.md")
	default:
		b.WriteString(": check name and password, and whether this login may open this mailbox")
	}
	return b.String()
}

// Busy tells whether the server refused for a reason of its own (RFC 5530, 3,
// and the words of single servers), so that the same login may work later.
func (e *LoginError) Busy() bool {
	switch e.Answer.Code {
	case "UNAVAILABLE", "INUSE", "LIMIT", "THROTTLED", "SERVERBUG":
		return true
	}
	text := strings.ToLower(e.Answer.Text)
	for _, words := range []string{"too many", "throttl", "backoff", "try again", "temporar", "unavailable", "maximum number of connections", "bandwidth limit"} {
		if strings.Contains(text, words) {
			return true
		}
	}
	return false
}

// credential is what one attempt proves itself with.
type credential struct {
	secret string // the password or the token
}

// openBearer logs in with a token, and once more with another one when the
// server refuses the first: it may have been withdrawn, or have ended by the
// server's clock. The second login has a connection of its own, because some
// servers close the first.
func (d *Dialer) openBearer(ctx context.Context, acct Account) (*Session, error) {
	l := acct.Login
	if l.Tokens == nil {
		return nil, fmt.Errorf("log in by %s: nobody gives tokens", l.Mechanism)
	}
	token, err := l.Tokens.Token(ctx, l.User, "")
	if err != nil {
		return nil, fmt.Errorf("get an access token: %w", err)
	}
	s, err := d.try(ctx, acct, credential{secret: token})
	var refused *LoginError
	if !errors.As(err, &refused) || refused.Busy() {
		return s, err
	}
	other, tokenErr := l.Tokens.Token(ctx, l.User, token)
	if tokenErr != nil {
		return nil, fmt.Errorf("%w; and no other token can be had: %w", err, tokenErr)
	}
	if other == token {
		return nil, err
	}
	s, err = d.try(ctx, acct, credential{secret: other})
	if errors.As(err, &refused) {
		refused.Renewed = true
	}
	return s, err
}

// login proves who we are, and learns the capabilities that come with it.
func (s *Session) login(cred credential) error {
	l := s.acct.Login
	if strings.ContainsRune(l.User+cred.secret+l.Authz, 0) {
		return errors.New("log in: a NUL in the name or the password cannot be sent")
	}
	mech, err := s.mechanism(l)
	if err != nil {
		return fmt.Errorf("log in: %w", err)
	}
	if err := s.prove(mech, l, cred); err != nil {
		return err
	}
	// Capabilities change with the login; most servers put them in its answer.
	if s.caps == nil {
		return s.capability()
	}
	return nil
}

// mechanism settles on one, and tells when the server does not offer it.
func (s *Session) mechanism(l Login) (Mechanism, error) {
	plain, scram := s.caps["AUTH=PLAIN"], s.caps["AUTH=SCRAM-SHA-256"]
	switch m := l.Mechanism; {
	case m == MechanismAuto && plain:
		return MechanismPlain, nil
	case m == MechanismAuto && scram && (s.caps["LOGINDISABLED"] || l.Authz != ""):
		return MechanismSCRAM, nil
	case m == MechanismAuto && l.Authz != "":
		return m, errors.New("the server does not offer AUTH=PLAIN, which a login on behalf of another needs")
	case m == MechanismLogin && l.Authz != "":
		return m, errors.New("the command LOGIN knows no login on behalf of another: use PLAIN, or a suffix")
	case (m == MechanismAuto || m == MechanismLogin) && s.caps["LOGINDISABLED"]:
		return m, errors.New("the server forbids LOGIN on this connection: does it want TLS?")
	case m == MechanismAuto, m == MechanismLogin:
		return MechanismLogin, nil
	case !s.caps["AUTH="+string(m)]:
		return m, fmt.Errorf("the server does not offer AUTH=%s on this connection; it offers %s", m, s.offers())
	}
	return l.Mechanism, nil
}

// offers lists the mechanisms of the server, for an error.
func (s *Session) offers() string {
	var names []string
	for _, m := range []Mechanism{MechanismPlain, MechanismSCRAM, MechanismXOAuth2, MechanismOAuthBearer} {
		if s.caps["AUTH="+string(m)] {
			names = append(names, string(m))
		}
	}
	if !s.caps["LOGINDISABLED"] {
		names = append(names, "LOGIN")
	}
	if len(names) == 0 {
		return "none that is known here: does it want TLS?"
	}
	return strings.Join(names, ", ")
}

func (s *Session) prove(mech Mechanism, l Login, cred credential) error {
	secrets := &secrets{}
	secrets.add(cred.secret)
	var err error
	var client sasl.Client
	switch mech {
	case MechanismLogin:
		secrets.add(strings.NewReplacer(`\`, `\\`, `"`, `\"`).Replace(cred.secret))
		return secrets.clean(mech, "", s.loginCommand(l.User, cred.secret))
	case MechanismSCRAM:
		client, err = newSCRAM(l.User, cred.secret, l.Authz)
	case MechanismXOAuth2, MechanismOAuthBearer:
		client, err = newBearer(mech, l.User, cred.secret, s.acct.Server.Address)
	default:
		client = sasl.NewPlainClient(l.Authz, l.User, cred.secret)
	}
	if err != nil {
		return secrets.clean(mech, "", fmt.Errorf("log in by %s: %w", mech, err))
	}
	err = s.authenticate(client, secrets)
	detail := ""
	if b, ok := client.(*bearerClient); ok {
		detail = b.detail
	}
	return secrets.clean(mech, detail, err)
}

func (s *Session) loginCommand(user, password string) error {
	c := newCommand("LOGIN")
	if err := errors.Join(c.str(user), c.str(password)); err != nil {
		return err
	}
	told := false
	answer, err := s.roundTrip(c, func(r *response) { told = told || r.name == "CAPABILITY" })
	if err != nil {
		return s.fail(fmt.Errorf("LOGIN: %w", err))
	}
	if !told && answer.code != "CAPABILITY" {
		s.caps = nil
	}
	return answer.err("LOGIN")
}

// maxAuthLine is the longest AUTHENTICATE line with an initial response. Servers
// bound a line at 8,000 octets or somewhat more (RFC 2683, 3.2.1.5); a longer
// token goes out when the server has asked for it.
const maxAuthLine = 7900

// authenticate runs a SASL exchange (RFC 3501, 6.2.2; RFC 4959).
func (s *Session) authenticate(mech sasl.Client, secrets *secrets) error {
	name, ir, err := mech.Start()
	if err != nil {
		return err
	}
	resp := secrets.encode(ir)
	c := newCommand("AUTHENTICATE " + name)
	first := s.caps["SASL-IR"] && len(resp) < maxAuthLine
	if first {
		c.raw(resp)
	}
	s.caps = nil
	tag, early, err := s.send(c, nil)
	if err != nil {
		return s.fail(fmt.Errorf("AUTHENTICATE: %w", s.reason(err, nil)))
	}
	if early != nil {
		return early.err("AUTHENTICATE")
	}
	var step func(challenge []byte) (string, error)
	if !first {
		step = func([]byte) (string, error) { return resp, nil }
	}
	return s.exchange(tag, mech, secrets, step)
}

// exchange answers challenges up to the tagged answer. step, when there is one,
// answers the first.
func (s *Session) exchange(tag string, mech sasl.Client, secrets *secrets, step func([]byte) (string, error)) error {
	var cancelled error
	for range 20 { // no mechanism has more than three
		r, err := s.next()
		if err != nil {
			return s.fail(fmt.Errorf("AUTHENTICATE: %w", err))
		}
		if r.tag != "+" {
			done, err := s.take(r, tag, nil)
			if err != nil {
				return s.fail(fmt.Errorf("AUTHENTICATE: %w", err))
			}
			if !done {
				continue
			}
			return s.judge(r, mech, cancelled)
		}
		answer := "*" // gives up (RFC 3501, 6.2.2)
		if cancelled == nil {
			answer, cancelled = s.respond(r, mech, secrets, &step)
		}
		if _, err := s.bw.WriteString(answer + "\r\n"); err != nil {
			return s.fail(err)
		}
		if err := s.bw.Flush(); err != nil {
			return s.fail(fmt.Errorf("AUTHENTICATE: %w", s.reason(err, nil)))
		}
	}
	return s.fail(errors.New("AUTHENTICATE: the server does not come to an end"))
}

func (s *Session) respond(r *response, mech sasl.Client, secrets *secrets, step *func([]byte) (string, error)) (string, error) {
	if *step != nil {
		answer, err := (*step)(nil)
		*step = nil
		return answer, err
	}
	challenge, err := base64.StdEncoding.DecodeString(strings.TrimSpace(r.text))
	if err != nil {
		return "*", errors.New("the server's challenge is not base64")
	}
	answer, err := mech.Next(challenge)
	if err != nil {
		return "*", err
	}
	return secrets.encode(answer), nil
}

// verifier is a mechanism in which the server has to prove itself, too.
type verifier interface{ Verified() error }

// judge takes the tagged answer. Our own reason to give up goes before the
// server's, which only says that we did.
func (s *Session) judge(r *response, mech sasl.Client, cancelled error) error {
	if cancelled != nil {
		return s.fail(fmt.Errorf("AUTHENTICATE: %w", cancelled))
	}
	if err := r.err("AUTHENTICATE"); err != nil {
		return err
	}
	if v, ok := mech.(verifier); ok {
		if err := v.Verified(); err != nil {
			return s.fail(fmt.Errorf("AUTHENTICATE: %w", err))
		}
	}
	return nil
}
