// Package authn judges who sent a message: SPF (RFC 7208), DKIM (RFC 6376, 8301, 8463) and DMARC (RFC 7489), and writes
// what it found as an Authentication-Results field (RFC 8601).
//
// A [Checker] is made once. [Checker.Begin] starts a [Check] of one message, which is given the message as it streams by
// (Write) and gives a [Report] at its end (End). The check never changes a message and never fails: what could not be
// found out is a result too (temperror). Whether a message is refused for its result is Report.Disposition, and by
// default never.
//
// Strangers choose what is looked at, so everything has a bound: the header that is kept and the fields of it, the
// signatures that are verified, the size of keys, the memory of all checks together, the lookups and their time. What is beyond a bound is judged as not authenticated, with the reason in the result; it is never let pass
// and never lost.
//
// SPF is blitiri.com.ar/go/spf, which asks the relay's own resolver. DKIM is package dkim below, which ARC needs too: it is linear in
// what strangers write, where go-msgauth is not, so that nothing has to be passed over. Alignment, the organisational
// domain, reading From and DMARC records, and writing the field are here, because there mistakes let forgeries pass.
//
// It does not know ARC ([Message.Vouch] and Report.Others are the places for it), does not send reports, and does not decide what is forged
// among the fields that a message came with: the relay takes those away. Begin reading at [Checker].
package authn
