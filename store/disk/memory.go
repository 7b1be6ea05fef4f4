package disk

import (
	"container/heap"
	"math"

	"crossfade/mail"
	"crossfade/router"
)

// What is in memory: the recipients that are due now or soon, or leased. The
// rest is on disk only. All of it is guarded by Store.mu. Rows are changed by
// the writer alone, after the commit that made the change durable; claims and
// leases touch memory only.

// where says what an item is doing in memory.
type where uint8

const (
	ready   where = iota // claimable, in its lane
	waiting              // in the heap of timers
	leased               // a worker has it
	limbo                // taken back; the writer will say where it goes
	gone                 // no longer in the queue, or no longer in memory
)

// item is a recipient in memory.
type item struct {
	m     *msg
	row   row
	u     *ustate // nil when it has no user
	where where
	lane  lane // where it belongs and is counted
	timer int64
	lease *lease
}

// msg is a message in memory, with those of its recipients that are.
type msg struct {
	id    mail.ID
	env   *mail.Envelope
	loc   loc
	live  int // recipients that are not gone, on disk too
	items []*item
	inq   [laneOut + 1]bool // it stands in the lane's queue
}

// item finds a recipient in memory.
func (m *msg) item(n int) *item {
	for _, it := range m.items {
		if it.row.n == n {
			return it
		}
	}
	return nil
}

// way is what wayOf asks of a user; nil is a recipient without one.
func (u *ustate) way() (lane, bool) {
	if u == nil || !u.known || u.user.State == "" {
		return laneNone, false
	}
	r, held := u.user.Route()
	return laneOf(r), held
}

// copies tells whether the side that is not read gets a copy of what is
// delivered now. Not while the conductor is at work for the user: the backfill
// brings over what old gets, and a copy that came beside it would be twice.
func (u *ustate) copies() bool {
	if u == nil || !u.known || u.user.Deliver != router.DeliverBoth {
		return false
	}
	switch u.user.State {
	case router.StateSyncing, router.StateReady, router.StateCutover, router.StateRollback:
		return false
	}
	return true
}

func (u *ustate) generation() uint64 {
	if u == nil || !u.known {
		return 0
	}
	return u.gen
}

func (u *ustate) epoch() uint64 {
	if u == nil || !u.known {
		return 0
	}
	return u.user.Epoch
}

func (u *ustate) since() int64 {
	if u == nil || !u.known {
		return 0
	}
	return millis(u.user.Since)
}

// ring is a queue of messages.
type ring struct {
	buf   []*msg
	head  int
	n     int
	rcpts int // of its messages' envelopes
}

// full tells whether a ring has as much as a window may hold: a message with
// very many recipients takes the room of many.
func (r *ring) full(window int) bool {
	return r.n >= window || r.rcpts >= windowRcpts*window
}

func (r *ring) grow() {
	if r.n < len(r.buf) {
		return
	}
	buf := make([]*msg, max(64, 2*len(r.buf)))
	for i := range r.n {
		buf[i] = r.buf[(r.head+i)%len(r.buf)]
	}
	r.buf, r.head = buf, 0
}

func (r *ring) push(m *msg) {
	r.grow()
	r.buf[(r.head+r.n)%len(r.buf)] = m
	r.n++
	r.rcpts += len(m.env.Recipients)
}

func (r *ring) pushFront(m *msg) {
	r.grow()
	r.head = (r.head + len(r.buf) - 1) % len(r.buf)
	r.buf[r.head] = m
	r.n++
	r.rcpts += len(m.env.Recipients)
}

func (r *ring) pop() *msg {
	if r.n == 0 {
		return nil
	}
	m := r.buf[r.head]
	r.buf[r.head] = nil
	r.head = (r.head + 1) % len(r.buf)
	r.n--
	r.rcpts -= len(m.env.Recipients)
	return m
}

// keep drops the messages for which ok is false.
func (r *ring) keep(ok func(*msg) bool) {
	for range r.n {
		if m := r.pop(); ok(m) {
			r.push(m)
		}
	}
}

// never is a time that does not come.
const never = math.MaxInt64

// laneq is what is due for one route. Mail that came straight in and mail that
// was paged in from disk (released, retried, or left there by a burst) take
// turns, so that neither waits for all of the other.
type laneq struct {
	straight ring
	paged    ring
	turn     bool
	waiters  []chan struct{}
	nextDisk int64 // no recipient on disk is due before; never: none is
	cursor   int64 // all that is on disk and was due before this is in memory
}

// pop gives the next message of the lane, and where it stood.
func (q *laneq) pop() (*msg, *ring) {
	first, second := &q.straight, &q.paged
	if q.turn {
		first, second = second, first
	}
	q.turn = !q.turn
	if m := first.pop(); m != nil {
		return m, first
	}
	return second.pop(), second
}

// prune drops messages that have nothing left to claim in the lane, so that
// they do not count as its backlog.
func (q *laneq) prune(l lane) {
	ok := func(m *msg) bool {
		for _, it := range m.items {
			if it.where == ready && it.lane == l {
				return true
			}
		}
		m.inq[l] = false
		return false
	}
	q.straight.keep(ok)
	q.paged.keep(ok)
}

// left notes that a recipient due then is on disk only.
func (q *laneq) left(due int64) {
	q.nextDisk = min(q.nextDisk, due)
	q.cursor = min(q.cursor, due)
}

// wake lets one claim look again.
func (q *laneq) wake() {
	if len(q.waiters) == 0 {
		return
	}
	w := q.waiters[0]
	q.waiters = q.waiters[1:]
	close(w)
}

// unwait takes a waiter out; it tells whether it was still in.
func (q *laneq) unwait(w chan struct{}) bool {
	for i := range q.waiters {
		if q.waiters[i] == w {
			q.waiters = append(q.waiters[:i], q.waiters[i+1:]...)
			return true
		}
	}
	return false
}

// timer is an entry of the heap: the item is due at. An entry is stale when
// the item's own time is another.
type timer struct {
	at int64
	it *item
}

type timers []timer

func (t timers) Len() int           { return len(t) }
func (t timers) Less(i, j int) bool { return t[i].at < t[j].at }
func (t timers) Swap(i, j int)      { t[i], t[j] = t[j], t[i] }
func (t *timers) Push(x any)        { *t = append(*t, x.(timer)) }
func (t *timers) Pop() any {
	old := *t
	x := old[len(old)-1]
	old[len(old)-1] = timer{}
	*t = old[:len(old)-1]
	return x
}

// resident puts a message into memory, or gives the one that is there.
func (s *Store) resident(id mail.ID, env *mail.Envelope, l loc, live int) *msg {
	if m := s.msgs[id]; m != nil {
		return m
	}
	m := &msg{id: id, env: env, loc: l, live: live}
	s.msgs[id] = m
	s.rcpts += len(env.Recipients)
	return m
}

// evict takes a message out of memory; on disk it stays as it is.
func (s *Store) evict(m *msg) {
	if s.msgs[m.id] == m {
		delete(s.msgs, m.id)
		s.rcpts -= len(m.env.Recipients)
	}
}

// enter brings a row into memory; admit says where it goes. counted tells
// whether it was counted before, under row.lane.
func (s *Store) enter(m *msg, r row, u *ustate, counted bool) *item {
	it := &item{m: m, row: r, u: u, where: limbo, lane: r.lane}
	if !counted {
		s.count[r.lane]++
	}
	if u != nil {
		u.refs++
	}
	m.items = append(m.items, it)
	return it
}

// move counts an item under another lane.
func (s *Store) move(it *item, l lane) {
	s.count[it.lane]--
	s.count[l]++
	it.lane = l
}

// admit decides where an item that is neither leased nor gone belongs now, and
// puts it there. paged tells in which of the two queues it stands.
func (s *Store) admit(it *item, paged bool) {
	it.lease = nil
	it.row.fresh(it.u)
	l := place(&it.row, it.u)
	s.move(it, l)
	switch {
	case l == laneHeld && it.row.lane != laneHeld:
		it.where = limbo
		s.filing = append(s.filing, it)
		s.kickWriter()
	case !l.isRoute():
		s.forget(it)
	case it.row.due > s.now():
		s.wait(it)
	default:
		s.makeReady(it, paged)
	}
}

// wait sets an item's timer, or leaves it on disk when it is due late.
func (s *Store) wait(it *item) {
	if it.row.due > s.now()+s.horizon.Milliseconds() || len(s.timers) >= 4*s.window || s.rcpts >= 2*windowRcpts*s.window {
		s.forget(it)
		return
	}
	it.where, it.timer = waiting, it.row.due
	heap.Push(&s.timers, timer{it.row.due, it})
	s.arm(it.row.due)
}

func (s *Store) makeReady(it *item, paged bool) {
	it.where = ready
	m, q := it.m, &s.lanes[it.lane]
	if m.inq[it.lane] {
		return
	}
	m.inq[it.lane] = true
	if paged {
		q.paged.push(m)
	} else {
		q.straight.push(m)
	}
	q.wake()
}

// forget takes an item out of memory; it stays on disk, filed as its row says.
func (s *Store) forget(it *item) {
	s.move(it, it.row.lane)
	if it.row.lane.isRoute() {
		s.lanes[it.row.lane].left(it.row.due)
		s.arm(it.row.due)
	}
	s.checkFiled(&it.row)
	s.detach(it)
}

// remove takes an item out of memory and out of the count: it is gone.
func (s *Store) remove(it *item) {
	s.count[it.lane]--
	s.detach(it)
}

func (s *Store) detach(it *item) {
	it.where = gone
	if it.u != nil {
		it.u.refs--
	}
	m := it.m
	for i := range m.items {
		if m.items[i] == it {
			m.items = append(m.items[:i], m.items[i+1:]...)
			break
		}
	}
	if len(m.items) == 0 {
		s.evict(m)
	}
}
