package smtpclient

import (
	"fmt"
	"strconv"
	"strings"
	"unicode/utf8"

	"crossfade/mail"
)

// appendMail writes the MAIL command with the parameters that the server
// understands.
func appendMail(b []byte, t *Transaction, caps Caps, utf8 bool) []byte {
	b = append(b, "MAIL FROM:<"...)
	b = append(b, t.From.String()...)
	b = append(b, '>')
	if caps.HasSize && t.Size > 0 {
		b = append(b, " SIZE="...)
		b = strconv.AppendInt(b, t.Size, 10)
	}
	if caps.EightBitMIME && t.EightBit {
		b = append(b, " BODY=8BITMIME"...)
	}
	if caps.SMTPUTF8 && utf8 {
		b = append(b, " SMTPUTF8"...)
	}
	if caps.RequireTLS && t.RequireTLS {
		b = append(b, " REQUIRETLS"...)
	}
	if caps.DSN {
		if t.Ret == mail.RetFull || t.Ret == mail.RetHdrs {
			b = append(b, " RET="...)
			b = append(b, t.Ret...)
		}
		if t.EnvID != "" && isASCII(t.EnvID) {
			b = append(b, " ENVID="...)
			b = appendXtext(b, t.EnvID)
		}
	}
	return append(b, "\r\n"...)
}

// appendRcpt writes the RCPT command with its DSN parameters (RFC 3461, 4).
func appendRcpt(b []byte, r *Rcpt, caps Caps) []byte {
	b = append(b, "RCPT TO:<"...)
	b = append(b, r.Addr.String()...)
	b = append(b, '>')
	if caps.DSN {
		b = appendNotify(b, r.Notify)
		b = appendORcpt(b, r.ORcpt)
	}
	return append(b, "\r\n"...)
}

func appendNotify(b []byte, n mail.Notify) []byte {
	if n&mail.NotifyNever != 0 {
		return append(b, " NOTIFY=NEVER"...)
	}
	sep := " NOTIFY="
	for _, v := range [...]struct {
		bit  mail.Notify
		word string
	}{{mail.NotifySuccess, "SUCCESS"}, {mail.NotifyFailure, "FAILURE"}, {mail.NotifyDelay, "DELAY"}} {
		if n&v.bit != 0 {
			b = append(append(b, sep...), v.word...)
			sep = ","
		}
	}
	return b
}

// appendORcpt writes ORCPT of "type;address" as it was decoded. What cannot be
// written safely is left out: the parameter is a courtesy.
func appendORcpt(b []byte, orcpt string) []byte {
	typ, addr, ok := strings.Cut(orcpt, ";")
	if !ok || typ == "" || addr == "" || strings.Trim(strings.ToLower(typ), "abcdefghijklmnopqrstuvwxyz0123456789-") != "" {
		return b
	}
	global := strings.EqualFold(typ, "utf-8")
	if !global && !isASCII(addr) || !utf8.ValidString(addr) {
		return b
	}
	b = append(b, " ORCPT="...)
	b = append(append(b, typ...), ';')
	if global {
		return appendUTF8Xtext(b, addr)
	}
	return appendXtext(b, addr)
}

// appendXtext encodes s as xtext (RFC 3461, 4).
func appendXtext(b []byte, s string) []byte {
	for i := 0; i < len(s); i++ {
		if c := s[i]; c > ' ' && c < 0x7f && c != '+' && c != '=' {
			b = append(b, c)
			continue
		}
		b = fmt.Appendf(b, "+%02X", s[i])
	}
	return b
}

// appendUTF8Xtext encodes s as utf-8-addr-xtext (RFC 6533, 3), which every
// server with DSN takes, with SMTPUTF8 or without.
func appendUTF8Xtext(b []byte, s string) []byte {
	for _, r := range s {
		if r > ' ' && r < 0x7f && r != '+' && r != '=' && r != '\\' {
			b = append(b, byte(r))
			continue
		}
		b = fmt.Appendf(b, `\x{%02X}`, r)
	}
	return b
}

func isASCII(s string) bool {
	for i := 0; i < len(s); i++ {
		if s[i] >= utf8.RuneSelf {
			return false
		}
	}
	return true
}
