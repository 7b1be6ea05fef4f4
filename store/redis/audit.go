package redis

import (
	"context"
	"errors"
	"fmt"
	"maps"
	"slices"
	"strings"

	goredis "github.com/redis/go-redis/v9"

	"crossfade/mail"
	"crossfade/store/transfer"
)

// auditor looks at a whole store in slices.
type auditor struct {
	*Store
	ctx     context.Context
	repair  bool
	quiet   bool // no node runs: counters of the whole store can be judged
	copies  map[string]bool
	states  map[string]int64
	inlines map[mail.ID][]byte // small bodies of the slice
	out     transfer.Audit
}

// problems are the kinds of finding, as scripts name them.
var problems = map[string]string{
	"BadLane": transfer.BadLane, "NoLease": transfer.NoLease, "WrongLane": transfer.WrongLane, "Unindexed": transfer.Unindexed,
	"StrayEntry": transfer.StrayEntry, "Tombstone": transfer.Tombstone, "OrphanBody": transfer.OrphanBody, "Marked": transfer.Marked,
	"LooseLease": transfer.LooseLease, "LostUser": transfer.LostUser, "BadUser": transfer.BadUser, "WrongEpoch": transfer.WrongEpoch,
}

// Audit looks whether the store that server leads to is whole: each recipient
// in exactly one index, rows and messages, leases, users and their chunks,
// counters, bodies. Nodes may go on meanwhile; the counters of the whole store
// are then not judged. Without repair Redis itself refuses that anything is
// changed. With it the rows are taken for the truth; what cannot be made whole
// is parked for an operator, and no message is dropped. It owns server from
// now on.
func Audit(ctx context.Context, server *Server, repair bool) (transfer.Audit, error) {
	name := server.String()
	s, err := still(server, Options{})
	if err != nil {
		return transfer.Audit{}, errors.Join(err, server.Close())
	}
	a := &auditor{
		Store: s, ctx: ctx, repair: repair, copies: map[string]bool{}, states: map[string]int64{}, out: transfer.Audit{Store: name},
	}
	if err = a.run(); err != nil {
		err = fmt.Errorf("audit the store in %s: %w", name, err)
	}
	return a.out, errors.Join(err, s.rest())
}

func (a *auditor) run() error {
	if err := a.found(a.ctx); err != nil {
		return err
	}
	if a.repair { // what it writes has to be safe
		if err := a.ready(a.ctx); err != nil {
			return err
		}
	}
	err := a.unused(a.ctx)
	if err != nil && !errors.Is(err, transfer.ErrInUse) {
		return err
	}
	a.quiet = err == nil
	for _, step := range []func() error{a.users, a.messages, a.indexes, a.leases, a.allCopies, a.counters, a.orphans} {
		if err := step(); err != nil {
			return err
		}
	}
	return nil
}

// ask runs a script on some things, in the kind that fits.
func (a *auditor) ask(sc [2]*script, args ...any) (any, error) {
	if err := a.ctx.Err(); err != nil {
		return nil, err
	}
	args = append([]any{flag(a.repair)}, args...)
	if a.repair {
		return a.link.write(a.ctx, sc[1], args...)
	}
	return a.link.read(a.ctx, sc[0], args...)
}

// say enters findings as scripts give them.
func (a *auditor) say(list []any) {
	for _, v := range list {
		f := asList(v)
		kind := asString(at(f, 0))
		if p, ok := problems[kind]; ok {
			a.out.Add(transfer.Finding{Problem: p, Where: asString(at(f, 1)), Detail: asString(at(f, 2)), Repair: asString(at(f, 3))})
		}
	}
}

// users looks at the chunks that are listed, and at those that are not.
func (a *auditor) users() error {
	if err := a.indexOf("A", "A"); err != nil {
		return err
	}
	var chunks []string
	seen := map[string]bool{}
	err := a.scan(a.ctx, "U:", func(names []string) error {
		for _, n := range names {
			if !seen[n] {
				seen[n] = true
				chunks = append(chunks, n)
			}
		}
		return nil
	})
	if err != nil {
		return err
	}
	slices.Sort(chunks)
	for _, c := range chunks {
		var keys []string
		err := a.bodies.retry(a.ctx, func(ctx context.Context) (err error) {
			keys, err = a.server.client.HKeys(ctx, a.key("U:"+c)).Result()
			return err
		})
		if err != nil {
			return err
		}
		for part := range slices.Chunk(keys, auditSlice) {
			args := make([]any, 0, 1+len(part))
			args = append(args, c)
			for _, k := range part {
				args = append(args, k)
			}
			said, err := a.ask(scAuditChunk, args...)
			if err != nil {
				return err
			}
			v := asList(said)
			counts := asList(at(v, 0))
			for i := 0; i+1 < len(counts); i += 2 {
				a.states[asString(counts[i])] += asInt(counts[i+1])
			}
			a.say(asList(at(v, 1)))
			a.out.Users += len(part)
		}
	}
	return nil
}

// auditSlice is how much is looked at in one step.
const auditSlice = 200

// indexOf compares the entries of a sorted set with what they stand for.
func (a *auditor) indexOf(name, what string) error {
	var cursor uint64
	for {
		var list []string
		err := a.bodies.retry(a.ctx, func(ctx context.Context) (err error) {
			list, cursor, err = a.server.client.ZScan(ctx, a.key(name), cursor, "", auditSlice).Result()
			return err
		})
		if err != nil {
			return fmt.Errorf("redis: look at the index %s: %w", name, err)
		}
		members := make([]string, 0, len(list)/2)
		for i := 0; i < len(list); i += 2 {
			members = append(members, list[i])
		}
		if err := a.entries(name, what, members); err != nil || cursor == 0 {
			return err
		}
	}
}

func (a *auditor) entries(name, what string, members []string) error {
	for part := range slices.Chunk(members, auditSlice) {
		args := []any{name, what}
		for _, m := range part {
			args = append(args, m)
		}
		said, err := a.ask(scAuditIndex, args...)
		if err != nil {
			return err
		}
		a.say(asList(said))
	}
	return nil
}

// indexes looks for entries that stand for nothing.
func (a *auditor) indexes() error {
	for _, l := range []int{laneOld, laneNew, laneOut, laneHeld, laneOpHeld, laneParked, laneBulk + laneOld, laneBulk + laneNew, laneBulk + laneOut} {
		if err := a.indexOf(fmt.Sprint("q:", l), fmt.Sprint(l)); err != nil {
			return err
		}
	}
	for _, name := range []string{"a", "G", "T"} {
		if err := a.indexOf(name, name); err != nil {
			return err
		}
	}
	err := a.scan(a.ctx, "u:", func(names []string) error {
		for _, n := range names {
			if err := a.indexOf("u:"+n, "u"); err != nil {
				return err
			}
		}
		return nil
	})
	if err != nil {
		return err
	}
	return a.scan(a.ctx, "i:", func(names []string) error { return a.entries("i", "i", names) })
}

// leases looks at those that are listed, and at those that are there.
func (a *auditor) leases() error {
	if err := a.scan(a.ctx, "l:", func(names []string) error { return a.entries("l", "l", names) }); err != nil {
		return err
	}
	return a.indexOf("L", "L")
}

// allCopies counts the copies of users that have some, or a counter.
func (a *auditor) allCopies() error {
	err := a.scan(a.ctx, "c:", func(names []string) error {
		for _, n := range names {
			a.copies[n] = true
		}
		return nil
	})
	if err != nil {
		return err
	}
	for _, user := range slices.Sorted(maps.Keys(a.copies)) {
		said, err := a.ask(scAuditCopies, user)
		if err != nil {
			return err
		}
		counted, is := asInt(at(asList(said), 0)), asInt(at(asList(said), 1))
		if counted == is {
			continue
		}
		f := transfer.Finding{Problem: transfer.WrongCount, Where: "copies for " + user, Detail: fmt.Sprintf("it says %d, and there are %d", is, counted)}
		if a.repair {
			f.Repair = fmt.Sprint("it says ", counted)
		}
		a.out.Add(f)
	}
	return nil
}

// counters judges those of the whole store, which takes that no node runs.
func (a *auditor) counters() error {
	if a.quiet && errors.Is(a.unused(a.ctx), transfer.ErrInUse) {
		a.quiet = false // one came meanwhile
	}
	if !a.quiet {
		a.out.Add(transfer.Finding{Problem: transfer.WrongCount, Where: "octets of bodies, users by state", Note: true,
			Detail: "not looked at: nodes are running"})
		return nil
	}
	var states, sums map[string]string
	err := a.bodies.retry(a.ctx, func(ctx context.Context) error {
		pipe := a.server.client.Pipeline()
		n, s := pipe.HGetAll(ctx, a.key("N")), pipe.HMGet(ctx, a.key("s"), "bytes")
		_, err := pipe.Exec(ctx)
		states, sums = n.Val(), map[string]string{"bytes": asString(at(s.Val(), 0))}
		return err
	})
	if err != nil {
		return fmt.Errorf("redis: read the counters: %w", err)
	}
	if err := a.counter("N", "users in state ", states, a.states); err != nil {
		return err
	}
	return a.counter("s", "", sums, map[string]int64{"bytes": a.out.Bytes})
}

func (a *auditor) counter(key, words string, is map[string]string, want map[string]int64) error {
	fields := map[string]bool{}
	for f := range is {
		fields[f] = true
	}
	for f := range want {
		fields[f] = true
	}
	for _, field := range slices.Sorted(maps.Keys(fields)) {
		if asInt(is[field]) == want[field] {
			continue
		}
		f := transfer.Finding{Problem: transfer.WrongCount, Where: words + field, Detail: fmt.Sprintf("it says %s, and there are %d", is[field], want[field])}
		if a.repair {
			was := is[field]
			if was == "" {
				was = "0"
			}
			said, err := a.link.write(a.ctx, scAuditCount, key, field, was, fmt.Sprint(want[field]))
			if err != nil {
				return err
			}
			if asString(said) == "OK" {
				f.Repair = fmt.Sprint("it says ", want[field])
			}
		}
		a.out.Add(f)
	}
	return nil
}

// orphans looks for pieces of bodies that no message has. Those that go away
// by themselves, and those of the last hour, which may yet become a message,
// are none.
func (a *auditor) orphans() error {
	going, err := a.going()
	if err != nil {
		return err
	}
	before := a.link.now() - chunkTime.Milliseconds()
	return a.scanBodies(a.ctx, func(ctx context.Context, c *goredis.Client, keys []string) error {
		var old []string
		for _, k := range keys {
			if id, nonce, _ := pieceOf(k); timeOf(id).UnixMilli() < before && !going[string(id)+"-"+nonce] {
				old = append(old, k)
			}
		}
		if len(old) == 0 {
			return nil
		}
		return a.judgePieces(ctx, c, old)
	})
}

// going gives the names of the bodies that nodes are going to remove.
func (a *auditor) going() (map[string]bool, error) {
	names := map[string]bool{}
	var cursor uint64
	for {
		var list []string
		err := a.bodies.retry(a.ctx, func(ctx context.Context) (err error) {
			list, cursor, err = a.server.client.ZScan(ctx, a.key("G"), cursor, "", auditSlice).Result()
			return err
		})
		if err != nil {
			return nil, fmt.Errorf("redis: read which bodies go: %w", err)
		}
		for i := 0; i < len(list); i += 2 {
			name, _, _ := strings.Cut(list[i], " ")
			names[name] = true
		}
		if cursor == 0 {
			return names, nil
		}
	}
}

// judgePieces compares pieces with the messages that they say they are of. What
// was finished within two minutes has a tombstone.
func (a *auditor) judgePieces(ctx context.Context, c *goredis.Client, keys []string) error {
	pipe, meta := c.Pipeline(), a.server.client.Pipeline()
	ttl, place := make([]*goredis.DurationCmd, len(keys)), make([]*goredis.StringCmd, len(keys))
	tomb := make([]*goredis.FloatCmd, len(keys))
	for i, k := range keys {
		id, _, _ := pieceOf(k)
		ttl[i] = pipe.TTL(ctx, k)
		place[i], tomb[i] = meta.HGet(ctx, a.key("m:"+string(id)), "s"), meta.ZScore(ctx, a.key("T"), string(id))
	}
	if _, err := pipe.Exec(ctx); err != nil {
		return err
	}
	if _, err := meta.Exec(ctx); err != nil && !errors.Is(err, goredis.Nil) {
		return err
	}
	for i, k := range keys {
		_, nonce, n := pieceOf(k)
		f := strings.SplitN(place[i].Val(), " ", 3)
		if ttl[i].Val() >= 0 || tomb[i].Err() == nil || len(f) == 3 && f[2] == nonce && n < asInt(f[1]) {
			continue
		}
		if err := a.orphan(ctx, k); err != nil {
			return err
		}
	}
	return nil
}

func (a *auditor) orphan(ctx context.Context, key string) error {
	f := transfer.Finding{Problem: transfer.OrphanBody, Where: key, Detail: "no message has this piece of a body"}
	if a.repair {
		err := a.bodies.retry(ctx, func(ctx context.Context) error { return a.server.client.Unlink(ctx, key).Err() })
		if err != nil {
			return err
		}
		f.Repair = "removed"
	}
	a.out.Add(f)
	return nil
}
