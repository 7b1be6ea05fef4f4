package cutover

import (
	"bytes"
	"net/netip"
	"strings"
)

// localOrigin is where mail came from that no other host handed to the server.
const localOrigin = "local"

// originOf says from where a message came to the server in whose mailbox it was
// found, given the beginning of its header: the host of the topmost Received field
// (RFC 5321, 4.4) that does not tell of a step inside one machine. What a field
// says is the word of the server that wrote it, and of anybody below the first one
// that is not ours; it is good for people to look at, and for no decision.
func originOf(header []byte) string {
	for _, field := range receivedFields(header) {
		if host := fromHost(field); host != "" {
			return host
		}
	}
	return localOrigin
}

// mostReceived is how many fields are looked at.
const mostReceived = 8

// receivedFields gives the values of the Received fields, unfolded, the topmost
// first. One that is cut off at the end is left out.
func receivedFields(header []byte) (out []string) {
	var lines []string
	for len(header) > 0 {
		line, rest, whole := bytes.Cut(header, []byte("\n"))
		line = bytes.TrimSuffix(line, []byte("\r"))
		if !whole || len(line) == 0 {
			break
		}
		header = rest
		if (line[0] == ' ' || line[0] == '\t') && len(lines) > 0 {
			lines[len(lines)-1] += " " + strings.TrimSpace(string(line))
			continue
		}
		lines = append(lines, string(line))
	}
	for _, line := range lines {
		name, value, ok := strings.Cut(line, ":")
		if ok && strings.EqualFold(strings.TrimSpace(name), "Received") {
			out = append(out, strings.TrimSpace(value))
		}
		if len(out) == mostReceived {
			break
		}
	}
	return out
}

// fromHost is the host in the from clause of a field; empty when there is none, or
// when it is the machine itself.
func fromHost(field string) string {
	words := strings.Fields(field)
	if len(words) < 2 || !strings.EqualFold(words[0], "from") {
		return ""
	}
	clause := words[1:]
	for i, w := range clause {
		if strings.EqualFold(w, "by") {
			clause = clause[:i]
			break
		}
	}
	if len(clause) == 0 {
		return ""
	}
	address, named := addressIn(strings.Join(clause, " "))
	if address.IsLoopback() || strings.EqualFold(clause[0], "localhost") && !named {
		return ""
	}
	name := hostName(clause)
	switch {
	case !named:
		return name
	case name == "" || name == address.String():
		return "[" + address.String() + "]"
	}
	return name + " [" + address.String() + "]"
}

// addressIn finds the address in brackets.
func addressIn(clause string) (netip.Addr, bool) {
	for rest := clause; ; {
		_, after, found := strings.Cut(rest, "[")
		if !found {
			return netip.Addr{}, false
		}
		inside, _, closed := strings.Cut(after, "]")
		if len(inside) > 5 && strings.EqualFold(inside[:5], "IPv6:") {
			inside = inside[5:]
		}
		if a, err := netip.ParseAddr(inside); closed && err == nil {
			return a.Unmap().WithZone(""), true
		}
		rest = after
	}
}

// hostName is the name that the server found for the address itself, "helo (name
// [address])", else what the host called itself; empty when that is no name.
func hostName(clause []string) string {
	name := clause[0]
	if len(clause) > 1 && strings.HasPrefix(clause[1], "(") {
		found := strings.TrimSuffix(strings.TrimPrefix(clause[1], "("), ".")
		if isHostName(found) && strings.Contains(found, ".") {
			name = found
		}
	}
	if name = strings.ToLower(strings.TrimSuffix(name, ".")); !isHostName(name) {
		return ""
	}
	return name
}

func isHostName(s string) bool {
	if s == "" || len(s) > 253 || strings.EqualFold(s, "unknown") {
		return false
	}
	return !strings.ContainsFunc(s, func(r rune) bool {
		return !(r >= 'a' && r <= 'z' || r >= 'A' && r <= 'Z' || r >= '0' && r <= '9' || r == '-' || r == '.' || r == '_')
	})
}
