package config

import (
	"fmt"
	"io/fs"
	"os"
	"time"
)

// Warnings lists what is allowed but should not stay so: secrets that others can read, checks that are switched off,
// times too short for real mail. Each begins with the key. It looks at the files, so call it at the start and after a
// reload, not per message.
func (c *Config) Warnings() []string {
	var out []string
	for _, side := range []struct {
		key string
		b   *Backend
	}{{"backends.old", &c.Backends.Old}, {"backends.new", &c.Backends.New}} {
		if side.b.IMAPLogin != nil {
			for _, w := range side.b.IMAPLogin.Warnings() {
				out = append(out, side.key+".imap_login."+w)
			}
		}
		out = append(out, side.b.warnings(side.key)...)
	}
	for _, file := range []struct{ key, path string }{
		{"smtp.tls.key", c.SMTP.TLS.Key}, {"smtp.arc.key", c.SMTP.ARC.Key}, {"admin.tls.key", c.Admin.TLS.Key}, {"admin.token_file", c.Admin.TokenFile}, {"lookup.token_file", c.Lookup.TokenFile}, {"smtp.smart_host.password_file", c.SMTP.SmartHost.PasswordFile},
	} {
		out = appendExposed(out, file.key, file.path)
	}
	if v := c.SMTP.TLS.MinVersion; v == "1.0" || v == "1.1" {
		out = append(out, fmt.Sprintf("smtp.tls.min_version: clients may use TLS %s, which is broken and forbidden by RFC 8996", v))
	}
	if host, _, err := parseListen(c.Admin.Listen); err == nil && c.Admin.Insecure && !c.Admin.TLS.Enabled() && !isLoopback(host) {
		out = append(out, fmt.Sprintf("admin.insecure: the token crosses the network readable on %s", c.Admin.Listen))
	}
	if expire := time.Duration(c.Queue.Expire); expire < day {
		out = append(out, fmt.Sprintf("queue.expire: %s bounces mail after less than a day (RFC 5321 asks for 4 to 5)", c.Queue.Expire))
	}
	out = append(out, c.lookupWarnings()...)
	return append(out, c.backfillWarnings()...)
}

func (b *Backend) warnings(key string) []string {
	var out []string
	if b.TLS.InsecureSkipVerify {
		out = append(out, key+".tls.insecure_skip_verify: any certificate is accepted, also a forged one")
	}
	if !b.IMAP.IsZero() && b.IMAP.TLS == TLSNone && !b.IMAP.Loopback() {
		out = append(out, fmt.Sprintf("%s.imap: passwords and mailboxes cross the network to %s readable", key, b.IMAP.Address))
	}
	if b.Mailbox.Kind == MailboxPOP3 && b.Mailbox.TLS == TLSNone && !b.Mailbox.Loopback() {
		out = append(out, fmt.Sprintf("%s.mailbox: passwords and mailboxes cross the network to %s readable", key, b.Mailbox.Address))
	}
	return out
}

// Warnings lists files with passwords and tokens that others than their owner and group can read or write, beginning with the key
// below imap_login. Files that are absent are left to Password and Passwords.
func (l *Login) Warnings() []string {
	out := appendExposed(nil, "password_file", l.PasswordFile)
	out = appendExposed(out, "passwords_file", l.PasswordsFile)
	if l.Token != nil {
		out = append(out, l.Token.warnings()...)
	}
	return out
}

// appendExposed adds a warning when everybody on the machine may read or write a regular file that holds a secret.
func appendExposed(out []string, key, path string) []string {
	if path == "" {
		return out
	}
	info, err := os.Stat(path)
	if err != nil || !info.Mode().IsRegular() || info.Mode().Perm()&fs.FileMode(0o006) == 0 {
		return out
	}
	return append(out, fmt.Sprintf("%s: everybody on this machine can read or write %s (mode %04o): chmod 600 %s", key, path, info.Mode().Perm(), path))
}
