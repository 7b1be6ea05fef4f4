package attack

import (
	"crypto/tls"
	"encoding/base64"
	"encoding/json"
	"encoding/pem"
	"fmt"
	"io"
	"net/http"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"crossfade/internal/mailtest"
	"crossfade/internal/mailtest/realtest"
)

// The steps of RFC 8555 in the order in which a client takes them.
var acmeSteps = []string{"directory", "nonce", "account", "order", "authorization", "challenge", "proof", "finalize", "certificate"}

// acmeFault is at which step an authority refuses, and how; says is what /readyz has
// of it.
type acmeFault struct {
	name, step string
	answer     func(w http.ResponseWriter)
	says       string
}

// problem is a problem document (RFC 8555, 6.7).
func problem(code int, kind, detail string) func(w http.ResponseWriter) {
	return func(w http.ResponseWriter) {
		w.Header().Set("Content-Type", "application/problem+json")
		if code == http.StatusTooManyRequests {
			w.Header().Set("Retry-After", "86400")
		}
		w.WriteHeader(code)
		fmt.Fprintf(w, `{"type":"urn:ietf:params:acme:error:%s","detail":%q,"status":%d}`, kind, detail, code)
	}
}

// body answers 200 with a text.
func body(text string) func(w http.ResponseWriter) {
	return func(w http.ResponseWriter) { _, _ = io.WriteString(w, text) }
}

// acmeFaults are a refusal at every step, and what is no answer.
func acmeFaults() (out []acmeFault) {
	for _, step := range acmeSteps {
		if step == "proof" {
			continue // below: the authority says what it found
		}
		says := "we do not serve you"
		if step == "nonce" {
			says = "register with" // HEAD has no text
		}
		out = append(out, acmeFault{"refused at the step " + step, step, problem(http.StatusForbidden, "unauthorized", "we do not serve you"), says})
	}
	return append(out,
		acmeFault{"too many accounts", "account", problem(http.StatusTooManyRequests, "rateLimited", "come again tomorrow"), "come again tomorrow"},
		acmeFault{"too many certificates", "order", problem(http.StatusTooManyRequests, "rateLimited", "come again tomorrow"), "come again tomorrow"},
		acmeFault{"the terms have changed", "order", problem(http.StatusForbidden, "userActionRequired", "agree to the new terms"), "agree to the new terms"},
		acmeFault{"an account must be known elsewhere", "account", problem(http.StatusUnauthorized, "externalAccountRequired", "who are you"), "who are you"},
		acmeFault{"a name that it does not serve", "order", problem(http.StatusBadRequest, "rejectedIdentifier", "not this name"), "not this name"},
		acmeFault{"CAA forbids it", "finalize", problem(http.StatusForbidden, "caa", "CAA record for mx.example.org prevents issuance"), "CAA"},
		acmeFault{"it cannot reach us", "proof", body(`{"status":"invalid","identifier":{"type":"dns","value":"mx.example.org"},"challenges":[{"type":"http-01","url":"CHALLENGE","status":"invalid","token":"t","error":{"type":"urn:ietf:params:acme:error:connection","detail":"timeout"}}]}`), "prove by http-01 that mx.example.org is ours"},
		acmeFault{"it is out of order", "order", problem(http.StatusInternalServerError, "serverInternal", "we are mended"), "we are mended"},
		acmeFault{"no JSON in the directory", "directory", body(`{"nonsense": `), "register with"},
		acmeFault{"a page instead of the order", "order", body(`<html>`), "order a certificate"},
		acmeFault{"no certificate in the certificate", "certificate", body("not PEM"), "get the certificate"},
		acmeFault{"somebody else's certificate", "certificate", nil, "no certificate for our key"},
	)
}

// authority is an ACME server that gives nothing; it checks no signatures.
type authority struct {
	url      string
	fault    acmeFault
	other    []byte // a certificate that is not for the key that asks
	nonce    atomic.Int64
	asked    atomic.Int64 // times at the step of the fault
	accepted atomic.Bool  // of the challenge
}

// startAuthority starts one; roots is a file with the authority of its own HTTPS.
func startAuthority(t *testing.T, fault acmeFault) (a *authority, roots string) {
	t.Helper()
	ca, err := mailtest.NewCA()
	if err != nil {
		t.Fatal(err)
	}
	conf, err := ca.ServerConfig("127.0.0.1")
	if err != nil {
		t.Fatal(err)
	}
	roots = filepath.Join(t.TempDir(), "ca.pem")
	if err := os.WriteFile(roots, ca.PEM(), 0o644); err != nil {
		t.Fatal(err)
	}
	other, err := ca.Issue("mx.example.org")
	if err != nil {
		t.Fatal(err)
	}
	l, err := tls.Listen("tcp", "127.0.0.1:0", conf)
	if err != nil {
		t.Fatal(err)
	}
	a = &authority{url: "https://" + l.Addr().String(), fault: fault, other: pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: other.Certificate[0]})}
	srv := &http.Server{Handler: a}
	ended := make(chan error, 1)
	go func() { ended <- srv.Serve(l) }()
	t.Cleanup(func() {
		_ = srv.Close()
		<-ended
	})
	return a, roots
}

// ServeHTTP answers a step as it should be, unless it is that of the fault.
func (a *authority) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	_, step, _ := strings.Cut(r.URL.Path, "/")
	if a.fault.step != "nonce" { // otherwise it has to be asked for
		w.Header().Set("Replay-Nonce", fmt.Sprint("nonce", a.nonce.Add(1)))
	}
	w.Header().Set("Location", a.url+"/"+step)
	body, _ := io.ReadAll(io.LimitReader(r.Body, 1<<20))
	if step == "authorization" && a.proved() {
		step = "proof"
	}
	if step == a.fault.step {
		a.asked.Add(1)
		if a.fault.answer == nil {
			_, _ = w.Write(a.other)
			return
		}
		a.fault.answer(w)
		return
	}
	status := http.StatusOK
	var answer any
	challenge := map[string]any{"type": "http-01", "url": a.url + "/challenge", "status": "pending", "token": "t"}
	name := map[string]any{"type": "dns", "value": "mx.example.org"}
	order := map[string]any{"status": "pending", "identifiers": []any{name}, "authorizations": []any{a.url + "/authorization"}, "finalize": a.url + "/finalize"}
	switch step {
	case "directory":
		answer = map[string]any{"newNonce": a.url + "/nonce", "newAccount": a.url + "/account", "newOrder": a.url + "/order"}
	case "nonce":
		return
	case "account":
		status, answer = http.StatusCreated, map[string]any{"status": "valid"}
	case "order":
		status, answer = http.StatusCreated, order
		if len(payload(body)) == 0 { // it is looked at again
			status, order["status"] = http.StatusOK, "ready"
		}
	case "authorization":
		answer = map[string]any{"status": "pending", "identifier": name, "challenges": []any{challenge}}
	case "proof":
		answer = map[string]any{"status": "valid", "identifier": name, "challenges": []any{challenge}}
	case "challenge":
		a.accepted.Store(true)
		answer = challenge
	case "finalize":
		order["status"], order["certificate"] = "valid", a.url+"/certificate"
		answer = order
	}
	w.WriteHeader(status)
	_ = json.NewEncoder(w).Encode(answer)
}

// proved tells whether the challenge was accepted.
func (a *authority) proved() bool { return a.accepted.Load() }

// payload is what a request says (RFC 7515).
func payload(body []byte) []byte {
	var jws struct{ Payload string }
	_ = json.Unmarshal(body, &jws) // of no interest
	b, _ := base64.RawURLEncoding.DecodeString(jws.Payload)
	return b
}

// TestFaultsACME: whatever an authority refuses, the relay starts and takes mail, in
// clear as long as it has no certificate; /readyz and the metrics say why.
func TestFaultsACME(t *testing.T) {
	t.Parallel()
	faults := acmeFaults()
	if !long() { // without those that take seven seconds, or are much like another one
		faults = slices.DeleteFunc(faults, func(f acmeFault) bool {
			return f.says == "we are mended" || f.says == "we do not serve you" && f.step != "account" && f.step != "finalize"
		})
	}
	atOnce(t, faults, func(f acmeFault) string { return f.name }, func(t *testing.T, f acmeFault) {
		a, roots := startAuthority(t, f)
		tryACME(t, a.url+"/directory", roots, f.says)
		if a.asked.Load() == 0 {
			t.Error("the authority was not asked for what it refuses")
		}
	})
	figure(t, "%d refusals of an authority, %d authorities that are none", len(faults), len(authorityFaults))
}

// authorityFaults are authorities that nobody can speak with.
var authorityFaults = map[string]func(t *testing.T) (url, says string){
	"nobody is there": func(*testing.T) (string, string) { return "https://" + closedPort + "/directory", "register with" },
	"it is silent": func(t *testing.T) (string, string) {
		s := startImpostor(t, nil, "<", "<", "<", "<", "<", "<", "<", "<", "<", "<")
		return "https://" + s.addr + "/directory", "there is no certificate yet"
	},
	"it shows a certificate that nobody trusts": func(t *testing.T) (string, string) {
		a, _ := startAuthority(t, acmeFault{})
		return a.url + "/directory", "certificate signed by unknown authority"
	},
}

// TestFaultsAuthority is TestFaultsACME with authorities that are none.
func TestFaultsAuthority(t *testing.T) {
	t.Parallel()
	var names []string
	for name := range authorityFaults {
		names = append(names, name)
	}
	atOnce(t, names, func(n string) string { return n }, func(t *testing.T, n string) {
		url, says := authorityFaults[n](t)
		tryACME(t, url, "", says)
	})
}

func tryACME(t *testing.T, directory, roots, says string) {
	t.Helper()
	sink, err := mailtest.NewSink(mailtest.SinkConfig{})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = sink.Close() })
	ca := ""
	if roots != "" {
		ca = fmt.Sprintf(", ca: %q", roots)
	}
	began := time.Now()
	f := startFront(t, sink.URL(""), fmt.Sprintf(", tls: {acme: {directory: %q, accept_terms: true, http01: %q%s}}", directory, fmt.Sprintf("127.0.0.1:%d", realtest.FreePort(t)), ca), "")
	if reply, err := give(f.smtp, "ann@client.test", letterOf("client.test", "clear"), nil); err != nil || !strings.HasPrefix(reply, "250") {
		t.Errorf("%s, %v", reply, err)
	}
	if status, w := f.readyz(); status != 200 || w == "" {
		t.Errorf("at once readyz says %d, %q: there is no certificate", status, w)
	}
	until(t, 40*time.Second, "the warning", func() error {
		if status, w := f.readyz(); status != 200 || !strings.Contains(w, "smtp.tls: ") || !strings.Contains(w, says) {
			return fmt.Errorf("readyz says %d, %q, want %q", status, w, says)
		}
		return nil
	})
	t.Logf("after %v it is said", time.Since(began).Round(time.Millisecond))
	if says != "there is no certificate yet" && (!f.counts(`crossfade_acme_attempts_total{result="failed"}`) || !f.counts(`crossfade_certificate_problem{certificate="smtp.tls"} 1`)) {
		t.Error("the metrics do not say it")
	}
	if _, err := sink.Wait(t.Context(), 1); err != nil {
		t.Error(err)
	}
}
