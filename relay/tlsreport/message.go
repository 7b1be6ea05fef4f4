package tlsreport

import (
	"bytes"
	"encoding/base64"
	"fmt"
	"strings"
	"time"

	"crossfade/mail"
	"crossfade/relay/tlspolicy"
)

// Signed are the header fields that a signature of a report has to cover; From once more than it is there.
var Signed = []string{
	"from", "from", "to", "subject", "date", "message-id", "mime-version", "content-type", "tls-required", "tls-report-domain", "tls-report-submitter",
}

func messageID(id mail.ID, from mail.Address) string {
	return "<" + string(id) + "@" + from.Domain + ">"
}

// letter is a report on its way by mail.
type letter struct {
	id       mail.ID
	from, to mail.Address
	date     time.Time
	domain   string // that it is about
	report   tlspolicy.Report
	packed   []byte // the same as it is sent
}

// write makes the message, with CRLF line ends.
func (l *letter) write() []byte {
	boundary, domain, r, text := "=_"+string(l.id), l.domain, l.report, base64.StdEncoding.EncodeToString(l.packed)
	var b bytes.Buffer
	line := func(format string, args ...any) { fmt.Fprintf(&b, format+"\r\n", args...) }
	line("From: <%s>", l.from)
	line("To: <%s>", l.to)
	line("Subject: Report Domain: %s\r\n Submitter: %s\r\n Report-ID: <%s>", domain, r.Organization, r.ID)
	line("Date: %s", l.date.Format(time.RFC1123Z))
	line("Message-ID: %s", messageID(l.id, l.from))
	line("Auto-Submitted: auto-generated")
	line("TLS-Required: No")
	line("TLS-Report-Domain: %s", domain)
	line("TLS-Report-Submitter: %s", r.Organization)
	line("MIME-Version: 1.0")
	line("Content-Type: multipart/report; report-type=\"tlsrpt\";\r\n\tboundary=\"%s\"", boundary)
	line("\r\n--%s", boundary)
	line("Content-Type: text/plain; charset=us-ascii\r\n")
	line("This is a report about TLS (RFC 8460) with the servers of")
	line("%s,", domain)
	line("for the time from %s", r.Range.Start.Format(time.RFC3339))
	line("to %s,", r.Range.End.Format(time.RFC3339))
	line("by %s.", r.Organization)
	line("\r\n--%s", boundary)
	line("Content-Type: application/tlsrpt+gzip\r\nContent-Transfer-Encoding: base64")
	line("Content-Disposition: attachment;\r\n filename=\"%s\"\r\n", fileName(l.id, domain, r))
	for len(text) > 0 {
		n := min(76, len(text))
		line("%s", text[:n])
		text = text[n:]
	}
	line("\r\n--%s--", boundary)
	return b.Bytes()
}

// fileName is the name of the attachment (RFC 8460, 5.1).
func fileName(id mail.ID, domain string, r tlspolicy.Report) string {
	return strings.Join([]string{r.Organization, domain, fmt.Sprint(r.Range.Start.Unix()), fmt.Sprint(r.Range.End.Unix()), string(id)}, "!") + ".json.gz"
}
