package admin

import (
	"crypto/rand"
	"crypto/sha256"
	"crypto/subtle"
	"encoding/base64"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"strings"
)

// Role says what a token may do. Each role may do what the ones before it may.
type Role string

// The roles.
const (
	RoleRead    Role = "read"    // look at everything but the content of mail
	RoleOperate Role = "operate" // move users, and queued mail back and forth
	RoleAdmin   Role = "admin"   // delete, import, reload, read the content of mail
)

func (r Role) rank() int {
	switch r {
	case RoleRead:
		return 1
	case RoleOperate:
		return 2
	case RoleAdmin:
		return 3
	}
	return 0
}

// May tells whether a token of role r may do what needs the role need.
func (r Role) May(need Role) bool { return r.rank() > 0 && r.rank() >= need.rank() }

// Token is one credential of the API. Its value never prints.
type Token struct {
	Name string
	Role Role

	value string
}

// Tokens are all credentials of a relay.
type Tokens []Token

// minToken is the shortest token that is accepted, in octets: what is shorter
// was not made by a random generator.
const minToken = 16

// maxTokenFile bounds what is read of a token file, in octets.
const maxTokenFile = 1 << 20

// NewToken makes a token from its parts.
func NewToken(name string, role Role, value string) (Token, error) {
	switch {
	case role.rank() == 0:
		return Token{}, fmt.Errorf("token %q: unknown role %q: use read, operate or admin", name, role)
	case len(value) < minToken:
		return Token{}, fmt.Errorf("token %q: it is shorter than %d characters", name, minToken)
	case strings.ContainsFunc(value, func(r rune) bool { return r <= ' ' || r >= 0x7f }):
		return Token{}, fmt.Errorf("token %q: it has characters that cannot stand in a header", name)
	}
	return Token{Name: name, Role: role, value: value}, nil
}

// Value is the credential itself. Send it, and do nothing else with it.
func (t Token) Value() string { return t.value }

// String gives the name and the role, never the value.
func (t Token) String() string { return fmt.Sprintf("%s (%s)", t.Name, t.Role) }

// GoString is String, so that %#v shows no value either.
func (t Token) GoString() string { return t.String() }

// find gives the token with the value given. It looks at all of them in
// constant time, so that the time taken tells nothing about any of them.
func (ts Tokens) find(value string) (Token, bool) {
	given := sha256.Sum256([]byte(value))
	at := -1
	for i := range ts {
		have := sha256.Sum256([]byte(ts[i].value))
		at = subtle.ConstantTimeSelect(subtle.ConstantTimeCompare(given[:], have[:]), i, at)
	}
	if at < 0 {
		return Token{}, false
	}
	return ts[at], true
}

// ParseTokens reads the content of a token file: one bare token, which has the
// role admin, or lines of name, role and token. Empty lines and lines that
// begin with # are skipped.
func ParseTokens(text string) (Tokens, error) {
	var tokens Tokens
	names, values := map[string]bool{}, map[string]bool{}
	bare := false
	for i, line := range strings.Split(text, "\n") {
		line = strings.TrimSpace(line)
		if line == "" || line[0] == '#' {
			continue
		}
		fields := strings.Fields(line)
		if len(fields) == 1 {
			fields, bare = []string{"admin", string(RoleAdmin), fields[0]}, true
		}
		if len(fields) != 3 {
			return nil, fmt.Errorf("line %d: expected a bare token, or name, role and token", i+1)
		}
		t, err := NewToken(fields[0], Role(fields[1]), fields[2])
		if err != nil {
			return nil, fmt.Errorf("line %d: %w", i+1, err)
		}
		if names[t.Name] || values[t.value] {
			return nil, fmt.Errorf("line %d: the name %q or its token was given before", i+1, t.Name)
		}
		names[t.Name], values[t.value] = true, true
		tokens = append(tokens, t)
	}
	if len(tokens) == 0 {
		return nil, errors.New("there is no token in it")
	}
	if bare && len(tokens) > 1 {
		return nil, errors.New("a bare token stands alone: write name, role and token where there are more")
	}
	return tokens, nil
}

// LoadTokens reads a token file. A file that others may write is refused.
func LoadTokens(path string) (Tokens, error) {
	f, err := os.Open(path)
	if err != nil {
		return nil, fmt.Errorf("token file: %w", err)
	}
	defer f.Close()
	info, err := f.Stat()
	if err != nil {
		return nil, fmt.Errorf("token file: %w", err)
	}
	if info.Mode().IsRegular() && info.Mode().Perm()&0o022 != 0 {
		return nil, fmt.Errorf("token file %s: its mode %v lets others write it: chmod 600 it", path, info.Mode().Perm())
	}
	text, err := io.ReadAll(io.LimitReader(f, maxTokenFile+1))
	if err != nil {
		return nil, fmt.Errorf("token file: %w", err)
	}
	if len(text) > maxTokenFile {
		return nil, fmt.Errorf("token file %s: it is larger than %d octets", path, maxTokenFile)
	}
	tokens, err := ParseTokens(string(text))
	if err != nil {
		return nil, fmt.Errorf("token file %s: %w", path, err)
	}
	return tokens, nil
}

// LoadOrCreateToken reads a token file, and makes one with a random token and
// the mode 0600 when there is none. The file appears complete or not at all.
func LoadOrCreateToken(path string) (tokens Tokens, created bool, err error) {
	tokens, err = LoadTokens(path)
	if !errors.Is(err, fs.ErrNotExist) {
		return tokens, false, err
	}
	value, err := createTokenFile(path)
	if err != nil {
		return nil, false, fmt.Errorf("making the token file %s: %w", path, err)
	}
	t, err := NewToken("admin", RoleAdmin, value)
	if err != nil {
		return nil, false, err
	}
	return Tokens{t}, true, nil
}

func createTokenFile(path string) (value string, err error) {
	var random [32]byte
	if _, err := rand.Read(random[:]); err != nil {
		return "", err
	}
	value = base64.RawURLEncoding.EncodeToString(random[:])
	dir := filepath.Dir(path)
	f, err := os.CreateTemp(dir, ".token-*") // mode 0600
	if err != nil {
		return "", err
	}
	defer os.Remove(f.Name()) // fails once it was renamed
	_, err = f.WriteString(value + "\n")
	err = errors.Join(err, f.Sync(), f.Close())
	if err != nil {
		return "", err
	}
	if err := os.Rename(f.Name(), path); err != nil {
		return "", err
	}
	return value, syncDir(dir)
}

// syncDir makes a new name in a directory durable.
func syncDir(dir string) error {
	d, err := os.Open(dir)
	if err != nil {
		return err
	}
	return errors.Join(d.Sync(), d.Close())
}
