package wire

import "time"

// armRead sets the read deadline, but only when the one that is set is off by
// more than an eighth: setting it costs more than all else that a read does here.
// Inside a body it is never behind the body's own.
func (c *Conn) armRead(d time.Duration) {
	want := time.Now().Add(d)
	if end := c.tx.until; !end.IsZero() && end.Before(want) {
		want = end
	}
	slow := false
	if end := c.slowest(); !end.IsZero() && end.Before(want) {
		want, slow = end, true
	}
	if off := want.Sub(c.readBy); off < 0 || off > d/8 {
		c.readBy, c.readSlow = want, slow
		_ = c.raw.SetReadDeadline(want)
	}
}

// slowest is when a body that comes no faster than it must is late; zero: never.
func (c *Conn) slowest() time.Time {
	rate := c.l.cfg.BodyRate
	if rate <= 0 || c.tx.since.IsZero() {
		return time.Time{}
	}
	allowed := c.l.cfg.BodyGrace + time.Duration(float64(c.tx.body)/float64(rate)*float64(time.Minute))
	if allowed < 0 || allowed > maxAllowance {
		return time.Time{}
	}
	return c.tx.since.Add(allowed)
}

// maxAllowance is beyond what any body may take.
const maxAllowance = 30 * 24 * time.Hour

// bodyBegins sets the times of a body that begins now.
func (c *Conn) bodyBegins() {
	c.tx.since, c.tx.until = time.Now(), c.bodyEnd()
}

// lateBody is the word for a read of a body that ran into its deadline.
func (c *Conn) lateBody() string {
	if end := c.slowest(); !end.IsZero() && !time.Now().Before(end) {
		return "body_rate"
	}
	return "body_timeout"
}

// bodyEnd is when a body that begins now has to be over.
func (c *Conn) bodyEnd() time.Time {
	if d := c.l.cfg.BodyTimeout; d > 0 {
		return time.Now().Add(d)
	}
	return time.Time{}
}

func (c *Conn) armWrite() {
	d := c.l.cfg.WriteTimeout
	if now := time.Now(); c.writeBy.Sub(now) < d {
		c.writeBy = now.Add(d + d/8)
		_ = c.raw.SetWriteDeadline(c.writeBy)
	}
}
