// Package mailtest holds the mail servers that Crossfade is tried against: an SMTP and LMTP server whose every
// misbehaviour can be scripted ([Sink]), a whole mail system with SMTP and IMAP in one process ([Mailsystem]),
// certificates ([CA]) and a runner for SMTP dialogues written as text ([RunDialogue]).
//
// It is used by the tests of other packages and by "crossfade demo", so nothing here imports the testing package.
// Helpers that take a testing.TB and start the real programs of a Debian system (Dovecot, Postfix, swaks) live in the
// sub-package realtest. None of these servers is meant to meet the Internet: they keep all mail in memory, trust their
// callers, and bind to the loopback address. Start reading at [NewSink].
package mailtest
