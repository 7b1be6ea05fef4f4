package ondisk

import (
	"os"
	"strings"

	"crossfade/backfill/imapconn"
)

const mostSubscriptions = 16 << 20

// subscriptions reads which folders a user is subscribed to, from Dovecot's file
// and from Courier's: names with their levels joined by NUL.
func subscriptions(root *os.Root) (map[string]bool, error) {
	out := map[string]bool{}
	for _, name := range []string{"subscriptions", ".subscriptions", "courierimapsubscribed", ".mailboxlist"} {
		b, err := readSmall(root, name, mostSubscriptions)
		if err != nil {
			return nil, err
		}
		parseSubscriptions(string(b), out)
	}
	return out, nil
}

// parseSubscriptions reads one name on each line: with tabs between the levels
// in version 2 of Dovecot's file, which begins with "V\t2", and else with the
// server's own separator, which may be any of the two that are used.
func parseSubscriptions(text string, into map[string]bool) {
	rest, tabs := strings.CutPrefix(text, "V\t2\n")
	for line := range strings.SplitSeq(rest, "\n") {
		line = strings.TrimSuffix(line, "\r")
		if line == "" {
			continue
		}
		if tabs {
			levels := strings.Split(line, "\t")
			for i, l := range levels {
				levels[i] = decodeName(unescapeTabs(l))
			}
			name := strings.Join(levels, "\x00")
			into[levelsOf(name, "\x00", "INBOX\x00")] = true
			continue
		}
		name, err := imapconn.DecodeName(line)
		if err != nil {
			name = line
		}
		for _, delim := range []string{".", "/"} {
			into[levelsOf(name, delim, "INBOX"+delim)] = true
		}
	}
}

// unescapeTabs undoes Dovecot's escaping in files with tabs: \001 and a letter.
func unescapeTabs(s string) string {
	return strings.NewReplacer("\x010", "\x00", "\x011", "\x01", "\x01t", "\t", "\x01r", "\r", "\x01n", "\n").Replace(s)
}
