package queue

import "time"

// Schedule is when a delivery is tried again and when it is given up. Its
// methods are pure: time and chance are handed in.
type Schedule struct {
	First  time.Duration // wait after the first failure
	Max    time.Duration // longest wait
	Expire time.Duration // age after which a temporary failure is final
	Notice time.Duration // age after which the sender is told of the delay; 0: never
}

// DefaultSchedule waits 1 minute, then longer by half each time up to 30
// minutes, tells the sender after 4 hours and gives up after 5 days (RFC 5321,
// 4.5.4.1).
func DefaultSchedule() Schedule {
	return Schedule{First: time.Minute, Max: 30 * time.Minute, Expire: 5 * 24 * time.Hour, Notice: 4 * time.Hour}
}

// Next is the wait before the attempt that follows the given number of
// attempts (at least 1), spread by jitter in [0, 1) over 20 % so that what
// failed together does not come back together.
func (s Schedule) Next(attempts int, jitter float64) time.Duration {
	wait := float64(s.First)
	for i := 1; i < attempts && wait < float64(s.Max); i++ {
		wait *= 1.5
	}
	wait = min(wait, float64(s.Max))
	return time.Duration(wait * (0.9 + 0.2*jitter))
}

// minAttempts is how often a recipient is tried before its age counts. Mail that
// was kept for days, by an operator, a paused backend or an outage of ours, is not
// bounced because it meets greylisting on its first attempt; with the default
// waits these attempts take 8 minutes.
const minAttempts = 5

// Expired tells whether a recipient that has waited for age may be given up
// after so many attempts since its route last changed, five at least: mail that
// was only held never expires.
func (s Schedule) Expired(age time.Duration, attempts int) bool {
	return s.Expire > 0 && attempts >= minAttempts && age >= s.Expire
}

// NoticeDue tells whether the sender should be told of the delay now.
func (s Schedule) NoticeDue(age time.Duration, noticed bool) bool {
	return s.Notice > 0 && !noticed && age >= s.Notice
}
