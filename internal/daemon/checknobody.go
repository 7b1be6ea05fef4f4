package daemon

import (
	"context"
	"crypto/rand"
	"fmt"
	"strings"

	"crossfade/config"
	"crossfade/mail"
	"crossfade/relay/smtpclient"
)

// checkNobody asks a side about an address that cannot exist. One that takes it takes
// all: it cannot be asked who is there, and it is its own business what becomes of
// mail for nobody.
func checkNobody(ctx context.Context, cfg *config.Config, r mail.Route) Finding {
	f := Finding{What: fmt.Sprintf("backends.%s.smtp, an address that cannot exist", r), OK: true}
	ctx, cancel := context.WithTimeout(ctx, checkTime)
	defer cancel()
	domain, err := config.NormalDomain(cfg.Domains[0])
	if err != nil {
		f.Text = "warning: not asked: " + err.Error()
		return f
	}
	addr := mail.Address{Local: "crossfade-check-" + strings.ToLower(rand.Text()), Domain: domain}
	a, err := askOnce(ctx, cfg, r, addr)
	verify := cfg.Routing.Unknown == "verify"
	switch {
	case err != nil:
		f.Text = "warning: not asked: " + err.Error()
	case a.Reply.Positive() && a.Step == smtpclient.StepRcpt:
		f.Text = fmt.Sprintf("warning: it takes %s: verify cannot tell users apart on this side, import all users", addr)
		if verify {
			f.Text += "; routing.unknown: verify takes mail for any address then: set it to reject when they are imported"
		}
	case a.Reply.UnknownUser():
		f.Text = fmt.Sprintf("refused: %s", a.Reply)
	default:
		f.Text = fmt.Sprintf("warning: it neither takes nor knows it to be unknown: %s", a.Reply)
		if verify {
			f.Text += "; routing.unknown: verify takes mail for any address while a side cannot be asked"
		}
	}
	return f
}

func askOnce(ctx context.Context, cfg *config.Config, r mail.Route, addr mail.Address) (smtpclient.Answer, error) {
	t, err := target(cfg, r, nil)
	if err != nil {
		return smtpclient.Answer{}, err
	}
	conn, err := smtpclient.Dial(ctx, t)
	if err != nil {
		return smtpclient.Answer{}, err
	}
	defer conn.Quit(ctx)
	return conn.Verify(ctx, addr)
}
