// Package crossfade_test holds what must be true of the whole tree.
package crossfade_test

import (
	"encoding/json"
	"errors"
	"io"
	"os/exec"
	"slices"
	"strings"
	"testing"
)

// allowed is the import table: which packages of ours a package may import. A
// package that is not listed may not exist.
var allowed = map[string][]string{
	"mail":    {},
	"config":  {},
	"router":  {"mail"},
	"queue":   {"mail", "router"},
	"journal": {"mail", "queue"},

	"relay/wire":       {"mail"},
	"relay/smtpclient": {"mail"},
	"relay/tlspolicy":  {"dnswatch", "relay/resolver", "relay/smtpclient"},
	"relay/tlsreport":  {"mail", "relay/tlspolicy"},
	"relay/resolver":   {"internal/dnsask"},
	"relay/authn":      {"mail", "relay/resolver", "relay/authn/dkim"},
	"relay/authn/dkim": {},
	"relay/authn/arc":  {"relay/authn/dkim"},
	"relay/submission": {},
	"relay/milter":     {"mail", "relay", "relay/wire"},
	"relay/limit":      {},
	"relay/dnsbl":      {"relay/resolver"},
	"relay":            {"mail", "router", "queue", "relay/dnsbl", "relay/limit", "relay/wire", "relay/smtpclient"},

	"relay/authn/arcrelay": {"relay", "relay/authn/arc"},

	"backfill/imapconn/token": {},
	"backfill/imapconn":       {"mail", "backfill/imapconn/token"},
	"backfill":                {"mail", "backfill/imapconn"},
	"backfill/find":           {"backfill/imapconn"},
	"backfill/ondisk":         {"backfill", "backfill/imapconn"},
	"backfill/pop3":           {"backfill", "backfill/imapconn"},
	"backfill/certificate":    {"backfill", "audit/seal"},
	"audit/seal":              {},
	"audit":                   {"mail", "router", "queue", "journal", "backfill", "backfill/certificate", "audit/seal"},
	"cutover":                 {"mail", "router", "queue", "backfill", "backfill/imapconn"},
	"dnswatch":                {"mail", "internal/dnsask"},
	"admin":                   {"mail", "router", "queue", "backfill", "cutover", "dnswatch", "audit", "audit/seal", "relay/tlspolicy"},
	"lookup":                  {"mail", "router"},
	"certs":                   {},

	"store/disk":      {"mail", "router", "queue", "journal", "backfill", "store/transfer"},
	"store/redis":     {"mail", "router", "queue", "journal", "backfill", "store/transfer"},
	"store/transfer":  {"mail", "router", "queue", "backfill"},
	"store/storetest": {"mail", "router", "queue", "journal", "backfill"},

	"internal/daemon": {"mail", "config", "router", "queue", "journal", "audit", "audit/seal", "relay", "relay/dnsbl", "relay/limit", "relay/milter", "relay/submission", "relay/wire", "relay/smtpclient", "relay/authn", "backfill",
		"relay/authn/arc", "relay/authn/arcrelay", "relay/authn/dkim", "backfill/find", "backfill/imapconn", "backfill/imapconn/token", "backfill/ondisk", "backfill/pop3", "cutover", "dnswatch", "lookup", "certs", "relay/tlspolicy", "relay/tlsreport", "relay/resolver", "admin", "store/disk", "store/redis", "store/transfer"},
	"internal/systemd":           {},
	"internal/mailtest":          {"mail"},
	"internal/dnsask":            {},
	"internal/freeport":          {},
	"internal/redistest":         {"internal/freeport"},
	"internal/faults":            {"mail", "config", "router", "queue", "backfill", "store/disk", "store/redis", "store/storetest", "internal/daemon", "internal/mailtest", "internal/redistest"},
	"internal/mailtest/realtest": {"mail", "internal/mailtest", "internal/freeport"},
	"internal/demo":              {"mail", "config", "router", "internal/daemon", "internal/mailtest", "admin", "audit", "cutover", "queue"},

	"cmd/crossfade": {"audit", "audit/seal", "mail", "config", "router", "queue", "cutover", "dnswatch", "backfill", "backfill/certificate", "internal/daemon", "internal/demo", "internal/systemd", "admin", "relay/submission"},
}

// testOnly may be imported by tests and by the demo alone.
var testOnly = []string{"internal/mailtest", "internal/mailtest/realtest", "store/storetest", "internal/redistest", "internal/faults"}

type listed struct {
	ImportPath string
	Imports    []string
	Deps       []string
	Doc        string
	GoFiles    []string
}

func packages(t *testing.T) []listed {
	t.Helper()
	out, err := exec.Command("go", "list", "-json=ImportPath,Imports,Deps,Doc,GoFiles", "./...").Output()
	if err != nil {
		t.Fatalf("go list: %v", err)
	}
	var pkgs []listed
	for dec := json.NewDecoder(strings.NewReader(string(out))); ; {
		var p listed
		if err := dec.Decode(&p); errors.Is(err, io.EOF) {
			return pkgs
		} else if err != nil {
			t.Fatal(err)
		}
		if len(p.GoFiles) > 0 {
			pkgs = append(pkgs, p)
		}
	}
}

func TestImportTable(t *testing.T) {
	for _, p := range packages(t) {
		name := strings.TrimPrefix(p.ImportPath, "crossfade/")
		may, ok := allowed[name]
		if !ok {
			t.Errorf("package %s is not in the import table: give it a place there or put its code where it belongs", name)
			continue
		}
		if !strings.HasPrefix(p.Doc, "Package ") && !strings.HasPrefix(p.Doc, "Command ") {
			t.Errorf("package %s has no package sentence", name)
		}
		for _, imp := range p.Imports {
			ours, isOurs := strings.CutPrefix(imp, "crossfade/")
			if isOurs && !slices.Contains(may, ours) {
				t.Errorf("%s imports %s, which the import table does not allow", name, ours)
			}
		}
	}
}

// TestNoTestLibraryInTheBinary: what only tests need does not ship, apart from
// the demo's own mail systems.
func TestNoTestLibraryInTheBinary(t *testing.T) {
	banned := []string{"testing", "github.com/emersion/go-msgauth/dkim", "go.uber.org/goleak", "pgregory.net/rapid", "github.com/google/go-cmp/cmp",
		"github.com/rogpeppe/go-internal/testscript", "crossfade/internal/mailtest/realtest", "crossfade/store/storetest"}
	for _, p := range packages(t) {
		if p.ImportPath != "crossfade/cmd/crossfade" {
			continue
		}
		for _, b := range banned {
			if slices.Contains(p.Deps, b) {
				t.Errorf("the binary links %s", b)
			}
		}
	}
}

// TestDriversStayInTheirStore: the database driver is known to one package.
func TestDriversStayInTheirStore(t *testing.T) {
	for _, p := range packages(t) {
		for _, imp := range p.Imports {
			if strings.HasPrefix(imp, "modernc.org/sqlite") && p.ImportPath != "crossfade/store/disk" {
				t.Errorf("%s imports %s: only store/disk may", p.ImportPath, imp)
			}
			if slices.Contains(testOnly, strings.TrimPrefix(imp, "crossfade/")) && !strings.Contains(p.ImportPath, "demo") &&
				!strings.Contains(p.ImportPath, "mailtest") {
				t.Errorf("%s imports %s outside of a test", p.ImportPath, imp)
			}
		}
	}
}
