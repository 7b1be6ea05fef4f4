package daemon

import (
	"context"
	"fmt"
	"net/netip"

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
