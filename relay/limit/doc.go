// Package limit decides who may have how much of the relay: connections at once,
// connections, messages and recipients in a time, unknown recipients.
//
// It counts by address and knows nothing of SMTP. One [Guard] serves all
// listeners of one process; several nodes count each for itself, because a limit
// protects the memory, the disk and the CPU of one machine, and because a shared
// count would put a round trip to the store in front of every command of a
// stranger. So n nodes let in n times as much.
//
// What is counted is bounded in memory whatever strangers do: every table has
// room for a fixed number of subjects. When one is full, room is made by
// forgetting the subject about which there is least to remember, of a few that
// are picked at random. Somebody who wants his own count forgotten would have to
// fill the table with others who did as much as he (table.go).
//
// Start reading at [Guard.Enter] and [Settings].
package limit
