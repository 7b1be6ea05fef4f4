package token

import (
	"regexp"
	"sort"
	"strconv"
	"strings"
)

const redacted = "<redacted>"

// Redactor cuts secrets out of others' words: a server may repeat what it was
// sent, whole or in part. The zero value cuts nothing.
type Redactor struct{ known []string }

// Add makes a secret known, as it is and as errors quote it.
func (x *Redactor) Add(secret string) {
	if secret == "" {
		return
	}
	q := strconv.Quote(secret)
	x.known = append(x.known, secret, q[1:len(q)-1])
	sort.Slice(x.known, func(i, j int) bool { return len(x.known[i]) > len(x.known[j]) })
}

// leastPart is the shortest piece of a longer secret that is cut out. Words are
// shortened before they get here, so that a token in them need not be whole.
const leastPart = 12

// Cut gives text without the secrets.
func (x *Redactor) Cut(text string) string {
	var pairs []string
	for _, s := range x.known {
		pairs = append(pairs, s, redacted)
	}
	text = strings.NewReplacer(pairs...).Replace(text)
	var b strings.Builder
	for i := 0; i < len(text); {
		n := x.partAt(text[i:])
		if n < leastPart {
			b.WriteByte(text[i])
			i++
			continue
		}
		b.WriteString(redacted)
		i += n
	}
	return b.String()
}

// partAt gives the length of the longest piece of a secret that text begins with.
func (x *Redactor) partAt(text string) int {
	longest := 0
	for _, s := range x.known {
		for n := max(longest+1, leastPart); n <= len(text) && strings.Contains(s, text[:n]); n++ {
			longest = n
		}
	}
	return longest
}

// secretLike is what may be a token or a key in words that we know nothing of.
var secretLike = regexp.MustCompile(`[A-Za-z0-9._~+/=-]{32,}`)

// cutLong cuts out whatever may be a secret.
func cutLong(text string) string { return secretLike.ReplaceAllString(text, redacted) }
