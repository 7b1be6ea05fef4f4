package imapconn

import (
	"encoding/base64"
	"errors"
	"strings"
	"unicode/utf16"
	"unicode/utf8"
)

// mailboxEncoding is the modified base64 of RFC 3501, 5.1.3.
var mailboxEncoding = base64.NewEncoding("ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789+,").WithPadding(base64.NoPadding)

// EncodeName writes a mailbox name in modified UTF-7 (RFC 3501, 5.1.3).
func EncodeName(name string) string {
	var b strings.Builder
	var wide []rune
	flush := func() {
		if len(wide) == 0 {
			return
		}
		units := utf16.Encode(wide)
		raw := make([]byte, 0, 2*len(units))
		for _, u := range units {
			raw = append(raw, byte(u>>8), byte(u))
		}
		b.WriteByte('&')
		b.WriteString(mailboxEncoding.EncodeToString(raw))
		b.WriteByte('-')
		wide = wide[:0]
	}
	for _, r := range name {
		if r < ' ' || r > '~' {
			wide = append(wide, r)
			continue
		}
		flush()
		b.WriteByte(byte(r))
		if r == '&' {
			b.WriteByte('-')
		}
	}
	flush()
	return b.String()
}

var errName = errors.New("the mailbox name is not modified UTF-7")

// DecodeName reads a mailbox name in modified UTF-7. Names with octets above
// 127 that are UTF-8 are taken as they are: many servers send them so.
func DecodeName(wire string) (string, error) {
	var b strings.Builder
	for i := 0; i < len(wire); i++ {
		if wire[i] != '&' {
			b.WriteByte(wire[i])
			continue
		}
		end := strings.IndexByte(wire[i:], '-')
		if end < 0 {
			return "", errName
		}
		if end == 1 {
			b.WriteByte('&')
		} else if err := decodeWide(&b, wire[i+1:i+end]); err != nil {
			return "", err
		}
		i += end
	}
	if !utf8.ValidString(b.String()) {
		return "", errName
	}
	return b.String(), nil
}

func decodeWide(b *strings.Builder, s string) error {
	raw, err := mailboxEncoding.DecodeString(s)
	if err != nil || len(raw) == 0 || len(raw)%2 != 0 {
		return errName
	}
	units := make([]uint16, 0, len(raw)/2)
	for i := 0; i < len(raw); i += 2 {
		units = append(units, uint16(raw[i])<<8|uint16(raw[i+1]))
	}
	for _, r := range utf16.Decode(units) {
		if r == utf8.RuneError {
			return errName
		}
		b.WriteRune(r)
	}
	return nil
}
