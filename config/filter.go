package config

import (
	"strconv"
	"strings"
	"time"
)

// Date is a day as the configuration writes it, 2019-01-31; it begins at midnight UTC. The zero value is no date.
type Date struct{ day time.Time }

// Time returns the beginning of the day, UTC; the zero time for no date.
func (d Date) Time() time.Time { return d.day }

// IsZero reports whether there is no date.
func (d Date) IsZero() bool { return d.day.IsZero() }

// UnmarshalText reads YYYY-MM-DD, or nothing.
func (d *Date) UnmarshalText(text []byte) error {
	*d = Date{}
	if len(text) == 0 {
		return nil
	}
	day, err := time.Parse(time.DateOnly, string(text))
	if err != nil {
		return badValue(0, "bad date %q: write year, month and day, such as 2019-01-31", text)
	}
	d.day = day
	return nil
}

// String returns the form that UnmarshalText reads.
func (d Date) String() string {
	if d.IsZero() {
		return ""
	}
	return d.day.Format(time.DateOnly)
}

// MarshalText is [Date.String].
func (d Date) MarshalText() ([]byte, error) { return []byte(d.String()), nil }

// Share is a part of a whole as the configuration writes it: 1% to 100%, or never. The zero value is never.
type Share struct{ Percent int }

// UnmarshalText reads a whole number with a percent sign, or never.
func (s *Share) UnmarshalText(text []byte) error {
	word := string(text)
	if word == "never" {
		*s = Share{}
		return nil
	}
	number, isPercent := strings.CutSuffix(word, "%")
	n, err := strconv.Atoi(strings.TrimSpace(number))
	if err != nil || !isPercent || n < 1 || n > 100 {
		return badValue(0, "bad share %q: write 1%% to 100%%, or never", word)
	}
	s.Percent = n
	return nil
}

// String returns the form that UnmarshalText reads.
func (s Share) String() string {
	if s.Percent <= 0 {
		return "never"
	}
	return strconv.Itoa(s.Percent) + "%"
}

// MarshalText is [Share.String].
func (s Share) MarshalText() ([]byte, error) { return []byte(s.String()), nil }
