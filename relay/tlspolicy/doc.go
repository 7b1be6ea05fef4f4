// Package tlspolicy finds out what the owner of a mail server demands of TLS, and counts how TLS fares.
//
// [DANE] looks up TLSA records (RFC 7672) and [STS] keeps MTA-STS policies (RFC 8461); each gives a [smtpclient.Rule] for
// one connection, and a [Server] puts them together. [Counts] counts sessions as the reports of RFC 8460 do.
//
// The servers here are not found by MX records: an operator wrote their names down. So DANE is that of RFC 7672, 2.2.2
// (non-MX destinations), and the policy domain of MTA-STS has to be named too. Begin reading at [DANE.Rule] and
// [STS.Rule].
package tlspolicy
