package backfill

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"slices"
	"sync"
	"sync/atomic"
	"time"

	"crossfade/backfill/imapconn"
)

const (
	defaultBatchMessages = 100
	defaultBatchBytes    = 8 << 20
	progressEvery        = 250 * time.Millisecond
)

// pass is one pass over one mailbox, or the look of a plan or a verification.
type pass struct {
	c        *Copier
	ctx      context.Context
	job      Job
	o        Options
	log      *slog.Logger
	book     *book
	pairings []pairing
	outside  []pairing // folders that the filter leaves out
	every    []*folderRun
	doubt    doubt
	missing  []string // folders that the ledger knows and the source does not list
	given    []string // names that folders got instead of refused ones
	srcSide  looked
	dstSide  looked
	attic    *attic
	apart    *aparts
	narrow   bool    // the folders of the destination were not asked for, see Options.Only
	srcBox   Mailbox // what is read; nil until it is open
	dry      bool    // the ledger is not written to
	filter   Filter  // of this pass

	*lane    // the first one
	spares   []*spare
	first    bool // the ledger knows no folder yet
	far      bool // see measure
	srcTaken bool // see sit
	dstTaken bool
	counted  bool // in Shared.passes
	throttle throttle
	day      *day
	chart    chart
	halted   atomic.Bool // a lane met an error that ends the pass
	srcRate  *bucket     // of this user
	dstRate  *bucket

	around   sync.Mutex // of a lane that looks through a whole side
	mu       sync.Mutex // of what follows, and of calls to strangers
	report   Report
	progress Progress
	shown    time.Time
	speed    speed
	arrivals arrivals
	again    bool // something was copied before this pass
	fresh    bool // a folder is new to the ledger
}

// Pass copies what is new on the source, and the changes of flags, to the
// destination, or with Options.Back the other way round. It is safe to stop at any instant, by ctx or by killing the
// process, and to start again in either direction: nothing is lost and nothing
// copied twice. With an error the report says what was done before it.
//
// Deletions and moves on the source are carried over with Options.Deletions only;
// else what was copied stays on the destination. Messages that users delete on the
// destination come back only with Options.Restore.
func (c *Copier) Pass(ctx context.Context, job Job, o Options) (Report, error) {
	began := time.Now()
	p, err := c.start(ctx, job, o, true)
	if err != nil {
		return Report{Took: time.Since(began)}, fmt.Errorf("copy %s: %w", job.User, err)
	}
	defer p.close()
	p.chart.began, p.chart.last = began, began
	err = p.endDay(p.folders())
	p.report.Left = p.uncarried(err)
	p.mark(true)
	p.report.Took = time.Since(began)
	p.show(true)
	if err != nil {
		return p.report, fmt.Errorf("copy %s: %w", job.User, err)
	}
	level := slog.LevelInfo
	if r := &p.report; r.Copied+r.Adopted+r.Flagged+r.Deleted+r.Moved == 0 {
		level = slog.LevelDebug // users who are ready have a pass a minute
	}
	p.log.Log(ctx, level, "pass done", "user", job.User, "folders", p.report.Folders, "copied", p.report.Copied,
		"adopted", p.report.Adopted, "flagged", p.report.Flagged, "deleted", p.report.Deleted, "moved", p.report.Moved, "problems", len(p.report.Problems), "took", p.report.Took)
	return p.report, nil
}

// start logs in to both sides and finds out which folders go where. A pass that
// copies writes to the ledger already here.
func (c *Copier) start(ctx context.Context, job Job, o Options, copies bool) (*pass, error) {
	p := &pass{c: c, ctx: ctx, job: job, o: o, log: c.Log, lane: &lane{}, dry: !copies}
	if p.log == nil {
		p.log = slog.New(slog.DiscardHandler)
	}
	p.srcRate, p.dstRate = newBucket(c.SourceRates.User), newBucket(c.DestRates.User)
	p.filter = c.Filter
	if err := o.contradicts(job); err != nil {
		return nil, err
	}
	if o.Back {
		p.srcRate, p.dstRate = p.dstRate, p.srcRate
		p.job, p.filter = job.turned(), Filter{}
	}
	p.throttle.patience = c.Patience
	p.throttle.waited = func(wait time.Duration, cause error) {
		p.tally(func(r *Report, _ *Progress) { r.Throttled += wait })
		p.log.Warn("throttled", "user", job.User, "wait", wait, "error", cause)
	}
	var err error
	if p.book, err = openBook(ctx, c.Ledger, job.User); err != nil {
		return nil, err
	}
	if o.Back {
		if err = p.book.turn(); err != nil {
			return nil, err
		}
	}
	if p.apart, err = openAparts(p); err != nil {
		return nil, err
	}
	c.together().passes.Add(1)
	p.counted = true
	p.openDay(!copies)
	if copies && !o.Final && !o.Insist {
		err = p.day.barred()
	}
	if err == nil {
		err = p.sit()
	}
	if err == nil {
		if err = p.connect(); err != nil && copies {
			err = p.endDay(err)
		}
	}
	if err != nil {
		p.close()
		return nil, err
	}
	return p, nil
}

func (p *pass) connect() error {
	if known, err := p.knownOnly(); err != nil || known != nil {
		if err != nil {
			return err
		}
		return p.connectTo(known)
	}
	srcKnown, dstKnown, err := p.book.folders()
	if err != nil {
		return err
	}
	if err := p.login(); err != nil {
		return err
	}
	if p.first = len(srcKnown) == 0 && !p.dry && !p.sweeps(); p.first {
		p.guessDistance()
	}
	var src, dst looked
	err = both(func() (err error) {
		src, err = listFolders(p.srcBox, srcKnown, len(srcKnown) == 0)
		return inside("source", err)
	}, func() (err error) {
		dst, err = listFolders(p.dst, dstKnown, false)
		return inside("destination", err)
	})
	if err != nil {
		return err
	}
	known := map[string]string{}
	for _, f := range src.folders {
		rec, err := p.book.record(f.Wire)
		if err != nil {
			return err
		}
		if rec.Dest != "" {
			known[f.Wire] = rec.Dest
		}
	}
	if p.attic, err = openAttic(p); err != nil {
		return err
	}
	known[atticSource] = p.attic.rec.Dest
	p.srcSide, p.dstSide = src, dst
	if src.folders, err = p.returnable(src.folders, known); err != nil {
		return err
	}
	all, problems := mapFolders(src.side, dst.side, known)
	all = p.only(all)
	p.pairings, p.outside = p.sift(all)
	p.report.Problems = slices.DeleteFunc(problems, func(x Problem) bool { return p.filter.omitsFolder(x.Folder) })
	if g, ok := p.srcBox.(*gmailBox); ok {
		p.report.Problems = append(p.report.Problems, g.notes...)
	}
	p.dstReader = p.reader(p.job.Dest, nil)
	return nil
}

// login connects to both sides.
func (p *pass) login() error {
	return both(func() (err error) {
		p.srcBox, err = p.openSource()
		return inside("source", err)
	}, func() (err error) {
		p.dst, err = p.openDest()
		return inside("destination", err)
	})
}

func (p *pass) openDest() (*imapconn.Session, error) {
	s, err := p.c.Dialer.Open(p.ctx, p.job.Dest)
	p.dstServer().refused(err, dstSeats)
	if err == nil && p.o.Back && s.Has(imapconn.GmailExtensions) {
		s.Close()
		return nil, noWayBack("the old mailbox is Gmail's, which shows each message in several folders")
	}
	return s, err
}

// listFolders lists the folders of one side, with the status of those that are known,
// or of all.
func listFolders(s folderLister, known []string, all bool) (looked, error) {
	there, err := survey(s, known, all)
	if err != nil {
		return looked{}, fmt.Errorf("list the folders: %w", err)
	}
	return there, nil
}

// both runs two functions at once: a round trip to one side need not wait for
// one to the other. With two errors the first function's comes first.
func both(a, b func() error) error {
	done := make(chan error, 1)
	go func() { done <- b() }()
	err := a()
	return errors.Join(err, <-done)
}

func inside(where string, err error) error {
	if err != nil {
		return &sideError{Side(where), err}
	}
	return nil
}

func (p *pass) close() {
	if p.counted {
		p.c.together().passes.Add(-1)
	}
	if p.day != nil { // of a verification; a pass did it
		if err := p.day.end(false); err != nil {
			p.log.Warn("what was read is missing in the count of the daily limit", "user", p.job.User, "error", err)
		}
	}
	p.closeSpares()
	p.lane.close()
	if p.srcBox != nil {
		p.srcBox.Close()
	}
	p.stand()
}

func (p *pass) crash(name string) {
	if p.c.CrashPoint != nil {
		p.mu.Lock()
		defer p.mu.Unlock()
		p.c.CrashPoint(name)
	}
}

// note puts into the report what is no trouble: nothing is logged.
func (p *pass) note(pr Problem) {
	p.tally(func(r *Report, _ *Progress) { r.Problems = append(r.Problems, pr) })
}

func (p *pass) problem(pr Problem) {
	p.note(pr)
	p.log.Debug("backfill problem", "user", p.job.User, "folder", pr.Folder, "uid", pr.UID, "class", pr.Class, "text", pr.Text)
}

// tally changes or reads what the lanes count together.
func (p *pass) tally(count func(*Report, *Progress)) {
	p.mu.Lock()
	defer p.mu.Unlock()
	count(&p.report, &p.progress)
}

// show reports the progress, at most a few times a second.
func (p *pass) show(now bool) {
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.o.Progress == nil || !now && time.Since(p.shown) < progressEvery {
		return
	}
	p.shown = time.Now()
	p.speed.note(p.shown, &p.progress)
	p.progress.LimitWaits = p.day.waits(p.progress.bytesLeft(), p.progress.BytesPerSecond)
	p.o.Progress(p.progress)
}

// folders goes through all folders.
func (p *pass) folders() error {
	p.measure()
	p.openEarly(len(p.pairings))
	if err := p.attic.review(); err != nil {
		return err
	}
	if err := p.settleOther(); err != nil {
		return err
	}
	runs, failed, err := p.look()
	if err != nil {
		return err
	}
	if err := p.lookMissing(); err != nil {
		return err
	}
	if p.src == nil {
		p.src = p.srcBox.NewReader()
	}
	if err := p.work(slices.Clone(runs), failed); err != nil {
		return err
	}
	if err := p.prove(runs); err != nil {
		return inside("destination", err)
	}
	if err := p.bringBack(); err != nil {
		return err
	}
	return p.carryDeletions(runs)
}

func folderError(f *folderRun, err error) error { return fmt.Errorf("folder %q: %w", f.src.Name, err) }

// skippable errors are those of one folder.
func skippable(err error) bool {
	var e *imapconn.Error
	return errors.As(err, &e) && !temporary(e) || errors.Is(err, imapconn.ErrShort) || errors.Is(err, ErrFolder) || errors.Is(err, errReadOnly)
}

// look asks both sides for the status of every folder, makes the folders that
// are missing, and gives those that need work; failed has the folders that
// cannot be made.
func (p *pass) look() (runs []*folderRun, failed, err error) {
	all := make([]*folderRun, 0, len(p.pairings))
	var copied []string // before, so that their status on the destination counts
	for _, pr := range p.pairings {
		f, err := p.newRun(pr)
		if err != nil {
			return nil, nil, err
		}
		all = append(all, f)
		if f.rec.SrcValidity != 0 && pr.exists {
			copied = append(copied, pr.wire)
		}
	}
	p.every = all
	p.tally(func(r *Report, g *Progress) { g.Folders, r.Folders = len(all), len(all) })
	err = both(func() error {
		if err := p.srcSide.statuses(p.srcBox, sourceWires(p.pairings, p.outside)); err != nil {
			return inside("source", err)
		}
		p.readEarly(all)
		return nil
	}, func() (err error) {
		if err = p.dstSide.statuses(p.dst, copied); err == nil && !p.sweeps() {
			failed, err = p.prepare(all)
		}
		return inside("destination", err)
	})
	if err != nil {
		return nil, nil, err
	}
	if err := p.carryRights(all); err != nil {
		return nil, nil, err
	}
	for _, pr := range p.outside {
		p.leaveOut(pr, countOf(p.srcSide.status, pr))
	}
	for _, f := range all {
		p.again = p.again || len(f.rec.Pairs) > 0
		p.fresh = p.fresh || f.rec.SrcValidity == 0
		f.status = p.srcSide.status[f.src.Wire]
		switch {
		case f.unmade:
		case p.srcSide.errs[f.src.Wire] == nil && f.unchanged(p.dstSide.status[f.wire]) && !p.o.Final:
			if err := f.skip(); err != nil {
				return nil, nil, err
			}
			p.tally(func(_ *Report, g *Progress) { g.FoldersDone++ })
		case p.sweeps() && !f.exists && p.srcSide.errs[f.src.Wire] == nil && f.status.Messages == 0:
			p.tally(func(_ *Report, g *Progress) { g.FoldersDone++ })
		default:
			p.tally(func(_ *Report, g *Progress) { g.Messages += f.expected() })
			runs = append(runs, f)
		}
	}
	if p.sweeps() {
		return p.sweep(runs)
	}
	return runs, failed, nil
}

// takenName tells whether a name on the destination is some folder's already.
func (p *pass) takenName(name string) bool {
	for _, pr := range slices.Concat(p.pairings, p.outside) {
		if fold(pr.name) == fold(name) {
			return true
		}
	}
	for _, d := range p.dstSide.folders {
		if fold(d.Name) == fold(name) {
			return true
		}
	}
	return false
}
