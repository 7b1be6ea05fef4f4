package config

import (
	"fmt"
	"io"
	"log/slog"
)

// redacted is what a [Secret] prints as, everywhere.
const redacted = "<redacted>"

// Secret holds a password or token. Every way of printing or encoding it gives <redacted>, also when it is a field of
// something else; only [Secret.Reveal] gives the content. The zero value is the empty secret. Do not compare secrets
// with ==.
type Secret struct {
	// A pointer, because fmt reaches into unexported fields of other structs without calling our methods, and then
	// prints the address instead of the content.
	value *string
}

// NewSecret wraps value.
func NewSecret(value string) Secret { return Secret{value: &value} }

// Reveal returns the content. Use it where it goes on the wire, and nowhere else.
func (s Secret) Reveal() string {
	if s.value == nil {
		return ""
	}
	return *s.value
}

// IsZero reports whether the secret is empty.
func (s Secret) IsZero() bool { return s.Reveal() == "" }

// String returns <redacted>.
func (Secret) String() string { return redacted }

// GoString returns <redacted>, for %#v.
func (Secret) GoString() string { return redacted }

// Format writes <redacted> for every verb, so that %d and %x do not reach the content either.
func (Secret) Format(f fmt.State, _ rune) { _, _ = io.WriteString(f, redacted) }

// MarshalText returns <redacted>.
func (Secret) MarshalText() ([]byte, error) { return []byte(redacted), nil }

// MarshalJSON returns "<redacted>".
func (Secret) MarshalJSON() ([]byte, error) { return []byte(`"` + redacted + `"`), nil }

// MarshalYAML returns <redacted>.
func (Secret) MarshalYAML() (any, error) { return redacted, nil }

// LogValue returns <redacted>, for log/slog.
func (Secret) LogValue() slog.Value { return slog.StringValue(redacted) }
