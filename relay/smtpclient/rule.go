package smtpclient

import (
	"context"
	"crypto/tls"
	"errors"
	"fmt"
)

// StepPolicy is the question what is demanded of the TLS of a server, before
// anything is sent.
const StepPolicy Step = "TLS policy"

// ErrPolicy marks what fails because of a [Rule] and not of Mode and TLS: without
// the rule the connection might be made.
var ErrPolicy = errors.New("the published policy for this server is not met")

// Rule is what somebody beside the operator demands of one connection, the owner
// of the server by DANE or MTA-STS for one. The zero value demands nothing.
type Rule struct {
	// Name is short, for counting: "tlsa", "sts".
	Name string
	// Require wants TLS also where Mode would do without. Without it a handshake that
	// fails is answered as ever, with clear text where Mode allows that.
	Require bool
	// Verify judges the server, beside what Mode and TLS demand, or instead of that
	// when Alone is set; nil judges nothing.
	Verify func(tls.ConnectionState) error
	Alone  bool
	// Proves says that a server which Verify lets pass is the right one.
	Proves bool
	// Testing says that a refusal of Verify is told to Target.TLSResult and not obeyed.
	Testing bool
	// ServerName is asked for in the handshake instead of that of TLS; empty: no.
	ServerName string
}

// ask looks the rule for this connection up.
func (t *Target) ask(ctx context.Context) (Rule, error) {
	if t.Policy == nil || t.Mode == Insecure || t.Network == "unix" {
		return Rule{}, nil
	}
	rule, err := t.Policy(ctx)
	if err != nil {
		return Rule{}, fmt.Errorf("%w: %w", ErrPolicy, err)
	}
	return rule, nil
}

// apply makes the configuration of a handshake under the rule. tested gets a refusal
// that is not obeyed.
func (r Rule) apply(cfg *tls.Config, tested *error) {
	if r.ServerName != "" {
		cfg.ServerName = r.ServerName
	}
	if r.Alone {
		cfg.InsecureSkipVerify = true
	}
	if r.Verify == nil {
		return
	}
	before := cfg.VerifyConnection
	cfg.VerifyConnection = func(s tls.ConnectionState) error {
		if before != nil {
			if err := before(s); err != nil {
				return err
			}
		}
		err := r.Verify(s)
		if err != nil {
			err = fmt.Errorf("%w: %w", ErrPolicy, err)
		}
		if r.Testing {
			*tested, err = err, nil
		}
		return err
	}
}

// counted tells the target's owner how TLS fared on the connection.
func (c *Conn) counted(err error) {
	if err == nil {
		err = c.tested
	}
	if c.t.TLSResult != nil {
		c.t.TLSResult(c.t.rule.Name, err)
	}
}
