package backfill

import "time"

// Filter says what of the source is left out. The zero value leaves out
// nothing. What is left out is never looked at as missing, and is counted in
// every report, plan and verification with the class "filtered". What was copied
// before the filter left it out stays.
type Filter struct {
	// Since and Before bound the internal date: Since <= date < Before. Zero
	// bounds nothing. A message whose date cannot be read is not left out.
	Since, Before time.Time
	// MaxSize leaves out messages with more octets (RFC822.SIZE); zero bounds
	// nothing.
	MaxSize int64
	// Include and Exclude are patterns for names of folders of the source, in
	// UTF-8 with the server's own separator, in which "*" stands for any text,
	// separators too. Case matters, but for INBOX. Without Include all folders
	// are in; Exclude has the last word.
	Include, Exclude []string
}
