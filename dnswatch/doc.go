// Package dnswatch is the DNS side of a move: what the records of a domain have to be before and after each change of
// its MX, and when nobody can know the old ones any more.
//
// [Checker.Check] looks at one moment: it asks resolvers and the authoritative servers for everything that decides
// whether mail arrives in a [Phase] (MX, addresses, TTLs, SPF, DKIM, DMARC, MTA-STS, TLS-RPT, DANE, PTR) and gives a
// [Finding] for each, with the record to change. [Watch] looks all the time: it keeps in a [State], durably, when each
// value was seen first and last and with which TTL, and says when the mailboxes that users left may stop being swept.
//
// It changes no record, and it knows nothing of users and mailboxes: who still sends to the old system is told to it
// through [Stragglers]. Resolvers are asked with recursion desired, authoritative servers without; what either answers
// is bounded in time and size and never trusted to be well-formed.
//
// Start reading at [Checker.Check] and [Watch.Round].
package dnswatch
