// Package queue is the life of an accepted message: the states of its
// recipients, the leases under which it is delivered, the retry schedule, and
// [Store], the promise that both stores keep.
//
// A recipient is in exactly one state:
//
//	          Put                    Claim              Renew(sending)
//	(arrives) ----> queued <------> leased -----------> sending
//	            \     ^   retry, lost  |                   |
//	 user held   \    |                | hold, move        | Settle
//	              v   |                v                   v
//	             held (user or operator)      gone (done, bounced, deleted), queued again, parked
//
// It leaves the queue in three ways only (invariant I2): a backend answered
// 2xx, a bounce for it was queued in the same step, or an operator removed it.
//
// Start reading at [Store].
package queue
