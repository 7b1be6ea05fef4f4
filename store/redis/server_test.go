package redis

import (
	"crypto/tls"
	"strings"
	"testing"
)

func TestParseURL(t *testing.T) {
	for _, tt := range []struct{ url, want, addrs, user, pass string }{
		{"redis://h", "redis://h:6379/0", "h:6379", "", ""},
		{"redis://h:1/5", "redis://h:1/5", "h:1", "", ""},
		{"redis://u:p%40%2F@h/1", "redis://h:6379/1", "h:6379", "u", "p@/"},
		{"redis://:p@[::1]:7/", "redis://[::1]:7/0", "[::1]:7", "", "p"},
		{"redis://[::1]", "redis://[::1]:6379/0", "[::1]:6379", "", ""},
		{"rediss://h:1", "rediss://h:1/0", "h:1", "", ""},
		{"redis+sentinel://a,b:7/main", "redis+sentinel://a:26379,b:7/main/0", "a:26379 b:7", "", ""},
		{"rediss+sentinel://u:p@a/main/3", "rediss+sentinel://a:26379/main/3", "a:26379", "u", "p"},
		{"redis+cluster://a,b:7", "redis+cluster://a:6379,b:7", "a:6379 b:7", "", ""},
		{"rediss+cluster://a/0", "rediss+cluster://a:6379", "a:6379", "", ""},
	} {
		got, err := parseURL(tt.url)
		if err != nil {
			t.Errorf("%s: %v", tt.url, err)
			continue
		}
		if got.String() != tt.want || strings.Join(got.addrs, " ") != tt.addrs || got.user != tt.user || got.pass != tt.pass {
			t.Errorf("%s: got %s %+v", tt.url, got, got)
		}
	}
}

// TestBadURL: each is refused with what to do, and nothing of it that may be a
// password is repeated.
func TestBadURL(t *testing.T) {
	for _, tt := range []struct{ url, want string }{
		{"./data", "no scheme"},
		{"http://h", "unknown scheme"},
		{"redis+alone://h", "unknown scheme"},
		{"redis+://h", "unknown scheme"},
		{"redis://", "host is missing"},
		{"redis://a,b", "redis+sentinel://"},
		{"redis://h/x", "no number of a database"},
		{"redis://h/-1", "no number of a database"},
		{"redis://h:0", "port"},
		{"redis://h:99999", "port"},
		{"redis://::1", "brackets"},
		{"redis://u:s3cret/x@h", "%2F"},
		{"redis://u:s3cret?x@h", "%3F"},
		{"redis://u:s3cret%zz@h", "%25"},
		{"redis://u%z:s3cret@h", "%25"},
		{"redis://h?db=3", "no ?"},
		{"redis+sentinel://h", "master's name"},
		{"redis+cluster://h/2", "only database 0"},
	} {
		s, err := Dial(tt.url)
		if err == nil {
			s.Close()
			t.Errorf("%s was taken", tt.url)
			continue
		}
		if !strings.Contains(err.Error(), tt.want) || strings.Contains(err.Error(), "s3cret") {
			t.Errorf("%s: got %q, want %q", tt.url, err, tt.want)
		}
	}
}

func TestDialOptions(t *testing.T) {
	for _, tt := range []struct {
		url  string
		o    DialOptions
		want string
	}{
		{"redis://u:s3cret@h", DialOptions{Username: "u", Password: "s3cret"}, "beside it"},
		{"redis://h", DialOptions{Username: "u"}, "no password"},
		{"redis+sentinel://h/m", DialOptions{TLS: &tls.Config{MinVersion: tls.VersionTLS12}}, "rediss+sentinel"},
		{"redis://h", DialOptions{Queue: "a}b"}, "queue"},
	} {
		s, err := Dial(tt.url, tt.o)
		if err == nil {
			s.Close()
			t.Errorf("%s %+v was taken", tt.url, tt.o)
			continue
		}
		if !strings.Contains(err.Error(), tt.want) || strings.Contains(err.Error(), "s3cret") {
			t.Errorf("%s: got %q, want %q", tt.url, err, tt.want)
		}
	}
	s, err := Dial("redis://u:s3cret@h/2", DialOptions{Queue: "other"})
	if err != nil {
		t.Fatal(err)
	}
	defer s.Close()
	if s.String() != "redis://h:6379/2" || s.prefix() != "cx:{other}:" {
		t.Errorf("got %s %s", s, s.prefix())
	}
}

func FuzzParseURL(f *testing.F) {
	for _, s := range []string{"redis://u:p@h:1/2", "rediss+sentinel://a,b/m/0", "redis+cluster://[::1]:7,b", "redis://"} {
		f.Add(s)
	}
	f.Fuzz(func(t *testing.T, raw string) {
		got, err := parseURL(raw)
		if err != nil {
			return
		}
		again, err := parseURL(got.String())
		if err != nil || again.String() != got.String() {
			t.Fatalf("%q reads as %s, and that as %s, %v", raw, got, again, err)
		}
	})
}
