package backfill

import (
	"slices"
	"strings"
	"testing"

	"crossfade/backfill/imapconn"

	"github.com/google/go-cmp/cmp"
)

func TestGmailKeywordsOfLabels(t *testing.T) {
	t.Parallel()
	long := strings.Repeat("x", 70)
	labels := []string{"a b", "a_b", "A b", "Work/Kunden", "Gr&APw-n", `q"(x)`, "$Label1", "Junk", long}
	got, problems := gmailKeywords(labels)
	for label, want := range map[string]string{"a_b": "a_b", "Work/Kunden": "Work_Kunden", "Gr&APw-n": "Gr&APw-n", `q"(x)`: "q__x_", "$Label1": "_Label1"} {
		if got[label] != want {
			t.Errorf("%q became %q", label, got[label])
		}
	}
	for _, label := range []string{"a b", "A b", "Junk", long} {
		if k := got[label]; !strings.Contains(k, "_") || k == "a_b" || len(k) > longestKeyword {
			t.Errorf("%q became %q", label, k)
		}
	}
	if len(problems) != 4 {
		t.Errorf("%+v", problems)
	}
	slices.Reverse(labels)
	again, _ := gmailKeywords(labels)
	if d := cmp.Diff(got, again); d != "" {
		t.Errorf("the order matters:\n%s", d)
	}
}

// TestGmailPlaces: whatever the labels, a message has a place.
func TestGmailPlaces(t *testing.T) {
	t.Parallel()
	for _, tt := range []struct {
		labels   []string
		folders  []string
		one      string
		flagsOfF []string
	}{
		{nil, []string{`\Archive`}, `\Archive`, nil},
		{[]string{`\Important`, `\Starred`}, []string{`\Archive`}, `\Archive`, []string{"$Important", `\Flagged`}},
		{[]string{`\Inbox`, `\Sent`, "a"}, []string{"INBOX", `\Sent`, "a"}, "INBOX", nil},
		{[]string{`\Draft`}, []string{`\Drafts`}, `\Drafts`, nil},
		{[]string{`\Unheard of`}, []string{`\Unheard of`}, `\Archive`, nil},
	} {
		f := gmailRules{labels: GmailFolders}.place(tt.labels)
		k, _ := gmailKeywords(userLabels(tt.labels))
		one := gmailRules{labels: GmailKeywords, keywords: k}.place(tt.labels)
		if !slices.Equal(f.folders, tt.folders) || !slices.Equal(f.flags, tt.flagsOfF) || !slices.Equal(one.folders, []string{tt.one}) {
			t.Errorf("%q: %+v, %+v", tt.labels, f, one)
		}
	}
}

func FuzzGmailLabels(f *testing.F) {
	f.Add("a b", "a_b", `\Inbox`)
	f.Add("Gr&APw-n", "$x", "")
	f.Fuzz(func(t *testing.T, a, b, c string) {
		labels := userLabels(slices.DeleteFunc([]string{a, b, c}, func(s string) bool { return s == "" }))
		keywords, _ := gmailKeywords(labels)
		seen := map[string]string{}
		for l, k := range keywords {
			if !imapconn.KeywordOK(k) || strings.HasPrefix(k, `\`) || len(k) > longestKeyword {
				t.Errorf("%q became %q", l, k)
			}
			if other, twice := seen[strings.ToLower(k)]; twice {
				t.Errorf("%q and %q became %q", l, other, k)
			}
			seen[strings.ToLower(k)] = l
		}
		for _, mode := range []GmailLabels{GmailFolders, GmailKeywords} {
			p := gmailRules{labels: mode, keywords: keywords}.place(labels)
			if len(p.folders) == 0 || slices.Contains(p.folders, "") || slices.Contains(p.flags, "") {
				t.Errorf("%s, %q: %+v", mode, labels, p)
			}
		}
	})
}
