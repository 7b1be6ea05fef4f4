package disk

import (
	"time"

	"github.com/oklog/ulid/v2"

	"crossfade/mail"
	"crossfade/store/transfer"
)

// What an audit writes. The rows of recipients are the truth; what cannot be
// made of them is parked with a word to the operator.

func (a *auditor) writeRow(r *row) error {
	_, err := a.db.run(sqlUpdateRcpt, r.lane, r.due, null(r.gen), null(int64(r.fixed)), null(r.copy), null(r.attempts), null(r.crashes),
		r.since, null(r.noticed), null(int64(r.unknown)), null(r.reply), null(r.inDoubt().String()), string(r.id), r.n)
	return err
}

// park parks rows that are not parked yet.
func (a *auditor) park(rows []row, why string) error {
	for i := range rows {
		r := &rows[i]
		if r.lane == laneParked {
			continue
		}
		r.lane, r.due, r.reply = laneParked, a.now, why
		if err := a.writeRow(r); err != nil {
			return err
		}
	}
	return nil
}

// newRows parks every recipient of an envelope that has no rows.
func (a *auditor) newRows(env *mail.Envelope) error {
	for n := range env.Recipients {
		rc := &env.Recipients[n]
		r := row{id: env.ID, n: n, lane: laneParked, user: rc.User, due: a.now, hint: laneOf(rc.Hint), since: a.now, reply: transfer.RowsGone}
		if s := rc.Addr.String(); s != r.user {
			r.addr = s
		}
		if err := insertRow(a.db, &r); err != nil {
			return err
		}
	}
	return nil
}

// recipientOf makes a recipient of an envelope of its row.
func recipientOf(r *row) mail.Recipient {
	name := r.addr
	if name == "" {
		name = r.user
	}
	addr, _ := mail.ParseAddress(name) // else it stays empty, and an operator sees the user
	return mail.Recipient{Addr: addr, User: r.user, Hint: r.hint.route()}
}

// envelopeOf makes an envelope of rows, and of the sender where he is known.
func envelopeOf(id mail.ID, size int64, sender string, rows []row) *mail.Envelope {
	env := &mail.Envelope{ID: id, Size: size, Received: time.Unix(0, 0)}
	if u, err := ulid.ParseStrict(string(id)); err == nil {
		env.Received = ulid.Time(u.Time())
	}
	env.From, _ = mail.ParseAddress(sender) // else it has none: no bounce can be sent
	for i := range rows {
		for len(env.Recipients) <= rows[i].n {
			env.Recipients = append(env.Recipients, mail.Recipient{})
		}
		env.Recipients[rows[i].n] = recipientOf(&rows[i])
	}
	return env
}

// newEnvelope makes the envelope of a message again, as far as that is possible.
func (a *auditor) newEnvelope(st *stored, rows []row) error {
	env := envelopeOf(st.id, st.loc.size, st.sender, rows)
	if _, err := a.db.run("UPDATE message SET envelope = ? WHERE id = ?", encodeEnvelope(env), string(st.id)); err != nil {
		return err
	}
	return a.park(rows, transfer.HeadGone)
}

// addRecipient gives a row beyond its envelope a place there.
func (a *auditor) addRecipient(env *mail.Envelope, r *row) error {
	if r.n < 0 || r.n > 1<<20 {
		n := len(env.Recipients)
		if _, err := a.db.run("UPDATE recipient SET n = ? WHERE id = ? AND n = ?", n, string(r.id), r.n); err != nil {
			return err
		}
		r.n = n
	}
	for len(env.Recipients) <= r.n {
		env.Recipients = append(env.Recipients, mail.Recipient{})
	}
	env.Recipients[r.n] = recipientOf(r)
	if _, err := a.db.run("UPDATE message SET envelope = ? WHERE id = ?", encodeEnvelope(env), string(env.ID)); err != nil {
		return err
	}
	return a.park([]row{*r}, transfer.HeadGone)
}

// newMessage makes a message of rows and, where there is one, a body.
func (a *auditor) newMessage(id mail.ID, at loc, rows []row) error {
	env, why := envelopeOf(id, at.size, "", rows), transfer.HeadGone
	if at.file == 0 {
		why = transfer.BodyGone
		at.pos = -1
	}
	_, err := a.db.run(sqlInsertMessage, string(id), millis(env.Received), at.size, "", at.file, at.pos, encodeEnvelope(env))
	if err != nil {
		return err
	}
	for i := range rows {
		rows[i].lane = laneNone // also what was parked for another reason
	}
	return a.park(rows, why)
}

// findRecords looks for the bodies of messages in all files.
func (a *auditor) findRecords(ids []mail.ID) (map[mail.ID]loc, error) {
	want := make(map[mail.ID]bool, len(ids))
	for _, id := range ids {
		want[id] = true
	}
	found := map[mail.ID]loc{}
	for num := range a.files.byNum {
		f, err := a.files.acquire(num)
		if err != nil {
			return nil, err
		}
		_, err = scanSegment(f.f, f.size, func(rec record) error {
			if want[rec.id] {
				at := loc{file: num, pos: rec.pos, size: rec.size}
				if f.own {
					at.pos = -1
				}
				found[rec.id] = at
			}
			return nil
		})
		a.files.release(f)
		if err != nil {
			return nil, err
		}
	}
	return found, nil
}
