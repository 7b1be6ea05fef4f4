package backfill

import (
	"cmp"
	"context"
	"errors"
	"slices"
	"sync"
	"time"

	"crossfade/backfill/imapconn"
)

const (
	// defaultConnections keeps a mailbox below the ten connections for one user
	// that servers allow by default: a lane has up to four.
	defaultConnections = 4
	// farConnections and mostFar are for a first copy over a distance, in which
	// next to no lane looks into the destination: each folder has its own lane
	// where there are few.
	farConnections = 5
	mostFar        = 6
	growEvery      = time.Second
	manyFolders    = 6
	// growth is what the last lane must have brought for one more to be opened.
	growth = 1.1
	// farAway is the round trip from which on waiting, and not work, is what a
	// pass consists of: more connections are opened, and at once.
	farAway  = 15 * time.Millisecond
	farEarly = 4 // folders from which on lanes are opened before anything is known of them
)

// lane is a set of connections to both sides that works on one folder at a
// time. Folders are what is shared out: two connections that append to one
// mailbox wait for each other on its lock.
type lane struct {
	src       MailReader // nil in a plan
	dst       *imapconn.Session
	dstReader *imapconn.Reader
	// refusals in a row: too many mean that the destination takes nothing.
	refusedInRow int
	paid         int64             // octets of the batch that were taken from the day's limit and not sent yet
	release      func()            // of the connections' share of all; nil for the first lane
	more         func() *folderRun // gives the lane's next folder
	ahead        *folderRun        // the one that was given already
	leaving      bool              // no more after that
}

func (l *lane) close() {
	if l.ahead != nil {
		l.ahead.forget()
	}
	if l.src != nil {
		l.src.Close()
	}
	if l.dstReader != nil {
		l.dstReader.Close()
	}
	if l.dst != nil {
		l.dst.Close()
	}
	if l.release != nil {
		l.release()
	}
}

// openLane connects to both sides at once, over connections that sitMore took.
func (p *pass) openLane() (*lane, error) {
	l := &lane{dstReader: p.reader(p.job.Dest, nil), release: p.standMore}
	if _, ok := p.srcBox.(*imapMailbox); ok {
		l.src = p.reader(p.job.Source, nil) // its session is the first lane's, and may be at work
	} else {
		l.src = p.srcBox.NewReader()
	}
	err := both(func() error {
		// The source may as well be connected to when the first folder is read.
		if r, ok := l.src.(interface{ Connect() error }); ok {
			err := r.Connect()
			p.srcServer().refused(err, srcSeats)
			return err
		}
		return nil
	}, func() (err error) {
		l.dst, err = p.openDest()
		return err
	})
	if err != nil {
		l.close()
		return nil, err
	}
	return l, nil
}

// measure finds out whether one of the servers is so distant that a pass mostly
// waits.
func (p *pass) measure() {
	longest := p.dst.RoundTrip()
	if m, ok := p.srcBox.(*imapMailbox); ok {
		longest = max(longest, m.RoundTrip())
	}
	p.far = longest >= farAway
}

// mostLanes is how many folders may be copied at once. Where several mailboxes
// are copied at a time and the servers are near, these are enough to do: a
// further connection would cost a login and bring nothing. Distance is waited
// for in each mailbox by itself.
func (p *pass) mostLanes() int {
	most := cmp.Or(max(p.c.Connections, 0), p.ownLanes())
	if n := int(p.c.together().passes.Load()); n > 1 && !p.far {
		most = max(most/n, 1)
	}
	return most
}

// ownLanes is that where nothing is configured.
func (p *pass) ownLanes() int {
	if !p.first || !p.far {
		return defaultConnections
	}
	// Mail may be in the folders that are there already, and those are looked into
	// over a second connection.
	there := 0
	for _, pr := range p.pairings {
		if pr.exists {
			there++
		}
	}
	if p.pairings != nil && there+mostFar <= 2*farConnections {
		return mostFar
	}
	return farConnections
}

// farBatches is how many times as large a batch may be between distant servers.
const farBatches = 3

// batch bounds a batch of a folder with so many messages left, in messages and
// octets. Two batches are in flight in a lane, one being read and one being
// appended, so each has half of the octets. Each waits for a round trip: where
// that is long, a folder that most of the rest is in, which will be copied when
// all others are through, has batches as large as a quarter of the memory allows.
func (p *pass) batch(left int) (messages int, octets int64) {
	messages, octets = p.c.batchMessages(), cmp.Or(max(p.c.BatchBytes, 0), defaultBatchBytes)/2
	all := 0
	p.tally(func(_ *Report, g *Progress) { all = g.Messages - g.MessagesDone })
	set := p.c.BatchMessages > 0 || p.c.BatchBytes > 0 // then these are bounds
	if !p.far || set || left < all/3 {
		return messages, octets
	}
	shared := p.c.together()
	larger := min(max(shared.memory.whole/4/max(int64(shared.passes.Load()), 1)/octets, 1), farBatches)
	return messages * int(larger), octets * larger
}

// spare is a lane that is opened before anybody needs it.
type spare struct {
	l    *lane
	err  error
	done chan struct{}
}

// guessDistance is measure before anything was asked for: the servers have
// greeted, and taken the login. Mailboxes have folders enough for a few lanes,
// so these are opened before the folders are known.
func (p *pass) guessDistance() {
	p.far = p.dst.FirstWait() >= farAway
	if m, ok := p.srcBox.(*imapMailbox); ok {
		p.far = p.far || m.FirstWait() >= farAway
	}
	p.openEarly(p.mostLanes())
}

// openEarly opens lanes for the first copy of so many folders from distant
// servers, while the folders are looked at and made.
func (p *pass) openEarly(folders int) {
	if !p.first || !p.far || folders < farEarly {
		return
	}
	for range min(p.mostLanes(), folders) - 1 - len(p.spares) {
		if !p.sitMore() {
			return
		}
		s := &spare{done: make(chan struct{})}
		p.spares = append(p.spares, s)
		go func() {
			defer close(s.done)
			s.l, s.err = p.openLane()
		}()
	}
}

// spareLane gives what opens one more lane, or waits for one that is being opened
// already; nil when others need the connections.
func (p *pass) spareLane() func() (*lane, error) {
	p.mu.Lock()
	defer p.mu.Unlock()
	if len(p.spares) > 0 {
		s := p.spares[0]
		p.spares = p.spares[1:]
		return func() (*lane, error) {
			<-s.done
			return s.l, s.err
		}
	}
	if !p.sitMore() {
		return nil
	}
	return p.openLane
}

// closeSpares gives up the lanes that nobody needed.
func (p *pass) closeSpares() {
	p.mu.Lock()
	spares := p.spares
	p.spares = nil
	p.mu.Unlock()
	for _, s := range spares {
		if <-s.done; s.l != nil {
			s.l.close()
		}
	}
}

// reader makes a reader that waits when its server wants it slower.
func (p *pass) reader(acct imapconn.Account, s *imapconn.Session) *imapconn.Reader {
	r := imapconn.NewReader(p.ctx, &p.c.Dialer, acct, s)
	server, side := p.dstServer(), SideDest
	if acct.Server.Address == p.job.Source.Server.Address && p.job.From == nil {
		server, side = p.srcServer(), SideSource
	}
	r.Pauser = pauser{&p.throttle, server, side}
	return r
}

// pauseDest waits when the destination wants it slower.
func (p *pass) pauseDest(cause error) error {
	return pauser{&p.throttle, p.dstServer(), SideDest}.Pause(p.ctx, cause)
}

// errStopped ends the work of a lane after another lane's failed.
var errStopped = errors.New("another folder failed")

// crew shares the folders of a pass out over its lanes.
type crew struct {
	p  *pass
	wg sync.WaitGroup

	mu     sync.Mutex
	runs   []*folderRun
	left   int // messages in folders that nobody has taken
	failed error
	fatal  error
	full   bool // no more lanes: the server does not want them, or they bring nothing
	lanes  int
	over   chan struct{} // closed when the first lane is through
}

// work goes through the folders, the largest first, with one lane, and with more
// when there is enough to do.
func (p *pass) work(runs []*folderRun, failed error) error {
	w := &crew{p: p, runs: runs, failed: failed, lanes: 1, over: make(chan struct{})}
	w.claim()
	for _, f := range w.runs {
		w.left += f.expected()
	}
	slices.SortStableFunc(w.runs, func(a, b *folderRun) int { return cmp.Compare(b.expected(), a.expected()) })
	// A distant server has the lanes come late: no more than there are folders.
	for n := 2; w.hire() && p.far && n < len(runs); n++ {
	}
	w.wg.Go(p.closeSpares)
	w.wg.Go(w.govern)
	w.lane(p.lane)
	close(w.over)
	w.wg.Wait()
	return errors.Join(w.failed, w.fatal)
}

// claim takes the folder that the first lane reads already out of the others, or
// lets go of it when it could not be made.
func (w *crew) claim() {
	first := w.p.ahead
	if first == nil {
		return
	}
	if i := slices.Index(w.runs, first); i >= 0 {
		w.runs = slices.Delete(w.runs, i, i+1)
		return
	}
	first.forget()
	w.p.ahead = nil
}

// lane works until nothing is left.
func (w *crew) lane(l *lane) {
	l.more = func() *folderRun { return w.next(l) }
	for f := w.following(l); f != nil; f = w.following(l) {
		w.p.tally(func(_ *Report, g *Progress) { g.Folder = f.src.Name })
		w.p.show(false)
		w.done(f, f.sync())
		w.p.tally(func(_ *Report, g *Progress) { g.FoldersDone++ })
		w.p.crash("between-folders")
	}
}

// following gives the lane its next folder: the one that is being read already,
// if there is one. That one is left alone after another's error, as all others.
func (w *crew) following(l *lane) *folderRun {
	f := l.ahead
	l.ahead = nil
	if f == nil {
		return w.next(l)
	}
	if w.ended() {
		f.forget()
		return nil
	}
	return f
}

func (w *crew) ended() bool {
	w.mu.Lock()
	defer w.mu.Unlock()
	return w.fatal != nil
}

// next gives the lane its next folder. A lane that is not the first ends when
// others need its connections.
func (w *crew) next(l *lane) *folderRun {
	if !l.leaving && l.release != nil && w.p.crowded() {
		w.mu.Lock()
		w.lanes--
		w.mu.Unlock()
		l.leaving = true
	}
	if l.leaving {
		return nil
	}
	f := w.take()
	if f != nil {
		f.lane = l
	}
	return f
}

func (w *crew) take() *folderRun {
	w.mu.Lock()
	defer w.mu.Unlock()
	if w.fatal != nil || len(w.runs) == 0 {
		return nil
	}
	f := w.runs[0]
	w.runs = w.runs[1:]
	w.left -= f.expected()
	return f
}

// done notes how a folder ended. One that fails by itself does not keep the
// others from being copied; a connection that fails does.
func (w *crew) done(f *folderRun, err error) {
	if err == nil || errors.Is(err, errStopped) {
		return
	}
	err = folderError(f, err)
	w.mu.Lock()
	defer w.mu.Unlock()
	if skippable(err) {
		w.failed = errors.Join(w.failed, err)
		return
	}
	w.fatal = errors.Join(w.fatal, err)
	w.p.halted.Store(true)
}

// hire opens one more lane when it is wanted, and tells whether it did. A lane
// that cannot be opened is no error: the others do its work.
func (w *crew) hire() bool {
	w.mu.Lock()
	defer w.mu.Unlock()
	// Many folders with little to do cost round trips and syncs, whatever is in them.
	enough := w.left >= 2*w.p.c.batchMessages() || len(w.runs) >= manyFolders || w.p.far
	if w.full || w.fatal != nil || w.lanes >= w.p.mostLanes() || len(w.runs) <= 1 || !enough || w.p.throttle.times() > 0 {
		return false
	}
	open := w.p.spareLane()
	if open == nil {
		return false
	}
	w.lanes++
	w.wg.Go(func() {
		l, err := open()
		if err != nil {
			w.p.log.Info("no further connection: the pass goes on with those it has", "user", w.p.job.User, "error", err)
			w.mu.Lock()
			w.full = true
			w.mu.Unlock()
			return
		}
		defer l.close()
		w.lane(l)
	})
	return true
}

// govern adds lanes for as long as each brings more messages or octets in a
// second than the ones before it did.
func (w *crew) govern() {
	tick := time.NewTicker(growEvery)
	defer tick.Stop()
	var last Progress
	var best, bestBytes float64
	for {
		select {
		case <-w.over:
			return
		case <-tick.C:
		}
		var now Progress
		w.p.tally(func(_ *Report, g *Progress) { now = *g })
		rate, bytes := float64(now.MessagesDone-last.MessagesDone), float64(now.BytesDone-last.BytesDone)
		last = now
		if rate < best*growth && bytes < bestBytes*growth || rate == 0 {
			continue
		}
		if w.hire() {
			best, bestBytes = max(best, rate), max(bestBytes, bytes)
		}
	}
}

// budget bounds the octets of messages that are in memory at one time.
type budget struct {
	mu    sync.Mutex
	free  int64
	whole int64
	freed chan struct{} // closed and made anew with each release
}

func newBudget(n int64) *budget { return &budget{free: n, whole: n, freed: make(chan struct{})} }

// take waits for n octets, or for as many as there are at all, and gives how
// many it took. Who holds some never waits for more, but for a batch that is
// read while the one before it is appended: that one needs nothing to end.
func (b *budget) take(ctx context.Context, n int64) (int64, error) {
	n = min(n, b.whole)
	for {
		b.mu.Lock()
		if b.free >= n {
			b.free -= n
			b.mu.Unlock()
			return n, nil
		}
		freed := b.freed
		b.mu.Unlock()
		select {
		case <-freed:
		case <-ctx.Done():
			return 0, context.Cause(ctx)
		}
	}
}

func (b *budget) give(n int64) {
	b.mu.Lock()
	defer b.mu.Unlock()
	b.free += n
	close(b.freed)
	b.freed = make(chan struct{})
}
