package redis

import (
	"strconv"

	"crossfade/mail"
)

// What scripts give back, as Go values. A value of another shape than the
// script's comment says reads as zero.

func asInt(v any) int64 {
	switch v := v.(type) {
	case int64:
		return v
	case string:
		if n, err := strconv.ParseInt(v, 10, 64); err == nil {
			return n
		}
		f, _ := strconv.ParseFloat(v, 64) // large numbers of Lua
		return int64(f)
	}
	return 0
}

func asString(v any) string {
	s, _ := v.(string)
	return s
}

func asList(v any) []any {
	l, _ := v.([]any)
	return l
}

// at gives a list's value, nil beyond its end.
func at(l []any, i int) any {
	if i < len(l) {
		return l[i]
	}
	return nil
}

// The lanes, as lib.lua has them.
const (
	laneOld    = 1
	laneNew    = 2
	laneOut    = 3
	laneHeld   = 4
	laneOpHeld = 5
	laneParked = 6
	laneLeased = 7
	laneBulk   = 10 // added to a route's lane
)

func laneOf(r mail.Route) int {
	switch r {
	case mail.Old:
		return laneOld
	case mail.New:
		return laneNew
	case mail.Out:
		return laneOut
	}
	return 0
}

// routeOf is the opposite of laneOf; empty for what is no route.
func routeOf(lane int64) mail.Route {
	switch lane {
	case laneOld:
		return mail.Old
	case laneNew:
		return mail.New
	case laneOut:
		return mail.Out
	}
	return ""
}

// unknownRoutes spells the bits of a row's UNKNOWN out.
func unknownRoutes(bits int64) (out []mail.Route) {
	for l := int64(laneOld); l <= laneOut; l++ {
		if bits&(1<<l) != 0 {
			out = append(out, routeOf(l))
		}
	}
	return out
}

// flag writes a bool as scripts read it.
func flag(b bool) string {
	if b {
		return "1"
	}
	return "0"
}
