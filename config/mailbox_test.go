package config_test

import (
	"strings"
	"testing"

	"crossfade/config"
)

func TestParseMailbox(t *testing.T) {
	for text, want := range map[string]string{
		"maildir:///srv/vmail/{domain}/{local}/Maildir":             "",
		"maildir:///srv/vmail/{user}?layout=fs":                     "",
		"maildir:///srv/vmail/{user}?layout=maildir++":              "",
		"mbox:///home/{local}/mail?inbox=/var/mail/{local}":         "",
		"pop3s://old.internal":                                      "",
		"pop3+starttls://[2001:db8::1]:1110":                        "",
		"pop3+insecure://127.0.0.1/":                                "",
		"/srv/vmail":                                                "not a URL",
		"pop3://old.internal":                                       "whether to encrypt",
		"imaps://old.internal":                                      "the key imap",
		"sdbox:///srv/{user}":                                       "unknown scheme",
		"maildir://srv/vmail/{user}":                                "three slashes",
		"maildir:///srv/vmail":                                      "the same for all users",
		"maildir:///srv/{login}":                                    "unknown placeholder",
		"maildir:///srv/../{user}":                                  "leads upwards",
		"maildir:///{user}":                                         "every directory of the machine",
		"maildir:///srv/{user}?layout=dbox":                         "unknown layout",
		"maildir:///srv/{user}?inbox=/var/mail/{user}":              "unknown option",
		"mbox:///home/{local}/mail?inbox=/var/mail/spool":           "inbox: ",
		"mbox:///home/{local}/mail?inbox=/a/{user}&inbox=/b/{user}": "twice",
		"pop3s://user:geheim@old.internal":                          "imap_login",
		"pop3s://old.internal/inbox":                                "only scheme://host:port",
		"pop3s://old.internal:70000":                                "port",
	} {
		m, err := config.ParseMailbox(text)
		switch {
		case want == "" && (err != nil || m.String() != text || m.IsZero()):
			t.Errorf("%s: %+v, %v", text, m, err)
		case want != "" && (err == nil || !strings.Contains(err.Error(), want)):
			t.Errorf("%s: %v, want %q", text, err, want)
		case err != nil && strings.Contains(err.Error(), "geheim"):
			t.Errorf("%s: the password is in %v", text, err)
		}
	}
	m, err := config.ParseMailbox("pop3s://old.internal")
	if err != nil || m.Address != "old.internal:995" || m.TLS != config.TLSImplicit || m.Host != "old.internal" {
		t.Errorf("%+v, %v", m, err)
	}
}

// TestMailboxTree: a user's name is part of a path and never leads out of it.
func TestMailboxTree(t *testing.T) {
	for _, c := range []struct{ tree, address, login, base, below string }{
		{"maildir:///srv/vmail/{domain}/{local}/Maildir", "anna@example.org", "", "/srv/vmail", "example.org/anna/Maildir"},
		{"maildir:///srv/vmail/{domain}/{local}/Maildir", "anna@example.org", "a.old", "/srv/vmail", "example.org/a.old/Maildir"},
		{"maildir:///srv/vmail/{domain}/{local}/Maildir", "anna@example.org", "x@legacy.example", "/srv/vmail", "legacy.example/x/Maildir"},
		{"maildir:///srv/vmail/box-{user}.d/", "anna@example.org", "", "/srv/vmail", "box-anna@example.org.d"},
		{"maildir:///srv/{user}", "../../etc@example.org", "", "", ""},
		{"maildir:///srv/{local}/m", "anna@example.org", "..", "", ""},
		{"maildir:///srv/{local}/m", "anna@example.org", ".", "", ""},
		{"maildir:///srv/.{local}/m", "anna@example.org", ".", "", ""},
		{"maildir:///srv/{local}/m", "anna@example.org", "a/b", "", ""},
		{"maildir:///srv/{local}/m", "anna@example.org", "a\x00b", "", ""},
		{"maildir:///srv/{local}/m", "anna@example.org", "{domain}", "", ""},
		{"maildir:///srv/{local}/m", "@example.org", "", "", ""},
	} {
		m, err := config.ParseMailbox(c.tree)
		if err != nil {
			t.Fatal(err)
		}
		base, below, err := m.Tree(c.address, c.login)
		if base != c.base || below != c.below || (err == nil) != (c.base != "") {
			t.Errorf("%s for %q (%q): %q, %q, %v", c.tree, c.address, c.login, base, below, err)
		}
	}
}
