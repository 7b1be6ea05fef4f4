// Package cutover is the conductor: it moves one user through the states, by
// means of the router's table, the queue and the backfill.
//
//	old -> syncing -> ready -> cutover (hold, drain, final passes) -> new
//
// While a user is in cutover his mail is accepted and kept. The hold ends in
// one of two ways: a final pass found nothing left to copy and the user is
// new, or something went wrong or took longer than max_hold and he is ready
// again and reads old as before. After a restart the conductor takes up every
// user whom it finds in syncing or cutover.
//
// Start reading at [Conductor].
package cutover
