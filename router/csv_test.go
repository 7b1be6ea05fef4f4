package router

import (
	"bytes"
	"fmt"
	"io"
	"strings"
	"testing"
	"testing/iotest"
	"time"

	"github.com/google/go-cmp/cmp"
)

func TestParseCSV(t *testing.T) {
	in := "\ufeffwave,Address , state,kind,target,not_before,deliver,old_login,new_login\r\n" +
		"w1,Ann@Example.org,new,,,2026-03-31,both,ann.old,\r\n" +
		"\r\n" +
		"\"w, 2\",\"\"\"b b\"\"@example.org\",,mailbox,,2026-03-31T20:00:00+02:00,one,,b\r\n" +
		",info@example.org,,,ann@example.org\r\n" +
		",team@example.org,,group,ANN@example.org;bob@example.org info@example.org,,,,\r\n" +
		",@Example.net,,alias,@example.org"
	want := []User{
		{Address: "ann@example.org", State: StateNew, Wave: "w1", NotBefore: time.Date(2026, 3, 31, 0, 0, 0, 0, time.UTC), Deliver: DeliverBoth, OldLogin: "ann.old"},
		{Address: `"b b"@example.org`, Kind: KindMailbox, Wave: "w, 2", NotBefore: time.Date(2026, 3, 31, 18, 0, 0, 0, time.UTC), NewLogin: "b"},
		{Address: "info@example.org", Kind: KindAlias, Targets: []string{"ann@example.org"}},
		{Address: "team@example.org", Kind: KindGroup, Targets: []string{"ann@example.org", "bob@example.org", "info@example.org"}},
		{Address: "@example.net", Kind: KindAlias, Targets: []string{"@example.org"}},
	}
	users, wrong := ParseCSV(iotest.OneByteReader(strings.NewReader(in)), CSVOptions{Domains: []string{"example.org", "example.net"}})
	if wrong != nil {
		t.Fatal(wrong)
	}
	if diff := cmp.Diff(want, users); diff != "" {
		t.Error(diff)
	}
	users, wrong = ParseCSV(strings.NewReader("address;wave\nann@example.org;w1\n"), CSVOptions{})
	if wrong != nil || len(users) != 1 || users[0].Wave != "w1" {
		t.Error(users, wrong)
	}
	// Whoever is named with a wave alone stays what he is, an alias too.
	if users[0].Kind != "" || users[0].State != "" {
		t.Errorf("kind %q and state %q were not given", users[0].Kind, users[0].State)
	}
}

func TestParseCSVErrors(t *testing.T) {
	long := strings.Repeat("x", 300)
	for _, test := range []struct{ in, want string }{
		{"", "line 1: the file is empty"},
		{"\xff\xfea\x00", "UTF-16"},
		{"ann@example.org,new\n", "line 1: the first line has to name the columns"},
		{"adress\n", "line 1, adress: there is no such column: did you mean address?"},
		{"address,wav\n", "did you mean wave?"},
		{"address,nonsense\n", "there are address, state, wave"},
		{"address,wave,wave\n", "twice"},
		{"wave\nw1\n", "there is no column address"},
		{"address\nann@example.org\nbob@example.org\nANN@example.org\n", "line 4, address: ann@example.org was already on line 2"},
		{"address,wave\n\n,w1\n", "line 3, address: it is empty"},
		{"address\nann\n", "line 2, address:"},
		{"address\nann@example.com\n", "line 2, address: example.com is none of our domains (example.org)"},
		{"address,state\nann@example.org,ready\n", "line 2, state: \"ready\": a file can place"},
		{"address,not_before\nann@example.org,soon\n", "line 2, not_before: \"soon\": write it as 2026-03-31"},
		{"address,deliver\nann@example.org,all\n", "use one (or nothing) or both"},
		{"address,kind\nann@example.org,user\n", "use mailbox, alias or group"},
		{"address,kind\nann@example.org,alias\n", "kind alias needs a target"},
		{"address,kind,target\nann@example.org,alias,a@example.org b@example.org\n", "use kind group"},
		{"address,kind,target\nann@example.org,mailbox,a@example.org\n", "a mailbox has no target"},
		{"address,target\nann@example.org,nobody\n", "line 2, target:"},
		{"address,target\nann@example.org,@example.org\n", "domain alias only"},
		{"address,target\n@example.org,ann@example.org\n", "a domain alias has"},
		{"address\n@example.org\n", "is a domain"},
		{"address,target,state\ninfo@example.org,ann@example.org,new\n", "belong to mailboxes"},
		{"address,wave\nann@example.org," + long + "\n", "at most 256 bytes"},
		{"address,wave\nann@example.org,a\x01b\n", "control characters"},
		{"address\nann@example.org,x\n", "line 2: 2 fields, but the header names 1 columns"},
		{"address,wave\nann@example.org,\"x\n", "not CSV"},
		{"address,wave\nann@example.org,a\"x\n", "line 2: not CSV"},
	} {
		users, wrong := ParseCSV(strings.NewReader(test.in), CSVOptions{Domains: []string{"example.org"}})
		if len(wrong) != 1 || !strings.Contains(wrong[0].Error(), test.want) {
			t.Errorf("%q: %v, want %q", test.in, wrong, test.want)
		}
		if len(users) > 2 {
			t.Errorf("%q: %v", test.in, users)
		}
	}
}

func TestParseCSVKeepsGoodLines(t *testing.T) {
	users, wrong := ParseCSV(strings.NewReader("address\nbad\nann@example.org\nworse\nbob@example.org\n"), CSVOptions{})
	if len(users) != 2 || len(wrong) != 2 || wrong[0].Line != 2 || wrong[1].Line != 4 {
		t.Error(users, wrong)
	}
}

func TestParseCSVLimits(t *testing.T) {
	var file bytes.Buffer
	file.WriteString("address\n")
	for i := range 100 {
		fmt.Fprintf(&file, "u%d@example.org\n", i)
	}
	for want, opts := range map[string]CSVOptions{
		"line 52: more than 50 users":              {MaxLines: 50},
		"the file is larger than 1000 bytes":       {MaxBytes: 1000},
		"line 11: stopped reading after 10 errors": {MaxErrors: 10, Domains: []string{"example.com"}},
	} {
		_, wrong := ParseCSV(bytes.NewReader(file.Bytes()), opts)
		if len(wrong) == 0 || !strings.Contains(wrong[len(wrong)-1].Error(), want) {
			t.Errorf("%v, want %q", wrong, want)
		}
	}
	if users, wrong := ParseCSV(bytes.NewReader(file.Bytes()), CSVOptions{MaxBytes: int64(file.Len()), MaxLines: 100}); wrong != nil || len(users) != 100 {
		t.Error("a file of exactly the limits was refused", wrong)
	}
	if _, wrong := ParseCSV(io.MultiReader(strings.NewReader("address\na@example.org\n"), iotest.ErrReader(io.ErrClosedPipe)), CSVOptions{}); len(wrong) != 1 || !strings.Contains(wrong[0].Error(), "line 3: cannot read on") {
		t.Error(wrong)
	}
}

func FuzzParseCSV(f *testing.F) {
	f.Add("address,state,wave,not_before,deliver,kind,target,old_login,new_login\na@example.org,new,w,2026-01-01,both,,,x,y\n")
	f.Add("\ufeffaddress;target\r\n@a.example;@b.example\r\n\"\"\"q\"\"@x\";a@x b@x")
	f.Add("address\n\"")
	f.Fuzz(func(t *testing.T, in string) {
		users, wrong := ParseCSV(strings.NewReader(in), CSVOptions{MaxErrors: 50})
		for _, e := range wrong {
			if e.Line < 1 || e.Text == "" || len(e.Error()) > 2000 {
				t.Errorf("a poor error: %+v", e)
			}
		}
		seen := make(map[string]bool)
		for _, u := range users {
			key, err := normalKey(u.Address)
			if err != nil || key != u.Address || seen[key] || (u.Kind == KindMailbox || u.Kind == "") != (len(u.Targets) == 0) {
				t.Errorf("a wrong user: %+v (%v)", u, err)
			}
			seen[key] = true
		}
	})
}
