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
		fmt.Sprintf("Six of the %d hold a true end of data", len(matrix())),
	)
	for _, r := range rows {
		if !strings.Contains(text, r) {
			t.Errorf("docs/security-tests.md lacks %q", r)
		}
	}
	if honest != 6 {
		t.Errorf("%d cases hold a true end of data, the page says six", honest)
	}
}
