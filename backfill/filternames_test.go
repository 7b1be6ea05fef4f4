package backfill

import "testing"

func TestFilterFolders(t *testing.T) {
	for _, tt := range []struct {
		pattern, name string
		want          bool
	}{
		{"INBOX", "INBOX", true},
		{"inbox", "INBOX", true},
		{"Inbox.*", "INBOX.a.b", true},
		{"Inboxes", "INBOXes", false},
		{"*", "a/b", true},
		{"", "", true},
		{"", "a", false},
		{"Archive*", "Archive/2020", true},
		{"Archive*", "archive", false},
		{"*/Trash", "a/b/Trash", true},
		{"*/Trash", "a/Trash/b", false},
		{"a*a", "a", false}, // both ends, each once
		{"a*a", "aa", true},
		{"a*b*c", "a-b-b-c", true},
		{"a*b*c", "a-c", false},
		{"a*b*b", "a-b", false},
		{"Grüße*", "Grüße 🚀", true},
		{"a?", "ab", false},
	} {
		if got := matchAny([]string{tt.pattern}, tt.name); got != tt.want {
			t.Errorf("%q, %q: %v", tt.pattern, tt.name, got)
		}
	}
	f := Filter{Include: []string{"a*", "b"}, Exclude: []string{"*z"}}
	for name, omitted := range map[string]bool{"a": false, "b": false, "c": true, "az": true, "INBOX": true} {
		if f.omitsFolder(name) != omitted {
			t.Errorf("%q: %v", name, !omitted)
		}
	}
}
