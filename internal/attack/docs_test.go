package attack

import (
	"fmt"
	"os"
	"strings"
	"testing"
)

// TestDocs: the numbers of cases in docs/security-tests.md are those of the code.
func TestDocs(t *testing.T) {
	b, err := os.ReadFile("../../docs/security-tests.md")
	if err != nil {
		t.Fatal(err)
	}
	text := string(b)
	count := map[string]int{}
	honest := 0
	for _, c := range matrix() {
		count[c.group]++
		if c.honest() {
			honest++
		}
	}
	rows := []string{}
	for _, g := range groups {
		rows = append(rows, fmt.Sprintf("| %s | %d |", g, count[g]))
	}
	rows = append(rows,
		fmt.Sprintf("| commands in clear around STARTTLS, on the way in | %d |", len(injections)),
		fmt.Sprintf("| servers and men in the middle under `smtp+starttls://` | %d |", len(smtpImpostors)),
		fmt.Sprintf("| the same under `imap+starttls://` | %d |", len(imapImpostors)),
		fmt.Sprintf("| odd addresses, parameters, names, line ends in them | %d |", len(odds())),
		fmt.Sprintf("the notices that we write about them | %d |", len(originals)*len(refusals)),
		fmt.Sprintf("| recipients outside in disguise, from strangers in disguise | %d |", len(disguises)*len(victims)+2),
		fmt.Sprintf("SPF without end | %d |", len(dnsFaults)),
		fmt.Sprintf("and what is none | %d |", len(keyFaults)),
		fmt.Sprintf("| the resolver itself: away, silent, noise, other ids, other questions | %d |", len(resolverFaults)),
		fmt.Sprintf("at each of nine steps, speaks SMTP, is busy without end, sends broken packets | %d, with", len(milterFaults())),
		fmt.Sprintf("has ended, has not begun | %d |", len(certFaults)),
		fmt.Sprintf("under `smtp+starttls://` and `smtp://` | %d |", len(backendFaults)),
		fmt.Sprintf("gives nonsense or somebody else's certificate | %d |", len(acmeFaults())),
		fmt.Sprintf("| an authority that is away, silent, or not to be trusted | %d |", len(authorityFaults)),
		fmt.Sprintf("Six of the %d hold a true end of data", len(matrix())),
	)
	for _, r := range rows {
		if !strings.Contains(text, r) {
			t.Errorf("docs/security-tests.md lacks %q", r)
		}
	}
	if len(milterPhases) != 9 || len(acmeSteps) != 9 { // the page names nine, and eight besides the proof
		t.Errorf("%d steps of milters, %d of authorities", len(milterPhases), len(acmeSteps))
	}
	if honest != 6 {
		t.Errorf("%d cases hold a true end of data, the page says six", honest)
	}
}
