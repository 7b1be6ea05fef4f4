// Package window has one test: a whole company goes through the window in which both mail systems are in use, between real
// servers, with mail that arrives on every way there is, people who use their mailboxes meanwhile, waves, rollbacks, and a
// relay that is killed every few seconds. At the end each message is exactly once in the mailbox that its user reads, by a
// count of the test's own that shares nothing with the product.
//
// The short form runs with all tests; `make window` runs the long one (CROSSFADE_FAULTS=long).
package window
