package config

import (
	"fmt"
	"math"
	"strconv"
	"strings"
	"time"
)

// valueError is a problem inside one value. offset counts the characters before the place of the problem, so that an
// error of a value in the middle of a line can point at the right column.
type valueError struct {
	offset int
	text   string
}

// Error returns the text without the offset.
func (e *valueError) Error() string { return e.text }

func badValue(offset int, format string, args ...any) error {
	return &valueError{offset: offset, text: fmt.Sprintf(format, args...)}
}

// Duration is a length of time as the configuration writes it: whole numbers with the units d, h, m, s and ms, the
// largest first, as in 7d, 4h30m or 90s. A day is 24 hours. Convert with time.Duration(d).
type Duration time.Duration

const day = 24 * time.Hour

// durationUnits runs from the largest to the smallest: the order in which units may follow each other.
var durationUnits = []struct {
	name string
	size time.Duration
}{{"d", day}, {"h", time.Hour}, {"m", time.Minute}, {"s", time.Second}, {"ms", time.Millisecond}}

const durationHelp = "write whole numbers with the units d, h, m, s or ms, the largest first, such as 7d or 4h30m"

// ParseDuration reads the form that [Duration] describes. Negative lengths, fractions, a missing unit (except for 0)
// and values beyond the range of time.Duration (292 years) are errors.
func ParseDuration(text string) (Duration, error) {
	if text == "0" {
		return 0, nil
	}
	if text == "" {
		return 0, badValue(0, "empty duration: %s", durationHelp)
	}
	var total time.Duration
	next := 0 // index of the largest unit that may still follow
	for at := 0; at < len(text); {
		number, unit := splitQuantity(text[at:])
		if number == "" {
			return 0, badValue(at, "bad duration %q: no digit at %q: %s", text, text[at:], durationHelp)
		}
		if unit == "" {
			return 0, badValue(at, "bad duration %q: no unit after %s: %s", text, number, durationHelp)
		}
		i := unitIndex(unit)
		if i < 0 {
			return 0, badValue(at+len(number), "bad duration %q: unknown unit %q: %s", text, unit, durationHelp)
		}
		if i < next {
			return 0, badValue(at+len(number), "bad duration %q: unit %q comes twice or after a smaller one: %s", text, unit, durationHelp)
		}
		next = i + 1
		n, err := strconv.ParseInt(number, 10, 64)
		size := durationUnits[i].size
		if err != nil || n > int64((math.MaxInt64-total)/size) {
			return 0, badValue(at, "bad duration %q: too long: 292 years is the most", text)
		}
		total += time.Duration(n) * size
		at += len(number) + len(unit)
	}
	return Duration(total), nil
}

func unitIndex(unit string) int {
	for i, u := range durationUnits {
		if u.name == unit {
			return i
		}
	}
	return -1
}

// splitQuantity cuts the leading digits and the non-digits behind them off text.
func splitQuantity(text string) (number, unit string) {
	isDigit := func(r rune) bool { return r >= '0' && r <= '9' }
	rest := strings.TrimLeftFunc(text, isDigit)
	number = text[:len(text)-len(rest)]
	if end := strings.IndexFunc(rest, isDigit); end >= 0 {
		return number, rest[:end]
	}
	return number, rest
}

// UnmarshalText is [ParseDuration].
func (d *Duration) UnmarshalText(text []byte) (err error) {
	*d, err = ParseDuration(string(text))
	return err
}

// MarshalText is [Duration.String].
func (d Duration) MarshalText() ([]byte, error) { return []byte(d.String()), nil }

// String returns the form that ParseDuration reads. Lengths that have no such form (negative, or finer than a
// millisecond) are written as time.Duration writes them.
func (d Duration) String() string {
	left := time.Duration(d)
	if left < 0 || left%time.Millisecond != 0 {
		return left.String()
	}
	if left == 0 {
		return "0s"
	}
	var b strings.Builder
	for _, u := range durationUnits {
		if n := left / u.size; n > 0 {
			fmt.Fprintf(&b, "%d%s", n, u.name)
			left -= n * u.size
		}
	}
	return b.String()
}

// Size is a number of bytes as the configuration writes it: a whole number and a unit. KiB, MiB, GiB and TiB, and the
// bare letters k, M, G and T, count in steps of 1024; kB, MB, GB and TB in steps of 1000; B or no unit is bytes. Case
// does not matter. Convert with int64(s).
type Size int64

// Binary units of [Size].
const (
	KiB Size = 1 << 10
	MiB Size = 1 << 20
	GiB Size = 1 << 30
	TiB Size = 1 << 40
)

const sizeHelp = "write a whole number and a unit, such as 50MiB, 10MB or 512k"

func sizeUnit(name string) (Size, bool) {
	switch strings.ToLower(name) {
	case "", "b":
		return 1, true
	case "k", "kib":
		return KiB, true
	case "m", "mib":
		return MiB, true
	case "g", "gib":
		return GiB, true
	case "t", "tib":
		return TiB, true
	case "kb":
		return 1e3, true
	case "mb":
		return 1e6, true
	case "gb":
		return 1e9, true
	case "tb":
		return 1e12, true
	}
	return 0, false
}

// ParseSize reads the form that [Size] describes; one space may stand before the unit. Negative numbers, fractions and
// values beyond 8 EiB are errors.
func ParseSize(text string) (Size, error) {
	number, unit := splitQuantity(text)
	if number == "" {
		if text == "" {
			return 0, badValue(0, "empty size: %s", sizeHelp)
		}
		return 0, badValue(0, "bad size %q: no digit at the beginning: %s", text, sizeHelp)
	}
	if rest := text[len(number)+len(unit):]; rest != "" {
		return 0, badValue(len(number), "bad size %q: unexpected %q: %s", text, unit+rest, sizeHelp)
	}
	factor, ok := sizeUnit(strings.TrimPrefix(unit, " "))
	if !ok {
		return 0, badValue(len(number), "bad size %q: unknown unit %q: %s", text, unit, sizeHelp)
	}
	n, err := strconv.ParseInt(number, 10, 64)
	if err != nil || n > math.MaxInt64/int64(factor) {
		return 0, badValue(0, "bad size %q: too large: below 8388608TiB is what can be counted", text)
	}
	return Size(n) * factor, nil
}

// UnmarshalText is [ParseSize].
func (s *Size) UnmarshalText(text []byte) (err error) {
	*s, err = ParseSize(string(text))
	return err
}

// MarshalText is [Size.String].
func (s Size) MarshalText() ([]byte, error) { return []byte(s.String()), nil }

// String returns the shortest exact form that ParseSize reads.
func (s Size) String() string {
	for _, u := range []struct {
		name string
		size Size
	}{{"TiB", TiB}, {"GiB", GiB}, {"MiB", MiB}, {"KiB", KiB}, {"TB", 1e12}, {"GB", 1e9}, {"MB", 1e6}, {"kB", 1e3}} {
		if s != 0 && s%u.size == 0 {
			return fmt.Sprintf("%d%s", s/u.size, u.name)
		}
	}
	return strconv.FormatInt(int64(s), 10)
}
