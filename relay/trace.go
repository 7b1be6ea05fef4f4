package relay

import (
	"crypto/tls"
	"net/netip"
	"strings"
	"time"

	"crossfade/mail"
	"crossfade/relay/wire"
)

// traceMark stands behind our host name in the Received headers that we write.
// Loops are found by it.
const traceMark = "(Crossfade)"

// traceInfo is what a Received header tells.
type traceInfo struct {
	wire.Info
	by  string // host name and mark
	tls string // version and cipher suite, empty in clear
	env *mail.Envelope
}

// foldAt is the length at which a line of the header is broken (RFC 5322,
// 2.1.1: 78 characters without CRLF).
const foldAt = 77

// appendReceived adds the trace header of RFC 5321, 4.4, with its CRLF. There is no
// Return-Path: final delivery is the backend's.
func appendReceived(b []byte, t traceInfo) []byte {
	f := folder{b: append(b, "Received:"...), line: len("Received:")}
	f.word("from")
	f.word(heloName(t.Helo))
	if ip := t.Remote.Addr(); ip.IsValid() {
		f.word("(" + addressLiteral(ip) + ")")
	}
	f.word("by")
	name, mark, _ := strings.Cut(t.by, " ")
	f.word(name)
	f.word(mark)
	f.word("with")
	f.word(protocol(t.Info, t.env.UTF8))
	if t.tls != "" {
		version, suite, _ := strings.Cut(t.tls, " ")
		f.word("(" + version)
		f.word(suite + ")")
	}
	f.word("id")
	f.word(string(t.env.ID))
	if rcpt, ok := onlyGiven(t.env); ok {
		f.word("for")
		f.word("<" + rcpt + ">")
	}
	f.b = append(f.b, ';')
	f.line++
	f.word(t.env.Received.Format(time.RFC1123Z))
	return append(f.b, "\r\n"...)
}

// folder writes words with a space or a fold before each.
type folder struct {
	b    []byte
	line int // length of the present line
}

func (f *folder) word(w string) {
	if f.line+1+len(w) > foldAt {
		f.b = append(f.b, "\r\n\t"...)
		f.line = 1
	} else {
		f.b = append(f.b, ' ')
		f.line++
	}
	f.b = append(f.b, w...)
	f.line += len(w)
}

// protocol is the keyword behind "with" (RFC 3848; RFC 6531, 4.3).
func protocol(i wire.Info, utf8 bool) string {
	switch {
	case utf8 && i.TLS != nil:
		return "UTF8SMTPS"
	case utf8:
		return "UTF8SMTP"
	}
	return i.Protocol()
}

// heloName makes what the client called itself safe for a header: the name or
// literal if it is one, "unknown" if there is nothing to save.
func heloName(helo string) string {
	if len(helo) > 255 {
		helo = helo[:255]
	}
	safe := true
	for i := 0; i < len(helo) && safe; i++ {
		safe = heloByte(helo[i])
	}
	if !safe {
		helo = strings.Map(func(r rune) rune {
			if r > '~' || !heloByte(byte(r)) {
				return '?'
			}
			return r
		}, helo)
	}
	if helo == "" {
		return "unknown"
	}
	return helo
}

func heloByte(c byte) bool {
	switch {
	case c >= 'a' && c <= 'z', c >= 'A' && c <= 'Z', c >= '0' && c <= '9':
		return true
	}
	return c == '.' || c == '-' || c == '_' || c == ':' || c == '[' || c == ']'
}

// addressLiteral is ip as in RFC 5321, 4.1.3.
func addressLiteral(ip netip.Addr) string {
	ip = ip.Unmap().WithZone("")
	if ip.Is6() {
		return "[IPv6:" + ip.String() + "]"
	}
	return "[" + ip.String() + "]"
}

// onlyGiven is the address of RCPT when there was only one: with more of them
// the header would tell blind copies. One that is not ASCII appears only where
// the header may be UTF-8.
func onlyGiven(env *mail.Envelope) (string, bool) {
	if len(env.Recipients) == 0 {
		return "", false
	}
	first := env.Recipients[0].Given()
	for _, r := range env.Recipients[1:] {
		if r.Given() != first {
			return "", false
		}
	}
	if !first.IsASCII() && !env.UTF8 {
		return "", false
	}
	return first.String(), true
}

// tlsName is the version and cipher suite of a connection: "TLS1.3
// TLS_AES_128_GCM_SHA256", empty in clear.
func tlsName(state *tls.ConnectionState) string {
	if state == nil {
		return ""
	}
	return strings.ReplaceAll(tls.VersionName(state.Version), " ", "") + " " + tls.CipherSuiteName(state.CipherSuite)
}
