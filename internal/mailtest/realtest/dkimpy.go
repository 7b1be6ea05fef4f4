package realtest

import (
	"bytes"
	_ "embed"
	"encoding/json"
	"fmt"
	"os/exec"
	"testing"
)

//go:embed dkimpy.py
var dkimpyScript string

// DKIMPyJob is one thing to ask dkimpy, an implementation of DKIM and ARC that is not ours.
type DKIMPyJob struct {
	// Op is "sign" (add a set of ARC; the message has an Authentication-Results field of Authserv), "verify" (a chain of
	// ARC), "alone" (the one set that is there, whatever its instance), "body" (the SHA-256 of Message, a body, in the canonical
	// form Form), or "dkim" (verify the topmost DKIM signature).
	Op       string `json:"op"`
	Message  []byte `json:"message"`
	Form     string `json:"form,omitempty"` // simple or relaxed
	Selector string `json:"selector,omitempty"`
	Domain   string `json:"domain,omitempty"`
	Key      string `json:"key,omitempty"` // PEM
	Authserv string `json:"authserv,omitempty"`
}

// DKIMPyAnswer is what it says. Status is "error" where it gives up on a message, and empty for a chain that has ended.
type DKIMPyAnswer struct {
	Status string                   `json:"status"`
	Reason string                   `json:"reason"`
	Lines  []byte                   `json:"lines"` // the new header lines, or the hash
	Sets   map[int]DKIMPySignatures `json:"sets"`
}

// DKIMPySignatures tells which signatures of a set verify.
type DKIMPySignatures struct {
	AMS  bool `json:"ams"`
	Seal bool `json:"seal"`
}

// DKIMPy asks dkimpy (Debian: python3-dkim) with the TXT records in dns, and gives an answer for each job.
func DKIMPy(t testing.TB, dns map[string]string, jobs ...DKIMPyJob) []DKIMPyAnswer {
	t.Helper()
	// Debian's own has Debian's modules; another one may come first in PATH.
	const python = "/usr/bin/python3"
	if err := exec.Command(python, "-c", "import dkim, authres, nacl").Run(); err != nil {
		lack(t, "/usr/bin/python3 has no dkim, authres or nacl (Debian: apt-get install python3-dkim python3-authres python3-nacl)")
	}
	in, err := json.Marshal(map[string]any{"dns": dns, "jobs": jobs})
	if err != nil {
		t.Fatal(err)
	}
	cmd := exec.CommandContext(t.Context(), python, "-c", dkimpyScript)
	var out, errs bytes.Buffer
	cmd.Stdin, cmd.Stdout, cmd.Stderr = bytes.NewReader(in), &out, &errs
	if err := cmd.Run(); err != nil {
		t.Fatalf("dkimpy: %v\n%s", err, errs.String())
	}
	var answers []DKIMPyAnswer
	if err := json.Unmarshal(out.Bytes(), &answers); err != nil || len(answers) != len(jobs) {
		t.Fatal(fmt.Errorf("dkimpy gave %d answers to %d jobs: %w", len(answers), len(jobs), err))
	}
	return answers
}
