package certs

import (
	"bytes"
	"context"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/tls"
	"crypto/x509"
	"errors"
	"fmt"
	"log/slog"
	"math/big"
	"net"
	"net/http"
	"net/http/httptest"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"crossfade/internal/mailtest"
	"crossfade/internal/mailtest/realtest"
)

func authority(t *testing.T) *mailtest.CA {
	t.Helper()
	ca, err := mailtest.NewCA()
	if err != nil {
		t.Fatal(err)
	}
	return ca
}

func write(t *testing.T, ca *mailtest.CA, dir string, ends time.Duration, name string) mailtest.CertFiles {
	t.Helper()
	cert, err := ca.IssueValid(time.Now().Add(-40*24*time.Hour), time.Now().Add(ends), name)
	if err != nil {
		t.Fatal(err)
	}
	files, err := ca.WritePEM(dir, cert)
	if err != nil {
		t.Fatal(err)
	}
	return files
}

func subject(t *testing.T, f *Files) string {
	t.Helper()
	c, err := f.Get(nil)
	if err != nil {
		t.Fatal(err)
	}
	return c.Leaf.Subject.CommonName
}

// TestFiles: what changes is taken, what is broken is not, and each problem is said once.
func TestFiles(t *testing.T) {
	ca, dir := authority(t), t.TempDir()
	var log bytes.Buffer
	files := write(t, ca, dir, 48*time.Hour, "one.example")
	f, err := OpenFiles("smtp.tls", files.Cert, files.Key, slog.New(slog.NewTextHandler(&log, nil)))
	if err != nil {
		t.Fatal(err)
	}
	f.Refresh()
	if got := subject(t, f); got != "one.example" {
		t.Fatal(got)
	}
	write(t, ca, dir, 48*time.Hour, "two.example")
	f.Refresh()
	if got := subject(t, f); got != "two.example" {
		t.Errorf("after a change: %s", got)
	}
	good, _ := os.ReadFile(files.Cert)
	for what, change := range map[string]func(){
		"garbage":       func() { _ = os.WriteFile(files.Cert, []byte("no certificate"), 0o600) },
		"another key":   func() { write(t, ca, dir, time.Hour, "x.example"); _ = os.WriteFile(files.Cert, good, 0o600) },
		"gone":          func() { _ = os.Remove(files.Cert) },
		"already ended": func() { write(t, ca, dir, -time.Hour, "old.example") },
	} {
		log.Reset()
		change()
		f.Refresh()
		f.Refresh()
		if got := subject(t, f); got != "two.example" {
			t.Errorf("%s: %s is shown", what, got)
		}
		if st := f.Status(); st.Problem == "" || st.Since.IsZero() {
			t.Errorf("%s: %+v", what, st)
		}
		if n := strings.Count(log.String(), "cannot be read again"); n != 1 {
			t.Errorf("%s: said %d times", what, n)
		}
	}
	write(t, ca, dir, 72*time.Hour, "three.example")
	f.Refresh()
	if st := f.Status(); subject(t, f) != "three.example" || st.Problem != "" {
		t.Errorf("mended: %+v", st)
	}
	for _, to := range []string{files.Cert + ".away", files.Cert} { // the same file
		from := files.Cert
		if to == from {
			from += ".away"
		}
		if err := os.Rename(from, to); err != nil {
			t.Fatal(err)
		}
		f.Refresh()
	}
	if st := f.Status(); st.Problem != "" {
		t.Errorf("away and back: %+v", st)
	}
}

// TestEndedFromTheStart: a certificate that ended is shown when there is no other.
func TestEndedFromTheStart(t *testing.T) {
	files := write(t, authority(t), t.TempDir(), -time.Hour, "old.example")
	f, err := OpenFiles("smtp.tls", files.Cert, files.Key, nil)
	if err != nil || subject(t, f) != "old.example" {
		t.Errorf("%v", err)
	}
	if w := NewBook(nil, f).Warnings(); len(w) != 1 || !strings.HasPrefix(w[0], "the certificate of smtp.tls ended on ") {
		t.Errorf("%q", w)
	}
}

// TestBook: two weeks before, and in the last quarter of what is made for less.
func TestBook(t *testing.T) {
	now := time.Date(2026, 3, 1, 12, 0, 0, 0, time.UTC)
	day := 24 * time.Hour
	for _, c := range []struct {
		began, ends time.Duration
		due         bool
	}{
		{-60 * day, 15 * day, false}, {-60 * day, 14 * day, true}, {-80 * day, -day, true}, {-30 * day, 30 * day, false},
		{-3 * day, 3 * day, false}, {-5 * day, day, true}, {0, day, false},
	} {
		s := Seen{Name: "x", Began: now.Add(c.began), Ends: now.Add(c.ends)}
		if s.Due(now) != c.due {
			t.Errorf("%v: due %t", c, !c.due)
		}
	}
	var log bytes.Buffer
	b := NewBook(slog.New(slog.NewTextHandler(&log, nil)))
	b.now = func() time.Time { return now }
	ca := authority(t)
	for name, ends := range map[string]time.Duration{"backends.old.smtp": 10 * day, "backends.new.smtp": 40 * day, "backends.new.imap": 20 * time.Hour} {
		cert, err := ca.IssueValid(now.Add(-90*day), now.Add(ends), "x.example")
		if err != nil {
			t.Fatal(err)
		}
		b.Saw(name, cert.Leaf)
	}
	want := []string{"the certificate of backends.new.imap ends in 20h0m0s, on 2026-03-02 08:00 UTC", "the certificate of backends.old.smtp ends in 10 days, on 2026-03-11 12:00 UTC"}
	if got := b.Warnings(); strings.Join(got, "|") != strings.Join(want, "|") {
		t.Errorf("%q", got)
	}
	b.alarm()
	now = now.Add(time.Hour)
	b.alarm()
	if n := strings.Count(log.String(), "renew it"); n != 2 {
		t.Errorf("said %d times:\n%s", n, log.String())
	}
	now = now.Add(24 * time.Hour)
	b.alarm()
	if n := strings.Count(log.String(), "renew it"); n != 4 {
		t.Errorf("said %d times on the second day", n)
	}
}

// TestBackoff grows, and stays within its bounds.
func TestBackoff(t *testing.T) {
	last := time.Duration(0)
	for n := 1; n < 100; n++ {
		d := backoff(n)
		if d < time.Minute || d > 6*time.Hour*6/5 || d < last*5/6 {
			t.Fatalf("%d: %s", n, d)
		}
		last = d
	}
	if last < 6*time.Hour {
		t.Error(last)
	}
}

// TestChallengeAnswers: nothing but what an authority asks for is answered, and nothing comes back that was not asked.
func TestChallengeAnswers(t *testing.T) {
	key, err := newACMEStore(t.TempDir(), "https://ca.example/dir").accountKey()
	if err != nil {
		t.Fatal(err)
	}
	c := newChallenges(slog.New(slog.DiscardHandler))
	none := httptest.NewRecorder()
	c.ServeHTTP(none, httptest.NewRequest(http.MethodGet, "/.well-known/acme-challenge/LoqXcYV8q5ONbJQxbmR7SCTNo3tiAXDfowyjxAjEuX0", nil))
	if none.Code != 404 {
		t.Errorf("without an account: %d", none.Code)
	}
	if err := c.use(key); err != nil {
		t.Fatal(err)
	}
	for path, code := range map[string]int{
		"/.well-known/acme-challenge/LoqXcYV8q5ONbJQxbmR7SCTNo3tiAXDfowyjxAjEuX0": 200,
		"/.well-known/acme-challenge/":                                            404,
		"/.well-known/acme-challenge/short":                                       404,
		"/.well-known/acme-challenge/<script>alert(1)</script>":                   404,
		"/.well-known/acme-challenge/" + strings.Repeat("a", 300):                 404,
		"/":            404,
		"/etc/passwd":  404,
		"/.well-known": 404,
	} {
		w := httptest.NewRecorder()
		r := httptest.NewRequest(http.MethodGet, "/", nil)
		r.URL.Path = path
		c.ServeHTTP(w, r)
		if w.Code != code {
			t.Errorf("%s: %d", path, w.Code)
		}
		if code == 404 && strings.Contains(w.Body.String(), c.thumbprint) {
			t.Errorf("%s: the thumbprint is told", path)
		}
	}
	if _, err := c.cert(&tls.ClientHelloInfo{ServerName: "mx.example.org"}); err == nil {
		t.Error("a certificate for tls-alpn-01 without a challenge")
	}
}

// TestDamagedAccount: an account key that cannot be read keeps nobody from starting and takes no certificate out of use. It
// is told, and another one is made when its file is gone.
func TestDamagedAccount(t *testing.T) {
	cfg := ACMEConfig{Name: "smtp.tls", Directory: "https://ca.example/dir", Names: []string{"mx.example.org"}, Dir: t.TempDir()}
	store := newACMEStore(cfg.Dir, cfg.Directory)
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	der, err := x509.CreateCertificate(rand.Reader, &x509.Certificate{SerialNumber: big.NewInt(1), DNSNames: cfg.Names, NotBefore: time.Now(), NotAfter: time.Now().AddDate(0, 3, 0)},
		&x509.Certificate{}, key.Public(), key)
	if err != nil {
		t.Fatal(err)
	}
	_, text, err := makePair([][]byte{der}, key)
	if err != nil {
		t.Fatal(err)
	}
	for name, data := range map[string][]byte{certificateFile: text, accountFile: []byte("damaged")} {
		if err := store.write(name, data); err != nil {
			t.Fatal(err)
		}
	}
	a, err := NewACME(cfg)
	if err != nil {
		t.Fatal(err)
	}
	if s := a.Status(); !a.Ready() || !strings.Contains(s.Problem, "remove the file") || s.Since.IsZero() || time.Until(s.Next) < 30*time.Second {
		t.Fatalf("%+v, ready %t", s, a.Ready())
	}
	if a.attempt(t.Context()); a.Status().Problem == "" {
		t.Fatal("the account was begun anew over a file that is damaged")
	}
	if err := os.Remove(filepath.Join(store.dir, accountFile)); err != nil {
		t.Fatal(err)
	}
	a.attempt(t.Context())
	if s := a.Status(); s.Problem != "" || a.client.Key == nil || time.Until(a.due()) < 24*time.Hour {
		t.Errorf("%+v, due %s: the certificate that is there is good", s, a.due())
	}
	if _, err := os.Stat(filepath.Join(store.dir, accountFile)); err != nil {
		t.Error(err)
	}
}

// TestDamagedAccountAndAddress: an account key that cannot be read is told and read again also when an address for challenges
// was taken at first, and each time is counted.
func TestDamagedAccountAndAddress(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		taken, err := net.Listen("tcp", "127.0.0.1:0")
		if err != nil {
			t.Fatal(err)
		}
		failed := 0
		cfg := ACMEConfig{
			Name: "smtp.tls", Directory: "https://ca.example/dir", Names: []string{"mx.example.org"}, Dir: t.TempDir(), HTTP01: taken.Addr().String(),
			Attempted: func(ok bool) {
				if !ok {
					failed++
				}
			},
		}
		if err := newACMEStore(cfg.Dir, cfg.Directory).write(accountFile, []byte("damaged")); err != nil {
			t.Fatal(err)
		}
		a, err := NewACME(cfg)
		if err != nil {
			t.Fatal(err)
		}
		pair := &tls.Certificate{Leaf: &x509.Certificate{DNSNames: cfg.Names, NotBefore: time.Now(), NotAfter: time.Now().AddDate(0, 3, 0)}}
		a.current.Store(pair)
		ctx, cancel := context.WithCancel(t.Context())
		var wg sync.WaitGroup
		wg.Go(func() { a.serveChallenges(ctx) })
		synctest.Wait()
		if s := a.Status(); !strings.Contains(s.Problem, "http-01") {
			t.Errorf("%+v: the address is taken", s)
		}
		_ = taken.Close()
		<-a.bound
		if due := a.due(); due.After(time.Now()) {
			t.Errorf("the account key is read again in %s", time.Until(due))
		}
		if a.attempt(ctx); failed != 1 || !strings.Contains(a.Status().Problem, "remove the file") {
			t.Errorf("%+v, %d failures", a.Status(), failed)
		}
		cancel()
		wg.Wait()
	})
}

// TestStoreKeepsPairs: a damaged file is no certificate, and another directory URL has nothing to do with the first.
func TestStoreKeepsPairs(t *testing.T) {
	dir := t.TempDir()
	s := newACMEStore(dir, "https://ca.example/dir")
	if _, err := s.certificate(); !errors.Is(err, ErrNone) {
		t.Errorf("empty: %v", err)
	}
	key, err := s.accountKey()
	if err != nil {
		t.Fatal(err)
	}
	again, err := s.accountKey()
	if err != nil || !key.(*ecdsa.PrivateKey).Equal(again) {
		t.Errorf("another account: %v", err)
	}
	if err := os.WriteFile(filepath.Join(s.dir, certificateFile), []byte("damaged"), 0o600); err != nil {
		t.Fatal(err)
	}
	if _, err := s.certificate(); err == nil || errors.Is(err, ErrNone) {
		t.Errorf("damaged: %v", err)
	}
	if other := newACMEStore(dir, "https://staging.ca.example/dir"); other.dir == s.dir || filepath.Dir(other.dir) != dir {
		t.Errorf("%s, %s", s.dir, other.dir)
	}
	a, err := NewACME(ACMEConfig{Name: "smtp.tls", Directory: "https://ca.example/dir", Names: []string{"mx.example.org"}, Dir: dir, HTTP01: "127.0.0.1:0"})
	if err != nil || a.Ready() {
		t.Errorf("with a damaged certificate: %v", err)
	}
}

// TestAddressTaken: an address for challenges that is taken is a problem and not the end.
func TestAddressTaken(t *testing.T) {
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	a, err := NewACME(ACMEConfig{Name: "smtp.tls", Directory: "https://ca.example/dir", Names: []string{"mx.example.org"}, Dir: t.TempDir(), HTTP01: "127.0.0.1:0", ALPN01: l.Addr().String()})
	if err != nil {
		t.Fatal(err)
	}
	if _, err := a.bind(t.Context()); err == nil || !strings.Contains(err.Error(), "listen for tls-alpn-01") {
		t.Errorf("%v", err)
	}
}

// TestDueAtOnce: a certificate that has to be renewed at once, because the clock is wrong, is no reason to ask for one
// after the other.
func TestDueAtOnce(t *testing.T) {
	t.Parallel()
	ports := realtest.PebblePorts{HTTP01: realtest.FreePort(t), ALPN01: realtest.FreePort(t)}
	p := realtest.StartPebble(t, ports, time.Hour)
	ahead := func() time.Time { return time.Now().Add(2 * time.Hour) }
	a, err := NewACME(ACMEConfig{Name: "smtp.tls", Directory: p.Directory, Names: []string{"mx.example.org"}, Dir: t.TempDir(), Terms: func(string) bool { return true }, Roots: p.Roots,
		HTTP01: fmt.Sprintf("127.0.0.1:%d", ports.HTTP01), now: ahead})
	if err != nil {
		t.Fatal(err)
	}
	bound, err := a.bind(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	var wg sync.WaitGroup
	ctx, cancel := context.WithCancel(t.Context())
	defer wg.Wait()
	defer cancel()
	wg.Go(func() { a.answers.serve(ctx, bound[0]) })
	defer a.client.HTTPClient.CloseIdleConnections()
	a.attempt(ctx)
	if st := a.Status(); !a.Ready() || !strings.Contains(st.Problem, "is the clock of this machine right?") || st.Next.Sub(ahead()) < 30*time.Second {
		t.Errorf("ready: %t, %+v", a.Ready(), st)
	}
}

// TestNoCertificateYet: as long as an authority has given none, the warnings say so.
func TestNoCertificateYet(t *testing.T) {
	a, err := NewACME(ACMEConfig{Name: "smtp.tls", Directory: "https://ca.example/dir", Names: []string{"mx.example.org"}, Dir: t.TempDir(), HTTP01: "127.0.0.1:0"})
	if err != nil {
		t.Fatal(err)
	}
	if w := NewBook(nil, a).Warnings(); len(w) != 1 || !strings.Contains(w[0], "smtp.tls: there is no certificate yet") {
		t.Errorf("%q", w)
	}
}

// TestRetryAfter: an authority that is in trouble is asked some times more, one that
// says that it is asked too much is not.
func TestRetryAfter(t *testing.T) {
	total := time.Duration(0)
	n := 1
	for ; ; n++ {
		d := retryAfter(n, nil, &http.Response{StatusCode: http.StatusInternalServerError})
		if d == 0 {
			break
		}
		total += d
	}
	if n != retries+1 || total != 7*time.Second {
		t.Errorf("%d times, over %v", n-1, total)
	}
	if d := retryAfter(1, nil, &http.Response{StatusCode: http.StatusTooManyRequests}); d != 0 {
		t.Errorf("after too many requests %v", d)
	}
}
