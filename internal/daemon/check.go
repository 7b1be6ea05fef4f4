package daemon

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"time"

	"crossfade/backfill/imapconn"
	"crossfade/certs"
	"crossfade/config"
	"crossfade/mail"
	"crossfade/relay/smtpclient"
	"crossfade/router"
	"crossfade/store/redis"
)

// Finding is one thing that Check looked at.
type Finding struct {
	What string `json:"what"`
	OK   bool   `json:"ok"`
	Text string `json:"text"`           // what was seen
	Hint string `json:"hint,omitempty"` // what to do when it is not OK
}

// checkTime bounds each probe.
const checkTime = 15 * time.Second

// Check is [CheckUser] for a user whose logins are his address.
func Check(ctx context.Context, cfg *config.Config, user string) []Finding {
	return CheckUser(ctx, cfg, router.User{Address: user})
}

// CheckUser tries what a configuration needs to work: the store's disk, both
// backends, and the logins. It opens the user's mailbox on both sides; without an
// address that of somebody in the table, when the store can be read, because
// master logins need somebody to be logged in as.
func CheckUser(ctx context.Context, cfg *config.Config, user router.User) []Finding {
	var out []Finding
	for _, w := range cfg.Warnings() {
		out = append(out, Finding{What: "configuration", OK: true, Text: "warning: " + w})
	}
	if shared(cfg) {
		out = append(out, checkTemp())
		out = append(out, checkRedis(ctx, cfg)...)
	} else {
		out = append(out, checkStore(cfg.Store))
	}
	for _, r := range []mail.Route{mail.Old, mail.New} {
		f := checkSMTP(ctx, cfg, r, fmt.Sprintf("backends.%s.smtp", r))
		if out = append(out, f); f.OK {
			out = append(out, checkNobody(ctx, cfg, r))
		}
	}
	if cfg.SMTP.SmartHost.Enabled() {
		out = append(out, checkSMTP(ctx, cfg, mail.Out, "smtp.smart_host.url"))
	}
	out = append(out, checkARC(ctx, cfg)...)
	out = append(out, checkLookup(cfg)...)
	out = append(out, checkTLS(cfg)...)
	out = append(out, checkLogins(cfg)...)
	out = append(out, checkFilter(ctx, cfg)...)
	return append(out, checkIMAP(ctx, cfg, user)...)
}

// checkStore writes and syncs a file where the store is, and times it.
func checkStore(dir string) Finding {
	f := Finding{What: "store " + dir, Hint: "the directory has to be on a local disk that the user who runs crossfade may write to"}
	if _, err := os.Stat(dir); errors.Is(err, os.ErrNotExist) {
		defer os.Remove(dir) // whoever runs the check may not be the relay's user
	}
	if err := os.MkdirAll(dir, 0o700); err != nil {
		f.Text = err.Error()
		return f
	}
	name := filepath.Join(dir, ".check")
	defer os.Remove(name)
	file, err := os.OpenFile(name, os.O_CREATE|os.O_WRONLY|os.O_TRUNC, 0o600)
	if err != nil {
		f.Text = err.Error()
		return f
	}
	defer file.Close()
	const rounds = 20
	began := time.Now()
	for range rounds {
		if _, err := file.Write(make([]byte, 4096)); err != nil {
			f.Text = err.Error()
			return f
		}
		if err := file.Sync(); err != nil {
			f.Text = err.Error()
			return f
		}
	}
	f.OK, f.Hint = true, ""
	f.Text = fmt.Sprintf("a write of 4 KiB is synced in %s", (time.Since(began) / rounds).Round(10*time.Microsecond))
	return f
}

// checkTemp looks whether there is room for what waits on the disk; where the store is
// a directory, that is it.
func checkTemp() Finding {
	f := Finding{What: "temporary files " + os.TempDir(),
		Hint: "set TMPDIR to a directory that the user who runs crossfade may write to: large messages wait there while they are copied, and what an audit has read"}
	file, err := os.CreateTemp("", "crossfade-check-*")
	if err == nil {
		err = errors.Join(file.Close(), os.Remove(file.Name()))
	}
	if err != nil {
		f.Text = err.Error()
		return f
	}
	f.OK, f.Hint, f.Text = true, "", "can be written"
	return f
}

// checkRedis asks whether the server loses nothing that it acknowledged.
func checkRedis(ctx context.Context, cfg *config.Config) []Finding {
	f := Finding{What: "store " + cfg.Store, Hint: "see docs/redis.md"}
	server, err := DialRedis(cfg, nil)
	if err != nil {
		f.Text = err.Error()
		return []Finding{f}
	}
	defer server.Close()
	ctx, cancel := context.WithTimeout(ctx, checkTime)
	defer cancel()
	rep, err := server.Inspect(ctx)
	if err != nil {
		f.Text = err.Error()
		return []Finding{f}
	}
	f.OK, f.Hint = true, ""
	f.Text = fmt.Sprintf("%s, %d masters", rep.Kind, len(rep.Masters))
	out := []Finding{f}
	for _, m := range rep.Masters {
		out = append(out, Finding{What: "store " + m.Addr, OK: true, Text: describeMaster(m)})
	}
	for _, w := range rep.Warnings {
		out = append(out, Finding{What: "store " + cfg.Store, OK: true, Text: "warning: " + w})
	}
	return out
}

func describeMaster(m redis.MasterReport) string {
	memory := fmt.Sprintf("%d MB used, no bound", m.Used>>20)
	if m.Max > 0 {
		memory = fmt.Sprintf("%d of %d MB used", m.Used>>20, m.Max>>20)
	}
	return fmt.Sprintf("%s, durable by %s, waits for %d replicas, %d follow now, %s", m.Version, m.Sync, m.Replicas, m.Online, memory)
}

func checkSMTP(ctx context.Context, cfg *config.Config, r mail.Route, key string) Finding {
	b := backendConfig(cfg, r)
	f := Finding{What: fmt.Sprintf("%s %s", key, b.SMTP), Hint: "is the server up, reachable from here, and does its certificate match?"}
	ctx, cancel := context.WithTimeout(ctx, checkTime)
	defer cancel()
	t, err := target(cfg, r, nil)
	if err != nil {
		f.Text = err.Error()
		return f
	}
	policies, err := checkPolicies(cfg, r, &t)
	if err != nil {
		f.Text = err.Error()
		return f
	}
	book := certs.NewBook(nil)
	t.TLS = (&ourTLS{book: book}).noting(key, t.TLS)
	conn, err := smtpclient.Dial(ctx, t)
	if err != nil {
		f.Text = err.Error()
		return f
	}
	f.OK, f.Hint = true, ""
	f.Text = "connected" + describeSMTP(conn)
	if cfg.SMTP.RequireTLS && !conn.Local() && (!conn.Verified() || !conn.Caps().RequireTLS) {
		f.Text = "warning: smtp.requiretls is on, and mail that asks for it is returned: this server is not checked, or does not offer REQUIRETLS; " + f.Text
	}
	if w := append(policies.warnings(), book.Warnings()...); len(w) > 0 {
		f.Text = "warning: " + strings.Join(w, "; ") + "; " + f.Text
	}
	conn.Quit(ctx)
	return f
}

// describeSMTP names what matters of a server's offers in the field's terms.
func describeSMTP(conn *smtpclient.Conn) string {
	text, c := ", in clear", conn.Caps()
	switch {
	case conn.Verified():
		text = ", encrypted, its certificate is right"
	case conn.Encrypted():
		text = ", encrypted, its certificate was not checked"
	}
	for _, offer := range []struct {
		has  bool
		name string
	}{{c.Pipelining, "PIPELINING"}, {c.EightBitMIME, "8BITMIME"}, {c.SMTPUTF8, "SMTPUTF8"}, {c.DSN, "DSN"}, {c.Chunking, "CHUNKING"}, {c.Enhanced, "ENHANCEDSTATUSCODES"}, {c.RequireTLS, "REQUIRETLS"}} {
		if offer.has {
			text += ", " + offer.name
		}
	}
	if c.MaxSize > 0 {
		text += fmt.Sprintf(", SIZE %d", c.MaxSize)
	}
	return text
}

// somebody gives a mailbox of the table, or why there is none to be had. Nothing
// in the store changes.
func somebody(ctx context.Context, cfg *config.Config) (router.User, string) {
	src, err := openSource(ctx, cfg, cfg.Store)
	switch {
	case errors.Is(err, os.ErrNotExist):
		return router.User{}, "there is no table yet"
	case err != nil:
		return router.User{}, "the table cannot be read: " + err.Error()
	}
	defer src.Close()
	for account, err := range src.Accounts(ctx) {
		switch {
		case err != nil:
			return router.User{}, "the table cannot be read: " + err.Error()
		case account.User != nil && (account.User.Kind == router.KindMailbox || account.User.Kind == ""):
			return *account.User, ""
		}
	}
	return router.User{}, "the table has no mailbox"
}

func checkIMAP(ctx context.Context, cfg *config.Config, user router.User) []Finding {
	if !cfg.Backends.Old.Readable() || cfg.Backends.New.IMAP.IsZero() {
		return []Finding{{What: "imap", OK: true, Text: "warning: not configured for both sides: users cannot be copied, only set by force"}}
	}
	sides, err := loadIMAP(cfg)
	if err != nil {
		return []Finding{{What: "imap_login", Text: err.Error(), Hint: "see docs/configuration.md, imap_login"}}
	}
	if user.Address == "" {
		why := ""
		sctx, cancel := context.WithTimeout(ctx, checkTime)
		user, why = somebody(sctx, cfg)
		cancel()
		if why != "" {
			out := []Finding{{What: "imap", OK: true, Text: "warning: neither the mailboxes nor the logins were tried, because " + why + ": name somebody with --user"}}
			return append(out, checkBase(cfg.Backends.Old.Mailbox)...)
		}
	}
	job, err := (&mailboxes{sides: atomicSides(sides)}).Job(user)
	if err != nil {
		return []Finding{{What: "imap_login", Text: err.Error(), Hint: "see docs/configuration.md, imap_login"}}
	}
	if job.From != nil {
		return []Finding{checkSource(ctx, cfg.Backends.Old.Mailbox, job), checkLogin(ctx, "new", job.Dest)}
	}
	return []Finding{checkLogin(ctx, "old", job.Source), checkLogin(ctx, "new", job.Dest)}
}

func checkLogin(ctx context.Context, side string, a imapconn.Account) Finding {
	f := Finding{What: fmt.Sprintf("backends.%s.imap %s", side, a.Server.Address),
		Hint: "does the user exist there by this name, does the login work by hand, and may a master login open this mailbox?"}
	ctx, cancel := context.WithTimeout(ctx, checkTime)
	defer cancel()
	s, err := (&imapconn.Dialer{}).Open(ctx, a)
	if err != nil {
		f.Text = err.Error()
		return f
	}
	defer s.Close()
	folders, err := s.List()
	if err != nil {
		f.Text = err.Error()
		return f
	}
	f.OK, f.Hint = true, ""
	f.Text = fmt.Sprintf("logged in as %s, %d folders", a.Login.String(), len(folders))
	return f
}
