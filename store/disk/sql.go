package disk

import (
	"context"
	"database/sql/driver"
	"errors"
	"fmt"
	"io"

	"modernc.org/sqlite"
)

// conn is one connection to the database with its prepared statements. It
// uses the driver without database/sql, whose pool, locks and conversions cost
// more than most of our statements. A conn belongs to one goroutine at a time.
type conn struct {
	c     driver.Conn
	stmts map[string]*stmt
}

// stmt is a prepared statement.
type stmt struct {
	s    driver.Stmt
	exec driver.StmtExecContext
	qry  driver.StmtQueryContext
	args []driver.NamedValue
	cols []driver.Value
}

// dbError marks what the database itself said, as opposed to what an
// operation says about its own request.
type dbError struct {
	what string
	err  error
}

func (e *dbError) Error() string { return "queue database: " + e.what + ": " + e.err.Error() }
func (e *dbError) Unwrap() error { return e.err }

// isDBError tells whether err came out of the database.
func isDBError(err error) bool {
	var e *dbError
	return errors.As(err, &e)
}

// sqliteCode gives the primary result code of SQLite, or 0.
func sqliteCode(err error) int {
	var e *sqlite.Error
	if errors.As(err, &e) {
		return e.Code() & 0xff
	}
	return 0
}

// The result codes of SQLite that are told apart.
const (
	codeFull    = 13
	codeCorrupt = 11
	codeNotADB  = 26
	codeCantGo  = 14
	codeRO      = 8
	codePerm    = 3
	codeBusy    = 5
)

func openConn(dsn string) (*conn, error) {
	c, err := new(sqlite.Driver).Open(dsn)
	if err != nil {
		return nil, &dbError{"open", err}
	}
	return &conn{c: c, stmts: map[string]*stmt{}}, nil
}

func (c *conn) close() error {
	for _, s := range c.stmts {
		s.s.Close()
	}
	c.stmts = nil
	return c.c.Close()
}

// prepare gives the statement for sql, compiled once per connection.
func (c *conn) prepare(sql string) (*stmt, error) {
	if s := c.stmts[sql]; s != nil {
		return s, nil
	}
	ds, err := c.c.Prepare(sql)
	if err != nil {
		return nil, &dbError{sql, err}
	}
	s := &stmt{s: ds}
	var ok1, ok2 bool
	s.exec, ok1 = ds.(driver.StmtExecContext)
	s.qry, ok2 = ds.(driver.StmtQueryContext)
	if !ok1 || !ok2 {
		return nil, &dbError{sql, errors.New("the driver lacks the calls with a context")}
	}
	c.stmts[sql] = s
	return s, nil
}

// bind fills the arguments, which must be of the types that the driver takes
// as they are: int64, string, []byte, nil; int and the like are widened here.
func (s *stmt) bind(args []any) []driver.NamedValue {
	s.args = s.args[:0]
	for i, a := range args {
		switch v := a.(type) {
		case int:
			a = int64(v)
		case uint64:
			a = int64(v)
		case lane:
			a = int64(v)
		case bool:
			a = int64(0)
			if v {
				a = int64(1)
			}
		}
		s.args = append(s.args, driver.NamedValue{Ordinal: i + 1, Value: a})
	}
	return s.args
}

// run executes a statement and gives the number of rows it changed.
func (c *conn) run(sql string, args ...any) (int, error) {
	s, err := c.prepare(sql)
	if err != nil {
		return 0, err
	}
	res, err := s.exec.ExecContext(context.Background(), s.bind(args))
	clear(s.args)
	if err != nil {
		return 0, &dbError{sql, err}
	}
	n, _ := res.RowsAffected()
	return int(n), nil
}

// each calls f with every row of a query; f may keep no slice of cols. It ends
// early, without an error, when f gives errStop. f may run other statements on
// the same connection, but not this one.
func (c *conn) each(f func(cols []driver.Value) error, sql string, args ...any) error {
	s, err := c.prepare(sql)
	if err != nil {
		return err
	}
	rows, err := s.qry.QueryContext(context.Background(), s.bind(args))
	clear(s.args)
	if err != nil {
		return &dbError{sql, err}
	}
	defer rows.Close()
	if n := len(rows.Columns()); len(s.cols) != n {
		s.cols = make([]driver.Value, n)
	}
	for {
		if err := rows.Next(s.cols); errors.Is(err, io.EOF) {
			return nil
		} else if err != nil {
			return &dbError{sql, err}
		}
		if err := f(s.cols); errors.Is(err, errStop) {
			return nil
		} else if err != nil {
			return err
		}
	}
}

// one copies the first row's integers; found is false when there is none.
func (c *conn) ints(sql string, args ...any) (v []int64, found bool, err error) {
	err = c.each(func(cols []driver.Value) error {
		found = true
		for i := range cols {
			v = append(v, asInt(cols[i]))
		}
		return errStop
	}, sql, args...)
	return v, found, err
}

// errStop ends a walk over rows.
var errStop = errors.New("stop")

func asInt(v driver.Value) int64 {
	i, _ := v.(int64)
	return i
}

func asString(v driver.Value) string {
	switch v := v.(type) {
	case string:
		return v
	case []byte:
		return string(v)
	}
	return ""
}

func asBytes(v driver.Value) []byte {
	switch v := v.(type) {
	case []byte:
		return v
	case string:
		return []byte(v)
	}
	return nil
}

// null stores a zero as NULL, which takes no room.
func null[T comparable](v T) any {
	var zero T
	if v == zero {
		return nil
	}
	return v
}

// script runs statements that give no rows, each once.
func (c *conn) script(stmts ...string) error {
	for _, sql := range stmts {
		ds, err := c.c.Prepare(sql)
		if err != nil {
			return &dbError{sql, err}
		}
		//lint:ignore SA1019 the deprecated call is the one that takes no context and allocates nothing
		_, err = ds.Exec(nil)
		ds.Close()
		if err != nil {
			return fmt.Errorf("%w", &dbError{sql, err})
		}
	}
	return nil
}
