package redis

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"slices"
	"strings"

	goredis "github.com/redis/go-redis/v9"

	"crossfade/mail"
	"crossfade/queue"
	"crossfade/store/transfer"
)

// pieceOf takes the key of a piece of a body apart.
func pieceOf(key string) (id mail.ID, nonce string, n int64) {
	_, rest, _ := strings.Cut(key, ":b:{")
	name, num, _ := strings.Cut(rest, "}:")
	i := strings.LastIndexByte(name, '-')
	if i < 0 {
		return mail.ID(name), "", asInt(num)
	}
	return mail.ID(name[:i]), name[i+1:], asInt(num)
}

// auditMessages is how many messages are looked at in one step.
const auditMessages = 100

// messages looks at each message with its rows and its body.
func (a *auditor) messages() error {
	return a.scan(a.ctx, "m:", func(ids []string) error {
		slices.Sort(ids)
		for ids = slices.Compact(ids); len(ids) > 0; {
			n, err := a.slice(ids[:min(len(ids), auditMessages)])
			if err != nil {
				return err
			}
			ids = ids[n:]
		}
		return nil
	})
}

// slice looks at some messages, and tells how many of them it came to.
func (a *auditor) slice(ids []string) (int, error) {
	args := make([]any, len(ids))
	for i, id := range ids {
		args[i] = id
	}
	said, err := a.ask(scAudit, args...)
	if err != nil {
		return 0, err
	}
	list := asList(said)
	if len(list) == 0 {
		return 0, errors.New("redis: audit: it looked at nothing")
	}
	ids = ids[:len(list)]
	if err := a.fetch(ids, list); err != nil {
		return 0, err
	}
	for i, v := range list {
		if f := asList(v); len(f) > 0 {
			if err := a.message(mail.ID(ids[i]), f); err != nil {
				return 0, err
			}
		}
	}
	return len(list), nil
}

// fetch reads the small bodies of a slice at once.
func (a *auditor) fetch(ids []string, list []any) error {
	return a.bodies.retry(a.ctx, func(ctx context.Context) error {
		a.inlines = make(map[mail.ID][]byte, len(ids))
		pipe := a.server.client.Pipeline()
		cmds := make(map[mail.ID]*goredis.StringCmd, len(ids))
		for i, id := range ids {
			if f := strings.SplitN(asString(at(asList(list[i]), 1)), " ", 3); len(f) == 3 && f[1] == "0" {
				cmds[mail.ID(id)] = pipe.Get(ctx, a.key("i:"+id))
			}
		}
		if len(cmds) == 0 {
			return nil
		}
		if _, err := pipe.Exec(ctx); err != nil && !errors.Is(err, goredis.Nil) {
			return err
		}
		for id, c := range cmds {
			if z, err := c.Bytes(); err == nil {
				a.inlines[id] = z
			} else if !errors.Is(err, goredis.Nil) {
				return err
			}
		}
		return nil
	})
}

// message looks at what scripts cannot: the envelope, and the body.
func (a *auditor) message(id mail.ID, f []any) error {
	place, rows := asString(at(f, 1)), asInt(at(f, 2))
	a.out.Messages++
	a.out.Recipients += int(rows)
	for _, user := range asList(at(f, 4)) {
		a.copies[asString(user)] = true
	}
	findings := asList(at(f, 6))
	a.say(findings)
	env := new(mail.Envelope)
	whole := json.Unmarshal([]byte(asString(at(f, 0))), env) == nil && env.ID == id
	for _, n := range asList(at(f, 5)) {
		whole = whole && int(asInt(n)) < len(env.Recipients)
	}
	where := strings.SplitN(place, " ", 3)
	a.out.Bytes += asInt(where[0]) // rebuild knows better where that is gone
	switch {
	case !whole || len(where) < 3:
		return a.rebuild(id, place, env)
	case rows == 0:
		finding := transfer.Finding{Problem: transfer.NoRows, Where: string(id), Detail: fmt.Sprintf("its envelope has %d", len(env.Recipients))}
		return a.fix(finding, "they were parked", transfer.RowsGone, fixArgs(id, "", "", env))
	}
	for _, v := range findings {
		if x := asList(v); asString(at(x, 0)) == "BadRow" {
			finding := transfer.Finding{Problem: transfer.BadLane, Where: asString(at(x, 1)), Detail: "the row cannot be read"}
			return a.fix(finding, "the message was parked", transfer.RowsGone, fixArgs(id, "", "", env))
		}
	}
	return a.body(id, asInt(where[0]), asInt(where[1]), where[2], asInt(at(f, 3)) != 0)
}

// fixArgs are what auditfix.lua wants, but for the word to operators.
func fixArgs(id mail.ID, envelope, place string, env *mail.Envelope) []any {
	args := []any{string(id), envelope, place, ""}
	for n := range env.Recipients {
		args = append(args, n, env.Recipients[n].User, laneOf(env.Recipients[n].Hint))
	}
	return args
}

// fix parks a message that cannot be made whole, where that is wanted, and
// enters the finding.
func (a *auditor) fix(f transfer.Finding, done, why string, args []any) error {
	if !a.repair {
		n, err := a.server.client.Exists(a.ctx, a.key("m:"+asString(args[0]))).Result()
		if err == nil && n > 0 {
			a.out.Add(f)
		}
		return err
	}
	args[3] = why
	said, err := a.link.write(a.ctx, scAuditFix, args...)
	if err != nil {
		return err
	}
	switch asString(said) {
	case "GONE":
		return nil // it was finished meanwhile
	case "OK":
		f.Repair = done
	default:
		f.Detail += "; it is being sent just now"
	}
	a.out.Add(f)
	return nil
}

// rebuild makes envelope and place of a body again, as far as that is possible.
func (a *auditor) rebuild(id mail.ID, place string, env *mail.Envelope) error {
	f := transfer.Finding{Problem: transfer.BadEnvelope, Where: string(id), Detail: fmt.Sprintf("place of the body: %q", place)}
	said, err := a.link.read(a.ctx, scDump, string(id))
	if err != nil {
		return err
	}
	v := asList(at(asList(said), 0))
	if len(v) < 3 {
		return nil
	}
	if env.ID != id {
		env = &mail.Envelope{ID: id, Received: timeOf(id)}
	}
	for _, x := range v[min(3, len(v)):] {
		r := rowFrom(asList(x))
		for r.N >= len(env.Recipients) {
			env.Recipients = append(env.Recipients, mail.Recipient{})
		}
		if env.Recipients[r.N].Addr.IsNull() {
			addr, _ := mail.ParseAddress(r.User) // else it stays empty, and an operator sees the user
			env.Recipients[r.N] = mail.Recipient{Addr: addr, User: r.User, Hint: r.Hint}
		}
	}
	if strings.Count(place, " ") < 2 {
		inline := asString(v[2])
		if raw, err := a.bodies.dec.DecodeAll([]byte(inline), nil); err == nil {
			env.Size = int64(len(raw))
		}
		a.out.Bytes += env.Size - asInt(place)
		place = fmt.Sprintf("%d 0 ", env.Size)
	}
	env.Size = asInt(strings.SplitN(place, " ", 2)[0])
	blob, err := json.Marshal(env)
	if err != nil {
		return err
	}
	args := fixArgs(id, string(blob), place, env)
	return a.fix(f, "made again from its recipients, which are parked", transfer.HeadGone, args[:4])
}

// body reads a message's body to its end.
func (a *auditor) body(id mail.ID, size, chunks int64, nonce string, waits bool) error {
	err := a.readBody(id, size, chunks, nonce)
	if err == nil || errors.Is(err, queue.ErrNotFound) {
		return nil
	}
	if !errors.Is(err, queue.ErrCorrupt) {
		return err
	}
	f := transfer.Finding{Problem: transfer.NoBody, Where: string(id), Detail: err.Error()}
	if !waits {
		f.Note, f.Detail = true, f.Detail+"; it is parked"
		a.out.Add(f)
		return nil
	}
	return a.fix(f, "it was parked", transfer.BodyGone, []any{string(id), "", "", ""})
}

func (a *auditor) readBody(id mail.ID, size, chunks int64, nonce string) error {
	gone := func() bool {
		n, err := a.server.client.Exists(a.ctx, a.key("m:"+string(id))).Result()
		return err == nil && n == 0
	}
	var r io.ReadCloser = &chunkReader{s: a.bodies, ctx: a.ctx, name: string(id) + "-" + nonce, left: size, n: int(chunks), gone: gone}
	if chunks == 0 {
		var err error
		if r, err = a.bodies.inline(a.inlines[id], size); err != nil {
			return err
		}
	}
	defer r.Close()
	if _, err := io.Copy(io.Discard, r); err != nil {
		if gone() {
			return queue.ErrNotFound
		}
		return err
	}
	return nil
}
