package disk

import (
	"database/sql/driver"
	"fmt"
	"net/url"
	"os"
	"path/filepath"
)

// schemaVersion is kept in SQLite's user_version. A higher one than this was
// written by a newer Crossfade, which this one must not touch.
const schemaVersion = 3

// schema is written for people too: `sqlite3 queue.db "select * from queue"`.
//
// Most messages are gone within a second, so a recipient that went straight
// into memory has no due time and is in no index: it costs one row. Whatever
// is left on disk has one, and is found by lane and due time or by user.
var schema = []string{
	`CREATE TABLE message (
  id       TEXT PRIMARY KEY,  -- ULID
  received INTEGER NOT NULL,  -- Unix milliseconds
  size     INTEGER NOT NULL,  -- octets of the body
  sender   TEXT NOT NULL,     -- reverse-path; empty: the null reverse-path
  file     INTEGER NOT NULL,  -- bodies/FILE.seg, or bodies/FILE.body when pos is negative
  pos      INTEGER NOT NULL,  -- offset of the record in the segment
  envelope BLOB NOT NULL      -- the rest, see envelope.go
) WITHOUT ROWID`,
	`CREATE TABLE recipient (
  id       TEXT NOT NULL,
  n        INTEGER NOT NULL,  -- index in the envelope
  lane     INTEGER NOT NULL,  -- 1 old, 2 new, 3 out, 4 held by its user, 5 held by an operator, 6 parked
  user     TEXT,              -- key in the user table
  due      INTEGER,           -- Unix milliseconds; NULL: at once
  gen      INTEGER,           -- generation of the user's route under which the row was written
  hint     INTEGER,           -- route when the table has no such user: 1 old, 2 new, 3 out
  fixed    INTEGER,           -- route chosen by an operator or by the other side, or of a copy
  copy     INTEGER,           -- 1: second delivery of deliver=both
  attempts INTEGER,
  crashes  INTEGER,           -- leases in a row that ended in a crash
  since    INTEGER,           -- Unix milliseconds; when it was queued or its route changed
  noticed  INTEGER,           -- 1: a delay notice was sent
  unknown  INTEGER,           -- sum of 2 (old), 4 (new), 8 (out) that said "user unknown"
  addr     TEXT,              -- where it differs from user
  reply    TEXT,              -- of the last attempt
  doubt    TEXT,              -- it may have arrived already: route, and since when in Unix milliseconds: sent, known
  PRIMARY KEY (id, n)
) WITHOUT ROWID`,
	`CREATE INDEX recipient_due  ON recipient(lane, due) WHERE due IS NOT NULL`,
	`CREATE INDEX recipient_user ON recipient(user, lane) WHERE due IS NOT NULL`,
	`CREATE TABLE user (
  address    TEXT PRIMARY KEY,
  kind       TEXT NOT NULL,
  targets    TEXT,            -- JSON array
  state      TEXT NOT NULL,
  epoch      INTEGER NOT NULL,
  gen        INTEGER NOT NULL, -- epoch at which the route last changed
  deliver    TEXT NOT NULL,
  wave       TEXT NOT NULL,
  not_before INTEGER,
  old_login  TEXT NOT NULL,
  new_login  TEXT NOT NULL,
  since      INTEGER,
  note       TEXT NOT NULL
) WITHOUT ROWID`,
	`CREATE TABLE history (
  id         INTEGER PRIMARY KEY,
  user       TEXT NOT NULL,
  epoch      INTEGER NOT NULL,
  from_state TEXT NOT NULL,
  to_state   TEXT NOT NULL,
  author     TEXT NOT NULL,
  reason     TEXT NOT NULL,
  forced     INTEGER NOT NULL,
  at         INTEGER NOT NULL
)`,
	`CREATE INDEX history_user ON history(user)`,
	`CREATE TABLE ledger (
  user TEXT NOT NULL,
  name TEXT NOT NULL,
  data BLOB NOT NULL,
  PRIMARY KEY (user, name)
)`,
	`CREATE TABLE boot (
  one INTEGER PRIMARY KEY CHECK (one = 1),
  n   INTEGER NOT NULL        -- how often the store was opened
)`,
	`INSERT INTO boot VALUES (1, 0)`,
	sqlOutboxTable,
	`CREATE VIEW queue AS SELECT r.id, r.n, coalesce(r.addr, r.user) AS recipient, m.sender,
  CASE WHEN r.lane = 5 THEN 'held (operator)' WHEN r.lane = 6 THEN 'parked'
       WHEN r.lane = 4 OR u.state IN ('cutover', 'rollback') THEN 'held (user)' ELSE 'queued' END AS state,
  CASE r.lane WHEN 1 THEN 'old' WHEN 2 THEN 'new' WHEN 3 THEN 'out' END AS filed_under,
  datetime(m.received / 1000, 'unixepoch') AS received,
  datetime(r.due / 1000, 'unixepoch') AS due,
  coalesce(r.attempts, 0) AS attempts, m.size, r.reply
FROM recipient r JOIN message m ON m.id = r.id LEFT JOIN user u ON u.address = r.user`,
}

// dbName is the database's file in the store's directory.
const dbName = "queue.db"

// dsn names the database. Commits are synced (WAL with synchronous=FULL);
// checkpoints are made by the writer itself, because SQLite would repeat the
// sync of a failed one.
func dsn(dir string, readOnly bool) string {
	q := url.Values{}
	q["_pragma"] = []string{"busy_timeout(10000)", "synchronous(FULL)", "wal_autocheckpoint(0)",
		"cache_size(-16384)", "temp_store(MEMORY)", "journal_size_limit(67108864)"}
	if readOnly {
		q["_pragma"] = append(q["_pragma"], "query_only(1)", "cache_size(-4096)")
	}
	u := url.URL{Scheme: "file", Opaque: (&url.URL{Path: filepath.Join(dir, dbName)}).EscapedPath(), RawQuery: q.Encode()}
	return u.String()
}

// openDB opens the writer's connection and makes or checks the schema. bodies
// is how many files of bodies there are.
func openDB(dir string, bodies int) (*conn, error) {
	path := filepath.Join(dir, dbName)
	f, err := os.OpenFile(path, os.O_RDWR|os.O_CREATE, 0o600)
	if err != nil {
		return nil, fmt.Errorf("open the queue database: %w (the store needs to read and write %s)", err, path)
	}
	f.Close()
	c, err := openConn(dsn(dir, false))
	if err != nil {
		return nil, explain(path, err)
	}
	if err := migrate(c, path, bodies); err != nil {
		c.close()
		return nil, explain(path, err)
	}
	return c, nil
}

// migrate brings an empty database to the present schema, and refuses one that
// is newer. It makes no empty queue beside bodies: the start would remove them
// as torn writes, and the database that refers to them may only be away to be
// repaired.
func migrate(c *conn, path string, bodies int) error {
	v, _, err := c.ints("PRAGMA user_version")
	if err != nil {
		return err
	}
	if v[0] > schemaVersion {
		return fmt.Errorf("open the queue database: %s has schema version %d, and this Crossfade knows %d: start the newer Crossfade that wrote it", path, v[0], schemaVersion)
	}
	if v[0] == 0 && bodies > 0 {
		return fmt.Errorf("open the queue database: %s is empty, and bodies/ beside it has %d files of queued mail: put the database back, or move the whole directory %s away to start with an empty queue", path, bodies, filepath.Dir(path))
	}
	if err := c.each(func([]driver.Value) error { return nil }, "PRAGMA journal_mode=WAL"); err != nil {
		return err
	}
	if v[0] == schemaVersion {
		return c.each(func([]driver.Value) error { return errStop }, "SELECT id FROM recipient LIMIT 1")
	}
	stmts := []string{"BEGIN IMMEDIATE"}
	if v[0] == 0 {
		stmts = append(stmts, schema...)
	} else {
		stmts = append(stmts, upgrades[v[0]-1:]...)
	}
	stmts = append(stmts, fmt.Sprintf("PRAGMA user_version=%d", schemaVersion), "COMMIT")
	return c.script(stmts...)
}

// upgrades lead from one version of the schema to the next: the first from 1 to 2.
var upgrades = []string{"ALTER TABLE recipient ADD COLUMN doubt TEXT", sqlOutboxTable}

// explain says what to do about a database that cannot be opened.
func explain(path string, err error) error {
	if !isDBError(err) {
		return err
	}
	var hint string
	switch sqliteCode(err) {
	case codeNotADB, codeCorrupt:
		hint = fmt.Sprintf("the file is damaged: look with `sqlite3 %s \"PRAGMA integrity_check\"`, then restore it from a backup, or move the whole directory %s away to start with an empty queue", path, filepath.Dir(path))
	case codeRO, codePerm, codeCantGo:
		hint = fmt.Sprintf("the store needs to read and write %s and the files beside it: check their owner and mode", path)
	case codeFull:
		hint = "the disk is full: make room"
	default:
		hint = fmt.Sprintf("look with `sqlite3 %s \"PRAGMA integrity_check\"`", path)
	}
	return fmt.Errorf("open the queue database %s: %w (%s)", path, err, hint)
}
