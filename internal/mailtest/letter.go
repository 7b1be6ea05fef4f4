package mailtest

import (
	"fmt"
	"strings"
	"time"
)

// Letter makes message n for anna@example.org, of about size octets and always
// the same. Its date, and with which of five flags and keywords it comes, follow
// from its number; its Message-ID is that of all others.
func Letter(n, size int) StoredMessage {
	head := fmt.Sprintf("From: a%d@example.net\r\nTo: anna@example.org\r\nSubject: letter %d\r\nMessage-ID: <same@example.net>\r\n\r\n", n, n)
	line := fmt.Sprintf("line of letter %d with something in it\r\n", n)
	m := StoredMessage{
		Body:         []byte(head + strings.Repeat(line, 1+size/len(line))),
		InternalDate: time.Date(2015, 1, 2, 3, 4, 5, 0, time.FixedZone("", 3600)).Add(time.Duration(n) * time.Hour),
	}
	for i, f := range []string{`\Seen`, `\Answered`, `\Flagged`, "$Forwarded", "work"} {
		if n>>i&1 == 1 {
			m.Flags = append(m.Flags, f)
		}
	}
	return m
}
