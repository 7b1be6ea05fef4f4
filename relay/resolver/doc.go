// Package resolver asks the DNS on behalf of a relay: what strangers make it ask stays bounded in number, time and size.
//
// A [Resolver] is a stub: it asks recursive resolvers, those of /etc/resolv.conf or others, and believes them. It bounds
//
//   - time: a question is given up after Config.Timeout, over all servers and tries, and a server that is silent to
//     everything is left alone until it answers again, so that a dead resolver costs little;
//   - number: equal questions that are asked at the same time are asked once, only Config.MaxInFlight are under way at
//     once, [WithAsker] bounds what one network may have of them, and [WithBudget] what one message may cause;
//   - size: answers with more than Config.MaxRecords records are refused whole, never cut, and the cache is bounded in
//     entries and octets.
//
// Answers are cached for their TTL within bounds, that there is nothing as RFC 2308 says, and failures shortly.
//
// The errors tell apart what callers must tell apart, by errors.Is: [ErrNoName] (the name does not exist), [ErrTemporary]
// (nobody could tell: ask again later, and decide nothing) and [ErrPermanent] (there is an answer and it is of no use). A
// name that exists without records of the type asked is an empty answer and no error.
//
// It does not validate DNSSEC. [Answer.Authentic] passes on what a validating resolver says, where that resolver can be
// trusted to say so: on this machine, or when Config.TrustAD says it. Begin reading at [Resolver].
package resolver
