package relay

import (
	"bytes"
	"fmt"
	"net"
	"net/netip"
	"strings"
	"time"

	"crossfade/mail"
)

// dsnReport is a delivery status notification about one message (RFC 3464).
type dsnReport struct {
	id       mail.ID // of the notification itself
	hostname string
	kind     mail.Notify // NotifyFailure, NotifyDelay or NotifySuccess
	env      *mail.Envelope
	rcpts    []dsnRcpt
	now      time.Time
	retryTo  time.Time // NotifyDelay: when it will be given up; zero: never
	remote   string    // the backend's address, as dialled
	original []byte    // what of the message is returned
	full     bool      // original is the whole message, not only its header
}

// dsnRcpt is what happened to one recipient.
type dsnRcpt struct {
	rcpt   mail.Recipient
	action string        // RFC 3464, 2.3.3
	status mail.Enhanced // RFC 3463
	reply  mail.Reply    // the backend's words; Code 0: it said nothing
	reason string        // what went wrong, when the backend said nothing
}

// The bounds of what a notification says.
const (
	dsnWidth   = 76  // columns of our own text
	dsnMaxDiag = 800 // octets of what a server said
)

// build writes the whole notification with CRLF line ends. utf8 tells whether
// it needs SMTPUTF8 on its way, eight whether it needs 8BITMIME.
func (d *dsnReport) build() (body []byte, utf8, eight bool) {
	utf8 = d.global()
	eight = utf8 || !isASCIIBytes(d.original)
	var b bytes.Buffer
	b.Grow(4096 + len(d.original))
	boundary := "=_" + string(d.id)
	d.header(&b, boundary, eight)
	d.textPart(&b, boundary, utf8)
	d.statusPart(&b, boundary, utf8)
	d.originalPart(&b, boundary, utf8)
	fmt.Fprintf(&b, "\r\n--%s--\r\n", boundary)
	return b.Bytes(), utf8, eight
}

// global tells whether addresses need the forms of RFC 6533.
func (d *dsnReport) global() bool {
	if d.env.UTF8 || !d.env.From.IsASCII() {
		return true
	}
	for _, r := range d.rcpts {
		if !r.rcpt.Addr.IsASCII() || !r.rcpt.Given().IsASCII() {
			return true
		}
	}
	return false
}

func (d *dsnReport) header(b *bytes.Buffer, boundary string, eight bool) {
	fmt.Fprintf(b, "From: Mail Delivery System <MAILER-DAEMON@%s>\r\n", d.hostname)
	fmt.Fprintf(b, "To: <%s>\r\n", d.env.From)
	fmt.Fprintf(b, "Subject: %s\r\n", d.subject())
	fmt.Fprintf(b, "Date: %s\r\n", d.now.Format(time.RFC1123Z))
	fmt.Fprintf(b, "Message-ID: <%s@%s>\r\n", d.id, d.hostname)
	if id := dsnLine(d.env.MessageID, false); id != "" && len(id) < 900 && !strings.ContainsAny(id, " ") {
		if !strings.HasPrefix(id, "<") {
			id = "<" + id + ">"
		}
		fmt.Fprintf(b, "In-Reply-To: %s\r\nReferences: %s\r\n", id, id)
	}
	b.WriteString("Auto-Submitted: auto-replied\r\nMIME-Version: 1.0\r\n")
	if eight {
		b.WriteString("Content-Transfer-Encoding: 8bit\r\n") // as its parts (RFC 2045, 6.4)
	}
	fmt.Fprintf(b, "Content-Type: multipart/report; report-type=delivery-status;\r\n\tboundary=\"%s\"\r\n\r\n", boundary)
	b.WriteString("This is a delivery status notification in MIME format (RFC 3464).\r\n")
}

func (d *dsnReport) subject() string {
	switch d.kind {
	case mail.NotifyDelay:
		return "Delayed mail (still being tried)"
	case mail.NotifySuccess:
		return "Successful mail delivery report"
	}
	return "Undelivered mail returned to sender"
}

func (d *dsnReport) part(b *bytes.Buffer, boundary, contentType string, eight bool) {
	fmt.Fprintf(b, "\r\n--%s\r\nContent-Type: %s\r\n", boundary, contentType)
	if eight {
		b.WriteString("Content-Transfer-Encoding: 8bit\r\n")
	}
	b.WriteString("\r\n")
}

// textPart says in plain words what happened.
func (d *dsnReport) textPart(b *bytes.Buffer, boundary string, utf8 bool) {
	charset := "us-ascii"
	if utf8 {
		charset = "utf-8"
	}
	d.part(b, boundary, "text/plain; charset="+charset, utf8)
	fmt.Fprintf(b, "This is the mail system at %s.\r\n\r\n", d.hostname)
	switch d.kind {
	case mail.NotifyDelay:
		until := "it arrives"
		if !d.retryTo.IsZero() {
			until = d.retryTo.Format("2 January 2006, 15:04 MST")
		}
		dsnWrap(b, "", "Your message could not be delivered yet to the recipients below. You do not need to send it again: it is kept and tried until "+until+".")
	case mail.NotifySuccess:
		dsnWrap(b, "", "Your message was handed over for the recipients below. \"Relayed\" means that the next mail system took it "+
			"and sends no report of its own.")
	default:
		dsnWrap(b, "", "Your message could not be delivered to the recipients below, and will not be tried again. "+
			"If you need help, send this report to your postmaster.")
	}
	for _, r := range d.rcpts {
		fmt.Fprintf(b, "\r\n<%s>\r\n", dsnLine(r.rcpt.Given().String(), utf8))
		dsnWrap(b, "    ", r.words(utf8))
	}
}

// words is what happened to a recipient, for people.
func (r *dsnRcpt) words(utf8 bool) string {
	switch {
	case r.reply.Code != 0 && r.action != "delivered" && r.action != "relayed":
		return "The receiving mail system said: " + dsnLine(r.reply.String(), utf8)
	case r.reply.Code != 0:
		return strings.ToUpper(r.action[:1]) + r.action[1:] + ": " + dsnLine(r.reply.String(), utf8)
	}
	return dsnLine(r.reason, utf8)
}

// statusPart is the part for programs (RFC 3464, 2).
func (d *dsnReport) statusPart(b *bytes.Buffer, boundary string, utf8 bool) {
	contentType := "message/delivery-status"
	if utf8 {
		contentType = "message/global-delivery-status"
	}
	d.part(b, boundary, contentType, utf8)
	if d.env.EnvID != "" {
		dsnField(b, "Original-Envelope-Id", dsnLine(d.env.EnvID, false))
	}
	dsnField(b, "Reporting-MTA", "dns; "+d.hostname)
	dsnField(b, "X-Crossfade-Queue-ID", string(d.env.ID))
	dsnField(b, "Arrival-Date", d.env.Received.Format(time.RFC1123Z))
	for i := range d.rcpts {
		b.WriteString("\r\n")
		d.rcptFields(b, &d.rcpts[i], utf8)
	}
}

func (d *dsnReport) rcptFields(b *bytes.Buffer, r *dsnRcpt, utf8 bool) {
	switch {
	case r.rcpt.ORcpt != "":
		typ, addr, _ := strings.Cut(r.rcpt.ORcpt, ";")
		dsnField(b, "Original-Recipient", dsnLine(typ, false)+"; "+dsnLine(addr, utf8))
	case !r.rcpt.Orig.IsNull():
		dsnField(b, "Original-Recipient", dsnAddress(r.rcpt.Orig))
	}
	dsnField(b, "Final-Recipient", dsnAddress(r.rcpt.Addr))
	dsnField(b, "Action", r.action)
	dsnField(b, "Status", r.status.String())
	if name := dsnHost(d.remote); name != "" && r.reply.Code != 0 {
		dsnField(b, "Remote-MTA", "dns; "+name)
	}
	if r.reply.Code != 0 {
		dsnField(b, "Diagnostic-Code", "smtp; "+dsnLine(r.reply.String(), utf8))
	}
	dsnField(b, "Last-Attempt-Date", d.now.Format(time.RFC1123Z))
	if d.kind == mail.NotifyDelay && !d.retryTo.IsZero() {
		dsnField(b, "Will-Retry-Until", d.retryTo.Format(time.RFC1123Z))
	}
}

// originalPart returns the message or its header (RFC 3461, 4.3).
func (d *dsnReport) originalPart(b *bytes.Buffer, boundary string, utf8 bool) {
	contentType := "text/rfc822-headers"
	switch {
	case d.full && utf8:
		contentType = "message/global"
	case d.full:
		contentType = "message/rfc822"
	case utf8:
		contentType = "message/global-headers"
	}
	d.part(b, boundary, contentType, !isASCIIBytes(d.original))
	b.Write(d.original)
}

// dsnAddress gives an address with its type (RFC 3464, 2.3; RFC 6533, 3).
func dsnAddress(a mail.Address) string {
	if a.IsASCII() {
		return "rfc822; " + a.String()
	}
	return "utf-8; " + a.String()
}

// dsnHost is the name of a dialled host; empty for a socket.
func dsnHost(address string) string {
	host, _, err := net.SplitHostPort(address)
	if err != nil {
		return ""
	}
	if ip, err := netip.ParseAddr(host); err == nil {
		if ip.Is6() {
			return "[IPv6:" + ip.String() + "]"
		}
		return "[" + ip.String() + "]"
	}
	return dsnLine(host, false)
}

// dsnLine makes a stranger's text fit for one line of a notification: nothing
// that could end the line, and no more of it than anybody reads.
func dsnLine(s string, utf8 bool) string {
	clean := strings.Map(func(r rune) rune {
		switch {
		case r == '\n' || r == '\t':
			return ' '
		case r < ' ' || r == 0x7f || r >= 0x80 && (!utf8 || r < 0xa0 || r == 0xfffd || r == 0x2028 || r == 0x2029):
			return '?'
		}
		return r
	}, s)
	if len(clean) > dsnMaxDiag {
		clean = strings.ToValidUTF8(clean[:dsnMaxDiag], "") + " ..."
	}
	return clean
}

// dsnField writes a header field, folded where it has spaces.
func dsnField(b *bytes.Buffer, name, value string) {
	b.WriteString(name)
	b.WriteString(": ")
	dsnFold(b, len(name)+2, " ", value)
}

// dsnWrap writes a paragraph.
func dsnWrap(b *bytes.Buffer, indent, text string) {
	b.WriteString(indent)
	dsnFold(b, len(indent), indent, text)
}

// dsnFold writes words from the given column on, and starts each further line
// with indent. A word that is longer than a line stays whole; dsnLine bounds it.
func dsnFold(b *bytes.Buffer, column int, indent, text string) {
	first := true
	for word := range strings.FieldsSeq(text) {
		switch {
		case first:
		case column+1+len(word) > dsnWidth:
			b.WriteString("\r\n" + indent)
			column = len(indent)
		default:
			b.WriteByte(' ')
			column++
		}
		b.WriteString(word)
		column += len(word)
		first = false
	}
	b.WriteString("\r\n")
}

func isASCIIBytes(b []byte) bool {
	for _, c := range b {
		if c >= 0x80 {
			return false
		}
	}
	return true
}
