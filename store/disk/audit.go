package disk

import (
	"context"
	"database/sql/driver"
	"errors"
	"fmt"
	"io"
	"path/filepath"
	"time"

	"crossfade/mail"
	"crossfade/router"
	"crossfade/store/transfer"
)

// auditor looks at a store that rests.
type auditor struct {
	*dump
	ctx    context.Context
	repair bool
	now    int64
	users  map[string]*ustate
	refs   map[int64]int // messages by body file
	out    transfer.Audit
}

// Audit looks whether the store in dir is whole, with nobody else using it:
// the database's own check, each recipient filed where it can be claimed,
// rows and messages belonging together, bodies there and undamaged, users and
// their epochs. Without repair nothing changes. With it the rows are taken for
// the truth; what cannot be made whole is parked for an operator, and nothing
// is dropped.
func Audit(ctx context.Context, dir string, repair bool) (transfer.Audit, error) {
	src, err := OpenSource(dir)
	if err != nil {
		return transfer.Audit{}, err
	}
	a := &auditor{
		dump: src.(*dump), ctx: ctx, repair: repair, now: time.Now().UnixMilli(), users: map[string]*ustate{}, refs: map[int64]int{},
		out: transfer.Audit{Store: dir},
	}
	if repair {
		err = a.writable()
	}
	for _, step := range []func() error{a.database, a.table, a.messages, a.strays, a.bodyFiles} {
		if err == nil {
			err = step()
		}
	}
	if isDBError(err) {
		err = explain(filepath.Join(dir, dbName), err)
	}
	if err != nil {
		err = fmt.Errorf("audit the store in %s: %w", dir, err)
	}
	return a.out, errors.Join(err, a.Close())
}

// writable changes over to a connection that may write.
func (a *auditor) writable() error {
	c, err := openConn(dsn(a.dir, false))
	if err != nil {
		return err
	}
	if err := a.db.close(); err != nil {
		return errors.Join(err, c.close())
	}
	a.db = c
	return nil
}

// fix repairs in one step, where that is wanted, and enters the finding.
func (a *auditor) fix(f transfer.Finding, done string, change func() error) error {
	if !a.repair || change == nil {
		a.out.Add(f)
		return nil
	}
	if _, err := a.db.run("BEGIN IMMEDIATE"); err != nil {
		return err
	}
	if err := change(); err != nil {
		_, _ = a.db.run("ROLLBACK")
		return err
	}
	if _, err := a.db.run("COMMIT"); err != nil {
		return err
	}
	f.Repair = done
	a.out.Add(f)
	return nil
}

// integrity gives what SQLite finds wrong.
func (a *auditor) integrity() (list []string, err error) {
	err = a.db.each(func(cols []driver.Value) error {
		if text := asString(cols[0]); text != "ok" {
			list = append(list, text)
		}
		return nil
	}, "PRAGMA integrity_check(100)")
	return list, err
}

// database compares tables and indexes, which SQLite can make again.
func (a *auditor) database() error {
	list, err := a.integrity()
	if err != nil {
		return err
	}
	var left []string
	if len(list) > 0 && a.repair {
		if err := a.db.script("REINDEX"); err != nil {
			return err
		}
		if left, err = a.integrity(); err != nil {
			return err
		}
	}
	for _, text := range list {
		f := transfer.Finding{Problem: transfer.Database, Where: dbName, Detail: text}
		if a.repair && len(left) == 0 {
			f.Repair = "the indexes were made again"
		}
		a.out.Add(f)
	}
	v, _, err := a.db.ints("SELECT n FROM boot")
	if err != nil || len(v) > 0 {
		return err
	}
	return a.fix(transfer.Finding{Problem: transfer.Database, Where: "table boot", Detail: "it is empty"}, "it counts from 1 again", func() error {
		_, err := a.db.run("INSERT INTO boot VALUES (1, 1)")
		return err
	})
}

// table looks at the users.
func (a *auditor) table() error {
	const page = `SELECT ` + userColumns + `, (SELECT max(epoch) FROM history WHERE user = address) FROM user WHERE address > ? ORDER BY address LIMIT 500`
	type bad struct {
		f    transfer.Finding
		done string
		sql  string
		args []any
	}
	for after := ""; ; {
		var list []bad
		n := 0
		err := a.db.each(func(cols []driver.Value) error {
			n++
			after = asString(cols[0])
			u, gen, err := scanUser(cols)
			last := uint64(asInt(cols[len(cols)-1]))
			switch {
			case err != nil:
				list = append(list, bad{transfer.Finding{Problem: transfer.BadUser, Where: after, Detail: err.Error()}, "", "", nil})
			case last > u.Epoch:
				list = append(list, bad{transfer.Finding{Problem: transfer.WrongEpoch, Where: after, Detail: fmt.Sprintf("epoch %d, and the history has %d", u.Epoch, last)},
					fmt.Sprintf("epoch %d", last), "UPDATE user SET epoch = ? WHERE address = ?", []any{last, after}})
			case gen > u.Epoch:
				list = append(list, bad{transfer.Finding{Problem: transfer.WrongEpoch, Where: after, Detail: fmt.Sprintf("generation %d of epoch %d", gen, u.Epoch)},
					fmt.Sprintf("generation %d", u.Epoch), "UPDATE user SET gen = epoch WHERE address = ?", []any{after}})
			case u.State != "" && !knownState(u.State):
				list = append(list, bad{transfer.Finding{Problem: transfer.BadUser, Where: after, Detail: fmt.Sprintf("there is no state %q", u.State)}, "", "", nil})
			}
			return nil
		}, page, after)
		if err == nil {
			err = a.ctx.Err()
		}
		if err != nil {
			return err
		}
		a.out.Users += n
		for _, b := range list {
			change := func() error {
				_, err := a.db.run(b.sql, b.args...)
				return err
			}
			if b.sql == "" {
				change = nil
			}
			if err := a.fix(b.f, b.done, change); err != nil {
				return err
			}
		}
		if n == 0 {
			return nil
		}
	}
}

func knownState(s router.State) bool {
	switch s {
	case router.StateOld, router.StateSyncing, router.StateReady, router.StateCutover, router.StateNew, router.StateDone, router.StateRollback:
		return true
	}
	return false
}

// messages looks at each message with its rows and its body.
func (a *auditor) messages() error {
	for after := mail.ID(""); ; {
		list, err := a.page(after)
		if err != nil || len(list) == 0 {
			return err
		}
		after = list[len(list)-1].id
		for i := range list {
			if err := a.ctx.Err(); err != nil {
				return err
			}
			a.out.Messages++
			a.out.Bytes += list[i].loc.size
			a.refs[list[i].loc.file]++
			if err := a.message(&list[i]); err != nil {
				return err
			}
		}
	}
}

func (a *auditor) message(st *stored) error {
	rows, err := a.rows(st.id)
	if err != nil {
		return err
	}
	a.out.Recipients += len(rows)
	env, err := decodeEnvelope(st.id, st.loc.size, st.blob)
	if err != nil {
		f := transfer.Finding{Problem: transfer.BadEnvelope, Where: string(st.id), Detail: err.Error()}
		return a.fix(f, "made again from its recipients, which are parked", func() error { return a.newEnvelope(st, rows) })
	}
	if len(rows) == 0 {
		f := transfer.Finding{Problem: transfer.NoRows, Where: string(st.id)}
		return a.fix(f, fmt.Sprintf("%d recipients of its envelope were parked", len(env.Recipients)), func() error { return a.newRows(env) })
	}
	for i := range rows {
		if err := a.row(env, &rows[i]); err != nil {
			return err
		}
	}
	return a.body(st, rows)
}

// row looks whether a recipient is filed where the next start finds it.
func (a *auditor) row(env *mail.Envelope, r *row) error {
	where := fmt.Sprintf("%s:%d", r.id, r.n)
	if r.n < 0 || r.n >= len(env.Recipients) {
		f := transfer.Finding{Problem: transfer.BadEnvelope, Where: where, Detail: fmt.Sprintf("the envelope has %d recipients", len(env.Recipients))}
		return a.fix(f, "it was added to the envelope, and is parked", func() error { return a.addRecipient(env, r) })
	}
	if r.lane > laneNone && r.lane < laneCount {
		return nil
	}
	u, err := a.user(r.user)
	if err != nil {
		return err
	}
	was := r.lane
	r.lane, r.due = wayOf(r, u), a.now
	f := transfer.Finding{Problem: transfer.BadLane, Where: where, Detail: fmt.Sprintf("lane %d, which there is not", was)}
	return a.fix(f, fmt.Sprintf("lane %d", r.lane), func() error { return a.writeRow(r) })
}

func (a *auditor) user(key string) (*ustate, error) {
	if key == "" {
		return nil, nil
	}
	if us := a.users[key]; us != nil {
		return us, nil
	}
	us, err := loadUser(a.db, key)
	if len(a.users) >= cachedUsers {
		clear(a.users)
	}
	a.users[key] = us
	return us, err
}

// body reads a message's body to its end.
func (a *auditor) body(st *stored, rows []row) error {
	b, err := a.files.reader(st.id, st.loc)
	if err == nil {
		_, err = io.Copy(io.Discard, b)
		b.Close()
	}
	if err == nil {
		return nil
	}
	f := transfer.Finding{Problem: transfer.NoBody, Where: string(st.id), Detail: err.Error()}
	waits := false
	for i := range rows {
		waits = waits || rows[i].lane != laneParked
	}
	if !waits {
		f.Note, f.Detail = true, f.Detail+"; it is parked"
		a.out.Add(f)
		return nil
	}
	return a.fix(f, "it was parked", func() error { return a.park(rows, transfer.BodyGone) })
}

// strays looks for recipients whose message is not there.
func (a *auditor) strays() error {
	var ids []mail.ID
	err := a.db.each(func(cols []driver.Value) error {
		ids = append(ids, mail.ID(asString(cols[0])))
		return nil
	}, "SELECT DISTINCT id FROM recipient WHERE NOT EXISTS (SELECT 1 FROM message WHERE message.id = recipient.id) ORDER BY id")
	if err != nil || len(ids) == 0 {
		return err
	}
	found, err := a.findRecords(ids)
	if err != nil {
		return err
	}
	for _, id := range ids {
		rows, err := a.rows(id)
		if err != nil {
			return err
		}
		at, ok := found[id]
		f := transfer.Finding{Problem: transfer.NoMessage, Where: string(id), Detail: fmt.Sprintf("%d recipients, and a body: %t", len(rows), ok)}
		if ok {
			a.refs[at.file]++
		}
		err = a.fix(f, "a message was made of what is left, and parked", func() error { return a.newMessage(id, at, rows) })
		if err != nil {
			return err
		}
	}
	return nil
}

// bodyFiles lists the files that nothing refers to: the next start removes
// them.
func (a *auditor) bodyFiles() error {
	for num, f := range a.files.byNum {
		if a.refs[num] == 0 {
			a.out.Add(transfer.Finding{
				Problem: transfer.OrphanBody, Where: a.files.path(f), Note: true,
				Detail: fmt.Sprintf("%d octets that no message refers to: the next start removes the file", f.size),
			})
		}
	}
	return nil
}
