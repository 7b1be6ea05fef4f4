package transfer_test

import (
	"context"
	"fmt"
	"slices"
	"strings"
	"testing"
	"time"

	"crossfade/internal/redistest"
	"crossfade/mail"
	"crossfade/queue"
	"crossfade/router"
	"crossfade/store/transfer"
)

// everything gives what Redis holds, key by key, but for what runs by a clock.
func everything(t testing.TB, srv *redistest.Server) map[string]string {
	t.Helper()
	out := map[string]string{}
	for _, k := range srv.Must("KEYS", "*").([]any) {
		key := k.(string)
		if strings.HasPrefix(key, "cx:{q}:p:") || strings.HasPrefix(key, "cx:{q}:S:") {
			continue // for two minutes
		}
		out[key] = fmt.Sprint(srv.Must("DUMP", key))
	}
	return out
}

func sameKeys(t testing.TB, what string, want, got map[string]string) {
	t.Helper()
	for k := range want {
		if want[k] != got[k] {
			t.Errorf("%s: key %s was changed", what, k)
		}
	}
	for k := range got {
		if _, ok := want[k]; !ok {
			t.Errorf("%s: key %s is new", what, k)
		}
	}
}

// damage is something that an audit has to find.
type damage struct {
	name string
	do   func(d *damaged)
	want []string // problems
	rows bool     // the records themselves are others after the repair
	left bool     // it cannot be repaired
	note bool     // afterwards it is known and parked
}

// damaged is a store that is being damaged.
type damaged struct {
	testing.TB
	srv *redistest.Server
	ids map[string]mail.ID
}

func (d *damaged) key(k string) string { return "cx:{q}:" + k }

func (d *damaged) rid(name string) string { return string(d.ids[name]) + ":0" }

// row changes a field of a row, as lib.lua numbers them.
func (d *damaged) row(name string, field int, value any) {
	d.srv.Must("EVAL", `local r = cmsgpack.unpack(redis.call('HGET', KEYS[1], 0))
local v = ARGV[2]
if tonumber(v) then v = tonumber(v) end
r[tonumber(ARGV[1])] = v
redis.call('HSET', KEYS[1], 0, cmsgpack.pack(r))`, 1, d.key("m:"+string(d.ids[name])), field, value)
}

// user changes a field of a user.
func (d *damaged) user(key string, field int, value any) {
	d.srv.Must("EVAL", `local u = cmsgpack.unpack(redis.call('HGET', KEYS[1], ARGV[3]))
local v = ARGV[2]
if tonumber(v) then v = tonumber(v) end
u[tonumber(ARGV[1])] = v
redis.call('HSET', KEYS[1], ARGV[3], cmsgpack.pack(u))`, 1, d.key("U:-"), field, value, key)
}

// chunks gives the keys of the pieces of a body.
func (d *damaged) chunks(name string) []string {
	var out []string
	for _, k := range d.srv.Must("KEYS", "cx:q:b:{"+string(d.ids[name])+"-*").([]any) {
		out = append(out, k.(string))
	}
	slices.Sort(out)
	if len(out) == 0 {
		d.Fatal("no pieces")
	}
	return out
}

const oldID = "01ARZ3NDEKTSV4RRFFQ69G5FAV" // of 2016

var redisDamages = []damage{
	{"entry lost from a lane", func(d *damaged) { d.srv.Must("ZREM", d.key("q:11"), d.rid("queued")) }, []string{transfer.Unindexed}, false, false, false},
	{"entry lost from the held", func(d *damaged) { d.srv.Must("ZREM", d.key("q:4"), d.rid("held")) }, []string{transfer.Unindexed}, false, false, false},
	{"wrong due time", func(d *damaged) { d.srv.Must("ZADD", d.key("q:11"), 7, d.rid("queued")) }, []string{transfer.Unindexed}, false, false, false},
	{"in a second lane", func(d *damaged) { d.srv.Must("ZADD", d.key("q:12"), 7, d.rid("queued")) }, []string{transfer.StrayEntry}, false, false, false},
	{"entry without a row", func(d *damaged) { d.srv.Must("ZADD", d.key("q:6"), 7, oldID+":0") }, []string{transfer.StrayEntry}, false, false, false},
	{"lost from its user", func(d *damaged) { d.srv.Must("ZREM", d.key("u:a@example.org"), d.rid("queued")) }, []string{transfer.Unindexed}, false, false, false},
	{"wrong generation at its user", func(d *damaged) { d.srv.Must("ZADD", d.key("u:a@example.org"), 77, d.rid("queued")) }, []string{transfer.Unindexed}, false, false, false},
	{"at a second user", func(d *damaged) { d.srv.Must("ZADD", d.key("u:z@example.org"), 1, d.rid("queued")) }, []string{transfer.StrayEntry}, false, false, false},
	{"user's entry without a row", func(d *damaged) { d.srv.Must("ZADD", d.key("u:a@example.org"), 1, oldID+":3") }, []string{transfer.StrayEntry}, false, false, false},
	{"message not in the list", func(d *damaged) { d.srv.Must("ZREM", d.key("a"), string(d.ids["queued"])) }, []string{transfer.Unindexed}, false, false, false},
	{"message out of order in the list", func(d *damaged) { d.srv.Must("ZADD", d.key("a"), 5, string(d.ids["queued"])) }, []string{transfer.Unindexed}, false, false, false},
	{"listed without being there", func(d *damaged) { d.srv.Must("ZADD", d.key("a"), 0, oldID) }, []string{transfer.StrayEntry}, false, false, false},
	{"octets", func(d *damaged) { d.srv.Must("HINCRBY", d.key("s"), "bytes", 100) }, []string{transfer.WrongCount}, false, false, false},
	{"states", func(d *damaged) { d.srv.Must("HINCRBY", d.key("N"), "old", -1) }, []string{transfer.WrongCount}, false, false, false},
	{"copies too few", func(d *damaged) { d.srv.Must("DEL", d.key("c:both@example.org")) }, []string{transfer.WrongCount}, false, false, false},
	{"copies of nobody", func(d *damaged) { d.srv.Must("SET", d.key("c:a@example.org"), 2) }, []string{transfer.WrongCount}, false, false, false},
	{"tombstone", func(d *damaged) { d.srv.Must("ZADD", d.key("T"), 1, string(d.ids["queued"])) }, []string{transfer.Tombstone}, false, false, false},
	{"tombstone of the future", func(d *damaged) { d.srv.Must("ZADD", d.key("T"), 9e14, oldID) }, []string{transfer.Marked}, false, false, false},
	{"body marked to be removed", func(d *damaged) {
		name, _, _ := strings.Cut(strings.TrimPrefix(d.chunks("big")[0], "cx:q:b:{"), "}")
		d.srv.Must("ZADD", d.key("G"), 9e14, name+" 2")
	}, []string{transfer.Marked}, false, false, false},
	{"orphan inline body", func(d *damaged) { d.srv.Must("SET", d.key("i:"+oldID), "x") }, []string{transfer.OrphanBody}, false, false, false},
	{"orphan piece", func(d *damaged) { d.srv.Must("SET", "cx:q:b:{"+oldID+"-ABCD}:0", "x") }, []string{transfer.OrphanBody}, false, false, false},
	{"deadline without lease", func(d *damaged) { d.srv.Must("ZADD", d.key("L"), 1, "tok-2") }, []string{transfer.StrayEntry}, false, false, false},
	{"lease without rows", func(d *damaged) {
		d.srv.Must("EVAL", `redis.call('SET', KEYS[1], cmsgpack.pack({'n', 'b', ARGV[1], 1, 5, 0, {0}, {1}}))`, 1, d.key("l:tok-1"), string(d.ids["queued"]))
		d.srv.Must("ZADD", d.key("L"), 5, "tok-1")
	}, []string{transfer.LooseLease}, false, false, false},
	{"leased without lease", func(d *damaged) {
		d.row("queued", 1, 7)
		d.row("queued", 13, "tok-9")
		d.srv.Must("ZREM", d.key("q:11"), d.rid("queued"))
		d.srv.Must("ZADD", d.key("u:a@example.org"), -1, d.rid("queued"))
	}, []string{transfer.NoLease}, false, false, false},
	{"no such lane", func(d *damaged) {
		d.row("queued", 1, 9)
		d.srv.Must("ZREM", d.key("q:11"), d.rid("queued"))
	}, []string{transfer.BadLane}, false, false, false},
	{"held though the user is not", func(d *damaged) {
		d.row("queued", 1, 4)
		d.srv.Must("ZREM", d.key("q:11"), d.rid("queued"))
		d.srv.Must("ZADD", d.key("q:4"), 1, d.rid("queued"))
	}, []string{transfer.WrongLane, transfer.Unindexed}, false, false, false},
	{"chunk not listed", func(d *damaged) {
		c := d.srv.Must("ZRANGE", d.key("A"), 0, 0).([]any)[0].(string)
		d.srv.Must("ZREM", d.key("A"), c)
	}, []string{transfer.LostUser}, false, false, false},
	{"chunk listed and empty", func(d *damaged) { d.srv.Must("ZADD", d.key("A"), 0, "-zz@example.org") }, []string{transfer.StrayEntry}, false, false, false},
	{"user in a chunk of others", func(d *damaged) {
		raw := d.srv.Must("HGET", d.key("U:-"), "a@example.org")
		c := d.srv.Must("ZRANGE", d.key("A"), 0, 0).([]any)[0].(string)
		d.srv.Must("HSET", d.key("U:"+c), "a@example.org", raw)
		d.srv.Must("HDEL", d.key("U:-"), "a@example.org")
	}, []string{transfer.LostUser, transfer.WrongLane}, false, false, false},
	{"mail of a user goes the wrong way", func(d *damaged) { d.user("new@example.org", 3, 1) }, []string{transfer.BadUser, transfer.WrongLane}, true, false, false},
	{"epoch behind the history", func(d *damaged) { d.user("new@example.org", 1, 0) }, []string{transfer.WrongEpoch}, true, false, false},
	{"details of a user gone", func(d *damaged) { d.srv.Must("DEL", d.key("y:long@example.org")) }, []string{transfer.BadUser}, true, true, false},
	{"row that cannot be read", func(d *damaged) { d.srv.Must("HSET", d.key("m:"+string(d.ids["queued"])), "0", "rubbish") },
		[]string{transfer.BadLane}, true, false, false},
	{"rows gone", func(d *damaged) { d.srv.Must("HDEL", d.key("m:"+string(d.ids["queued"])), "0") },
		[]string{transfer.NoRows, transfer.StrayEntry}, true, false, false},
	{"envelope gone", func(d *damaged) { d.srv.Must("HDEL", d.key("m:"+string(d.ids["queued"])), "e") }, []string{transfer.BadEnvelope}, true, false, false},
	{"place of the body gone", func(d *damaged) { d.srv.Must("HDEL", d.key("m:"+string(d.ids["queued"])), "s") },
		[]string{transfer.BadEnvelope}, true, false, false},
	{"inline body gone", func(d *damaged) { d.srv.Must("DEL", d.key("i:"+string(d.ids["queued"]))) }, []string{transfer.NoBody}, true, false, true},
	{"piece of a body gone", func(d *damaged) { d.srv.Must("DEL", d.chunks("big")[1]) }, []string{transfer.NoBody}, true, false, true},
	{"piece of a body cut short", func(d *damaged) {
		k := d.chunks("big")[0]
		raw := d.srv.Must("GETRANGE", k, 0, 1000)
		d.srv.Must("SET", k, raw)
	}, []string{transfer.NoBody}, true, false, true},
}

// base makes the store that is damaged, and gives its messages by name.
func base(t testing.TB, p place) map[string]mail.ID {
	s := p.open(t)
	w := &world{t, context.Background(), s}
	ids := map[string]mail.ID{}
	var list []router.User
	for i := range 300 {
		list = append(list, router.User{Address: fmt.Sprintf("user%03d@example.org", i), Kind: router.KindMailbox})
	}
	list = append(list, router.User{Address: "long@example.org", Kind: router.KindMailbox, Note: strings.Repeat("long ", 50)})
	_, _, err := s.ImportUsers(w.ctx, list, router.Change{By: "import", Reason: "x"})
	w.ok(err)
	w.state("a@example.org", router.StateOld)
	w.state("new@example.org", router.StateNew)
	w.state("held@example.org", router.StateCutover)
	w.set("both@example.org", func(u *router.User) { u.State, u.Deliver = router.StateOld, router.DeliverBoth })
	w.put([]byte("a copy"), "both@example.org")
	l := w.claim(mail.Old)
	w.ok(s.Settle(w.ctx, l, []queue.Outcome{{N: 0, Kind: queue.Done}}))
	ids["queued"] = w.put([]byte("queued"), "a@example.org").ID
	w.settle(ids["queued"], mail.Old, queue.Outcome{Kind: queue.Retry, At: time.Now(), Reply: "451"})
	ids["held"] = w.put([]byte("held"), "held@example.org").ID
	ids["big"] = w.put(noise(300<<10), "new@example.org").ID
	w.apply(w.put([]byte("parked"), "a@example.org").ID, queue.Action{Verb: queue.DoPark, Reason: "x"})
	w.ok(s.Close())
	return ids
}

// TestAuditRedis damages each thing on purpose: an audit finds it and changes
// nothing, one with repair makes it whole, and the store works on.
func TestAuditRedis(t *testing.T) {
	srv := redistest.Start(t)
	p := redisAt(srv.URL())
	ids := base(t, p)
	whole := everything(t, srv)
	records := dumpOf(t, p)
	saved := map[string]any{}
	for k := range whole {
		saved[k] = srv.Must("DUMP", k)
	}
	if a := auditOf(t, p, false); a.Left != 0 || a.Notes != 0 || a.Messages != 5 || a.Users != 305 {
		t.Fatalf("a whole store: %+v", a)
	}
	for _, c := range redisDamages {
		t.Run(c.name, func(t *testing.T) {
			srv.Must("FLUSHALL")
			for k, v := range saved {
				srv.Must("RESTORE", k, 0, v, "REPLACE")
			}
			c.do(&damaged{t, srv, ids})
			findAndRepair(t, p, c, func() map[string]string { return everything(t, srv) })
			if !c.rows {
				sameDump(t, records, dumpOf(t, p))
			}
			if !c.left {
				worksOn(t, p)
			}
		})
	}
}

func auditOf(t testing.TB, p place, repair bool) transfer.Audit {
	t.Helper()
	a, err := p.audit(context.Background(), repair)
	if err != nil {
		t.Fatal(err)
	}
	return a
}

func findAndRepair(t *testing.T, p place, c damage, state func() map[string]string) {
	t.Helper()
	before := state()
	a := auditOf(t, p, false)
	sameKeys(t, "an audit without repair", before, state())
	if a.Repaired != 0 || a.Left == 0 {
		t.Fatalf("the audit found %+v", a)
	}
	for _, k := range a.Kinds() {
		if !slices.Contains(c.want, k) {
			t.Errorf("found %q, want %q: %+v", k, c.want, a.Findings)
		}
	}
	if a.Problems[c.want[0]] == 0 {
		t.Errorf("found %q, want %q", a.Kinds(), c.want)
	}
	a = auditOf(t, p, true)
	if c.left != (a.Left > 0) || !c.left && a.Repaired == 0 {
		t.Fatalf("the repair did %+v", a)
	}
	for range 2 {
		a = auditOf(t, p, false)
		if c.left != (a.Left > 0) || c.note != (a.Notes > 0) {
			t.Fatalf("after the repair there is %+v", a)
		}
	}
}

// worksOn delivers what is left in a repaired store, and something new.
func worksOn(t *testing.T, p place) {
	t.Helper()
	s := p.open(t)
	defer s.Close()
	w := &world{t, context.Background(), s}
	w.state("held@example.org", router.StateNew)
	_, err := s.Apply(w.ctx, queue.Filter{Reason: "alarm:"}, queue.Action{Verb: queue.DoDelete})
	w.ok(err)
	_, err = s.Apply(w.ctx, queue.Filter{}, queue.Action{Verb: queue.DoRetry})
	w.ok(err)
	w.drain()
	st, err := s.Stats(w.ctx)
	w.ok(err)
	if st.Messages != 0 || st.Bytes != 0 || len(st.States) != 0 {
		t.Fatalf("after the drain: %+v", st)
	}
	if n, err := s.Busy(w.ctx, "both@example.org"); n != 0 || err != nil {
		t.Fatalf("copies left: %d %v", n, err)
	}
	users, next := 0, ""
	for {
		list, n, err := s.Users(w.ctx, router.Filter{}, next, 100)
		w.ok(err)
		if users += len(list); n == "" {
			break
		}
		next = n
	}
	if users != 305 {
		t.Fatalf("%d users, want 305", users)
	}
}
