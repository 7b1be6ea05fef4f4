package disk

import (
	"context"
	"database/sql/driver"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"iter"
	"log/slog"
	"os"
	"path/filepath"
	"time"

	"crossfade/journal"
	"crossfade/mail"
	"crossfade/queue"
	"crossfade/router"
	"crossfade/store/transfer"
)

// dump is a store that is read as a whole, and left as it is.
type dump struct {
	name  string
	dir   string
	lock  *os.File // nil: somebody else holds it for us
	db    *conn
	files *files
	doubt map[mail.ID]map[int]DoubtfulDelivery // leased when the process was killed
	users map[string]*ustate                   // for audits
}

var _ transfer.Source = (*dump)(nil)

// OpenSource opens the store in dir to read all of it. Nothing in dir changes,
// and no other process may have the store open meanwhile. Deliveries that were
// under way when the process was killed are given as queued, with a crash
// counted, as the next start would.
func OpenSource(dir string) (transfer.Source, error) {
	path := filepath.Join(dir, dbName)
	if _, err := os.Stat(path); err != nil {
		return nil, fmt.Errorf("read the store in %s: %w (is this the directory that the configuration names under store?)", dir, err)
	}
	lock, err := lockStill(dir)
	if err != nil {
		return nil, err
	}
	d, err := newDump(dir, dir)
	if err != nil {
		unlock(lock)
		return nil, err
	}
	d.lock = lock
	return d, nil
}

// lockStill takes the lock of a store that is there.
func lockStill(dir string) (*os.File, error) {
	lock, err := lockDir(dir)
	var used *lockedError
	if errors.As(err, &used) {
		return nil, fmt.Errorf("%w: another process has %s open: stop it first", transfer.ErrInUse, dir)
	}
	return lock, err
}

// newDump opens the files for reading; whoever calls it has the lock.
func newDump(dir, name string) (d *dump, err error) {
	path := filepath.Join(dir, dbName)
	d = &dump{name: name, dir: dir, doubt: map[mail.ID]map[int]DoubtfulDelivery{}}
	if d.db, err = openConn(dsn(dir, true) + "&mode=ro"); err != nil {
		return nil, explain(path, err)
	}
	if err := d.check(path); err != nil {
		d.db.close()
		return nil, explain(path, err)
	}
	if _, err := os.Stat(filepath.Join(dir, "bodies")); errors.Is(err, fs.ErrNotExist) {
		d.files = &files{dir: filepath.Join(dir, "bodies"), byNum: map[int64]*bodyFile{}}
	} else if d.files, err = openFiles(dir, func(*os.File) error { return nil }); err != nil {
		d.db.close()
		return nil, err
	}
	if err := d.readDoubts(); err != nil {
		d.release()
		return nil, explain(path, err)
	}
	return d, nil
}

// check looks at the schema's version.
func (d *dump) check(path string) error {
	v, _, err := d.db.ints("PRAGMA user_version")
	switch {
	case err != nil:
		return err
	case v[0] == 0:
		return fmt.Errorf("read the queue database: %s is empty: no store was ever opened here", path)
	case v[0] < schemaVersion:
		return fmt.Errorf("read the queue database: %s has schema version %d, and this Crossfade knows %d: start this Crossfade on it once, which brings it up to date", path, v[0], schemaVersion)
	case v[0] > schemaVersion:
		return fmt.Errorf("read the queue database: %s has schema version %d, and this Crossfade knows %d: use the newer Crossfade that wrote it", path, v[0], schemaVersion)
	}
	return nil
}

func (d *dump) readDoubts() error {
	f, err := os.Open(filepath.Join(d.dir, "doubt"))
	if errors.Is(err, fs.ErrNotExist) {
		return nil
	}
	if err != nil {
		return err
	}
	defer f.Close()
	v, _, err := d.db.ints("SELECT n FROM boot")
	if err != nil || len(v) == 0 {
		return err // without a boot every slot is void
	}
	list, err := readDoubts(f, v[0])
	for _, x := range list {
		if d.doubt[x.ID] == nil {
			d.doubt[x.ID] = map[int]DoubtfulDelivery{}
		}
		d.doubt[x.ID][x.N] = x
	}
	return err
}

// Pending gives what of the journal is not in its files, as [journal.Outbox] does.
func (d *dump) Pending(ctx context.Context, after uint64, max int) ([]journal.Batch, error) {
	return d.db.pending(ctx, after, max)
}

// Name implements [transfer.Source].
func (d *dump) Name() string { return d.name }

// Unused implements [transfer.Source]: the lock keeps everybody out.
func (d *dump) Unused(context.Context) error { return nil }

func (d *dump) release() error {
	err := d.db.close()
	d.files.close()
	return err
}

// Close implements [transfer.Source].
func (d *dump) Close() error {
	err := d.release()
	if d.lock != nil {
		err = errors.Join(err, unlock(d.lock))
	}
	return err
}

// Totals implements [transfer.Source].
func (d *dump) Totals(context.Context) (n transfer.Counts, err error) {
	v, _, err := d.db.ints("SELECT (SELECT count(*) FROM user), (SELECT count(*) FROM message)")
	if err == nil {
		n.Accounts, n.Messages = int(v[0]), int(v[1])
	}
	return n, err
}

// sqlKeys gives the keys behind one, of users, histories and ledgers.
const sqlKeys = `SELECT address FROM (SELECT address FROM user WHERE address > ?1 ORDER BY address LIMIT 500)
UNION SELECT user FROM (SELECT DISTINCT user FROM history INDEXED BY history_user WHERE user > ?1 ORDER BY user LIMIT 500)
UNION SELECT user FROM (SELECT DISTINCT user FROM ledger WHERE user > ?1 ORDER BY user LIMIT 500)
ORDER BY 1 LIMIT 500`

// Accounts implements [transfer.Source].
func (d *dump) Accounts(ctx context.Context) iter.Seq2[*transfer.Account, error] {
	return func(yield func(*transfer.Account, error) bool) {
		for after := ""; ; {
			var keys []string
			err := d.db.each(func(cols []driver.Value) error {
				keys = append(keys, asString(cols[0]))
				return nil
			}, sqlKeys, after)
			if err == nil {
				err = ctx.Err()
			}
			if err != nil {
				yield(nil, err)
				return
			}
			if len(keys) == 0 {
				return
			}
			after = keys[len(keys)-1]
			for _, key := range keys {
				if a, err := d.account(key); !yield(a, err) || err != nil {
					return
				}
			}
		}
	}
}

const (
	sqlAllHistory = `SELECT user, epoch, from_state, to_state, author, reason, forced, at FROM history INDEXED BY history_user WHERE user = ? ORDER BY id`
	sqlAllLedger  = `SELECT name, data FROM ledger WHERE user = ?`
)

func (d *dump) account(key string) (*transfer.Account, error) {
	a := &transfer.Account{Key: key}
	us, err := loadUser(d.db, key)
	if err != nil {
		return nil, err
	}
	if us.known {
		a.User, a.Gen = &us.user, us.gen
	}
	err = d.db.each(func(cols []driver.Value) error {
		a.History = append(a.History, router.Change{
			User: asString(cols[0]), Epoch: uint64(asInt(cols[1])), From: router.State(asString(cols[2])),
			To: router.State(asString(cols[3])), By: asString(cols[4]), Reason: asString(cols[5]),
			Forced: asInt(cols[6]) != 0, At: fromMillis(asInt(cols[7])),
		})
		return nil
	}, sqlAllHistory, key)
	if err != nil {
		return nil, err
	}
	err = d.db.each(func(cols []driver.Value) error {
		if a.Ledger == nil {
			a.Ledger = map[string][]byte{}
		}
		a.Ledger[asString(cols[0])] = append([]byte{}, asBytes(cols[1])...)
		return nil
	}, sqlAllLedger, key)
	return a, err
}

// stored is a row of the table message.
type stored struct {
	id     mail.ID
	loc    loc
	sender string
	blob   []byte
}

const (
	sqlMessagesBehind = `SELECT id, size, file, pos, envelope, sender FROM message WHERE id > ? ORDER BY id LIMIT 100`
	messagePage       = 100
)

// page reads the messages behind an id.
func (d *dump) page(after mail.ID) (list []stored, err error) {
	list = make([]stored, 0, messagePage)
	err = d.db.each(func(cols []driver.Value) error {
		list = append(list, stored{
			id: mail.ID(asString(cols[0])), loc: loc{file: asInt(cols[2]), pos: asInt(cols[3]), size: asInt(cols[1])},
			blob: append([]byte{}, asBytes(cols[4])...), sender: asString(cols[5]),
		})
		return nil
	}, sqlMessagesBehind, string(after))
	return list, err
}

// rows reads the recipients of a message as they stand.
func (d *dump) rows(id mail.ID) (list []row, err error) {
	err = d.db.each(func(cols []driver.Value) error {
		list = append(list, scanRow(cols))
		return nil
	}, sqlRcpts, string(id))
	return list, err
}

// Messages implements [transfer.Source].
func (d *dump) Messages(ctx context.Context) iter.Seq2[*transfer.Message, error] {
	return func(yield func(*transfer.Message, error) bool) {
		for after := mail.ID(""); ; {
			list, err := d.page(after)
			if err == nil {
				err = ctx.Err()
			}
			if err != nil {
				yield(nil, err)
				return
			}
			if len(list) == 0 {
				return
			}
			after = list[len(list)-1].id
			for _, st := range list {
				if m, err := d.message(st); !yield(m, err) || err != nil {
					return
				}
			}
		}
	}
}

// repairHint ends the error about a record that cannot be moved.
const repairHint = "look with `crossfade store audit`, which can repair it"

func (d *dump) message(st stored) (*transfer.Message, error) {
	env, err := decodeEnvelope(st.id, st.loc.size, st.blob)
	if err != nil {
		return nil, fmt.Errorf("%w: %s", err, repairHint)
	}
	rows, err := d.rows(st.id)
	if err != nil {
		return nil, err
	}
	if len(rows) == 0 {
		return nil, fmt.Errorf("message %s has no recipients: %s", st.id, repairHint)
	}
	m := &transfer.Message{Envelope: env}
	for i := range rows {
		if rows[i].n < 0 || rows[i].n >= len(env.Recipients) {
			return nil, fmt.Errorf("message %s has no recipient %d: %s", st.id, rows[i].n, repairHint)
		}
		x, inFlight := d.doubt[st.id][rows[i].n]
		if inFlight && x.Sending {
			rows[i].suspect(laneOf(x.Route), millis(x.At), max(millis(x.At), 1))
		}
		r := transferRow(&rows[i])
		if inFlight && r.Place == transfer.Waiting {
			r.CountCrash()
		}
		m.Rows = append(m.Rows, r)
	}
	m.Open = func(context.Context) (io.ReadCloser, error) {
		b, err := d.files.reader(st.id, st.loc)
		if err != nil {
			return nil, fmt.Errorf("%w: %s: %w (%s)", queue.ErrCorrupt, st.id, err, repairHint)
		}
		return &sourceBody{b, st.id}, nil
	}
	return m, nil
}

// sourceBody says of a damaged body what to do.
type sourceBody struct {
	*bodyReader
	id mail.ID
}

// Read implements io.Reader.
func (b *sourceBody) Read(p []byte) (int, error) {
	n, err := b.bodyReader.Read(p)
	if errors.Is(err, errBadSum) {
		err = fmt.Errorf("%w: %s: %w (%s)", queue.ErrCorrupt, b.id, err, repairHint)
	}
	return n, err
}

// transferRow gives a row without what follows from the user.
func transferRow(r *row) transfer.Row {
	x := transfer.Row{
		N: r.n, User: r.user, Due: r.due, Gen: r.gen, Hint: r.hint.route(), Fixed: r.fixed.route(), Copy: r.copy,
		Attempts: r.attempts, Crashes: r.crashes, Since: r.since, Noticed: r.noticed, Unknown: r.unknown, Reply: r.reply,
		Doubt: r.inDoubt().String(),
	}
	if x.Due == 0 { // it went straight into memory: due since it came
		x.Due = max(r.since, 1)
	}
	switch r.lane {
	case laneOpHeld:
		x.Place = transfer.OpHeld
	case laneParked:
		x.Place = transfer.Parked
	}
	return x
}

// rowOf is the opposite of transferRow; where it is filed is still to be said.
func rowOf(id mail.ID, x *transfer.Row) row {
	r := row{
		id: id, n: x.N, user: x.User, due: max(x.Due, 1), gen: x.Gen, hint: laneOf(x.Hint), fixed: laneOf(x.Fixed), copy: x.Copy,
		attempts: x.Attempts, crashes: x.Crashes, since: x.Since, noticed: x.Noticed, unknown: x.Unknown, reply: x.Reply, doubt: doubtOf(x.Doubt),
	}
	switch x.Place {
	case transfer.OpHeld:
		r.lane = laneOpHeld
	case transfer.Parked:
		r.lane = laneParked
	}
	return r
}

// quiet are options for a store that only parts of the package work on.
func quiet() Options {
	o := Options{MinFree: -1, Logger: slog.New(slog.DiscardHandler), Now: time.Now}
	o.defaults()
	return o
}
