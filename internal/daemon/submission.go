package daemon

import (
	"context"
	"fmt"
	"net/netip"

	"crossfade/config"
	"crossfade/relay/submission"
	"crossfade/relay/wire"
)

// openLogins reads the names and passwords of those who may submit mail, when
// there is such a file.
func (d *Daemon) openLogins() (err error) {
	if d.cfg.SMTP.UsersFile == "" {
		return nil
	}
	if d.users, err = submission.Open(d.cfg.SMTP.UsersFile, d.log); err != nil {
		return fmt.Errorf("smtp.users_file: %w", err)
	}
	return nil
}

// checkLogins reads the file of those who may log in.
func checkLogins(cfg *config.Config) []Finding {
	if cfg.SMTP.UsersFile == "" {
		return nil
	}
	f := Finding{What: "smtp.users_file " + cfg.SMTP.UsersFile, Hint: "docs/submission.md says how the file is made"}
	users, err := submission.Open(cfg.SMTP.UsersFile, nil)
	if err != nil {
		f.Text = err.Error()
		return []Finding{f}
	}
	f.OK, f.Hint, f.Text = true, "", fmt.Sprintf("%d users may submit mail", users.Len())
	return []Finding{f}
}

// loginCheck is what listeners ask about a login; nil when nobody can log in.
func (d *Daemon) loginCheck() wire.Auth {
	if d.users == nil {
		return nil
	}
	return func(client netip.Addr, user, password string) wire.AuthVerdict {
		// A login waits for a turn of ten seconds at most, which a shutdown can wait for.
		switch d.users.Verify(context.Background(), client, user, password) {
		case submission.Granted:
			return wire.AuthGranted
		case submission.Later:
			return wire.AuthLater
		}
		return wire.AuthRefused
	}
}

// countLogin counts one login.
func (d *Daemon) countLogin(v wire.AuthVerdict) {
	words := map[wire.AuthVerdict]string{wire.AuthGranted: "granted", wire.AuthLater: "later", wire.AuthRefused: "refused"}
	d.metrics.LoggedIn(words[v])
}
