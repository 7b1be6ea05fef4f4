// Package audit shows that no message is missing. It joins the journal (what was
// accepted, where each delivery went), the queue (what waits), and, where they can
// be reached, the mailboxes (what lies there), and says of every accepted message
// where it is:
//
//	accepted + found = delivered + swept + left + bounced + queued + parked + removed + withdrawn
//
// for each user, with each difference named by its queue id. The result is a
// document that is signed and can be checked later. The same sources tell one
// message's whole life ([Auditor.Why]), and what must be true before the old system
// may be switched off ([Finish]).
//
// It changes nothing.
//
// Start reading at [Auditor.Run].
package audit
