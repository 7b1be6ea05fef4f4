package arc

import "strings"

// Vouched tells whether a sealer that one trusts found that the message passes
// DMARC for the domain of its From, so that a failure of DMARC here may be laid to
// what happened on the way (RFC 8617, 7.2.1). The chain has to pass. A set counts
// when its sealer is trusted, its results say dmarc=pass with header.from=domain,
// and nobody who is not trusted can have changed the message since: every later
// sealer is trusted too, or the set's own message signature still verifies. The
// first such set is given.
func (r Result) Vouched(domain string, trusted func(sealer string) bool) (Seal, bool) {
	if r.Status != Pass || domain == "" {
		return Seal{}, false
	}
	var found Seal
	above := true // all sealers above are trusted
	for i := len(r.Seals) - 1; i >= 0; i-- {
		s := r.Seals[i]
		intact := above || r.OldestPass == 0 || r.OldestPass > 0 && r.OldestPass <= s.Instance
		ours := trusted(s.Domain)
		if ours && intact && passesDMARC(s.Results, domain) {
			found = s
		}
		above = above && ours
	}
	return found, found.Instance > 0
}

// passesDMARC looks for dmarc=pass header.from=domain in the results of an AAR.
func passesDMARC(results, domain string) bool {
	for i, words := range resultWords(results) {
		if i == 0 || len(words) == 0 || !strings.EqualFold(words[0], "dmarc=pass") {
			continue // the first is the authserv-id
		}
		for _, w := range words[1:] {
			name, value, _ := strings.Cut(w, "=")
			if strings.EqualFold(name, "header.from") && strings.EqualFold(strings.TrimSuffix(value, "."), domain) {
				return true
			}
		}
	}
	return false
}

// resultWords takes results apart at semicolons, and each part into words, with
// the white space around = taken out. Comments are left out. What was quoted stays
// one word, in which what could be taken for something else is replaced.
func resultWords(text string) [][]string {
	var b strings.Builder
	for i := 0; i < len(text); i++ {
		switch text[i] {
		case '(':
			end := commentEnd(text[i:])
			if end < 0 {
				return nil
			}
			i += end - 1
			b.WriteByte(' ')
		case '"':
			end := quoteEnd(text[i:])
			if end < 0 {
				return nil
			}
			b.WriteString(tame(text[i+1 : i+end-1]))
			i += end - 1
		default:
			b.WriteByte(text[i])
		}
	}
	var out [][]string
	for part := range strings.SplitSeq(b.String(), ";") {
		words := strings.Fields(part)
		joined := words[:0:0]
		for _, w := range words {
			last := len(joined) - 1
			if last >= 0 && (strings.HasPrefix(w, "=") || strings.HasSuffix(joined[last], "=")) {
				joined[last] += w
				continue
			}
			joined = append(joined, w)
		}
		out = append(out, joined)
	}
	return out
}

// quoteEnd is where a quoted string that begins s is over; -1: never.
func quoteEnd(s string) int {
	for i := 1; i < len(s); i++ {
		switch s[i] {
		case '\\':
			i++
		case '"':
			return i + 1
		}
	}
	return -1
}

// tame replaces in quoted text what has a meaning outside of quotes.
func tame(s string) string {
	return strings.Map(func(r rune) rune {
		if strings.ContainsRune(" \t\r\n=;", r) {
			return '?'
		}
		return r
	}, s)
}
