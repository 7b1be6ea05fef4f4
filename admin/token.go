package admin

import (
	"crypto/rand"
	"crypto/sha256"
	"crypto/subtle"
	"encoding/base64"
	"encoding/hex"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"time"

	"golang.org/x/sys/unix"
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
	Name    string
	Role    Role
	Expires time.Time // zero: never

	// The SHA-256 of the value. A slow hash is for what people choose: a token has
	// 256 random bits (one that an operator wrote himself, minToken characters), which
	// nobody finds by trying, and a slow hash would let strangers keep the relay busy.
	hash   [sha256.Size]byte
	value  string // empty where the hash alone is known
	stored bool   // made over the API: it is in the store, not in the file
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
	return Token{Name: name, Role: role, value: value, hash: sha256.Sum256([]byte(value))}, nil
}

// hashPrefix marks a line of a token file that has the hash instead of the token.
const hashPrefix = "sha256:"

// newHashedToken makes a token of which the hash alone is known, as hashText gave
// it.
func newHashedToken(name string, role Role, text string) (Token, error) {
	t := Token{Name: name, Role: role}
	hash, err := hex.DecodeString(strings.TrimPrefix(text, hashPrefix))
	switch {
	case role.rank() == 0:
		return Token{}, fmt.Errorf("token %q: unknown role %q: use read, operate or admin", name, role)
	case err != nil || copy(t.hash[:], hash) != len(t.hash) || len(hash) != len(t.hash):
		return Token{}, fmt.Errorf("token %q: its hash is not sha256: and 64 hexadecimal digits", name)
	}
	return t, nil
}

// hashText is how the hash of a token is kept.
func (t Token) hashText() string { return hashPrefix + hex.EncodeToString(t.hash[:]) }

// tokenPrefix begins each token that is made, so that programs that look for
// credentials in places where they do not belong recognise one.
const tokenPrefix = "cxf_"

// MakeToken makes a token with 256 random bits. Its value is known to the caller
// alone.
func MakeToken(name string, role Role) (Token, error) {
	if err := checkTokenName(name); err != nil {
		return Token{}, err
	}
	value, err := randomToken()
	if err != nil {
		return Token{}, fmt.Errorf("making a token: %w", err)
	}
	return NewToken(name, role, tokenPrefix+value)
}

func randomToken() (string, error) {
	var random [32]byte
	if _, err := rand.Read(random[:]); err != nil {
		return "", err
	}
	return base64.RawURLEncoding.EncodeToString(random[:]), nil
}

// tokenName is what the name of a token may be: it stands in histories and logs.
var tokenName = regexp.MustCompile(`^[A-Za-z0-9][A-Za-z0-9._@-]{0,63}$`)

func checkTokenName(name string) error {
	if !tokenName.MatchString(name) {
		return fmt.Errorf("%q is no name of a token: use up to 64 letters, digits and . _ @ -", name)
	}
	return nil
}

// Value is the credential itself; empty where its hash alone is known. Send it,
// and do nothing else with it.
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
		at = subtle.ConstantTimeSelect(subtle.ConstantTimeCompare(given[:], ts[i].hash[:]), i, at)
	}
	if at < 0 {
		return Token{}, false
	}
	return ts[at], true
}

// ParseTokens reads the content of a token file: one bare token, which has the
// role admin, or lines of name, role, token and, where it ends, a day (2026-12-31)
// or a time (RFC 3339). Instead of the token a line may have its hash, as
// `crossfade token add --file` writes it: sha256: and 64 hexadecimal digits.
// Empty lines and lines that begin with # are skipped.
func ParseTokens(text string) (Tokens, error) {
	var tokens Tokens
	names, hashes := map[string]bool{}, map[[sha256.Size]byte]bool{}
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
		t, err := tokenOfLine(fields)
		if err != nil {
			return nil, fmt.Errorf("line %d: %w", i+1, err)
		}
		if names[t.Name] || hashes[t.hash] {
			return nil, fmt.Errorf("line %d: the name %q or its token was given before", i+1, t.Name)
		}
		names[t.Name], hashes[t.hash] = true, true
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

// tokenOfLine reads name, role, token and end.
func tokenOfLine(fields []string) (t Token, err error) {
	if len(fields) != 3 && len(fields) != 4 {
		return t, errors.New("expected a bare token, or name, role, token and perhaps its end")
	}
	if strings.HasPrefix(fields[2], hashPrefix) {
		t, err = newHashedToken(fields[0], Role(fields[1]), fields[2])
	} else {
		t, err = NewToken(fields[0], Role(fields[1]), fields[2])
	}
	if err == nil && len(fields) == 4 {
		t.Expires, err = parseExpiry(fields[3])
	}
	return t, err
}

// parseExpiry reads a day, which counts to its beginning in UTC, or a time.
func parseExpiry(text string) (time.Time, error) {
	if t, err := time.Parse(time.DateOnly, text); err == nil {
		return t, nil
	}
	t, err := time.Parse(time.RFC3339, text)
	if err != nil {
		return t, fmt.Errorf("%q is no end of a token: write a day (2026-12-31) or a time (RFC 3339)", text)
	}
	return t, nil
}

// LoadTokens reads a token file. A file that others may write is refused, and so
// is one that everybody may read when a token, and not its hash alone, is in it.
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
	plain := slices.ContainsFunc(tokens, func(t Token) bool { return t.value != "" })
	if plain && info.Mode().IsRegular() && info.Mode().Perm()&0o004 != 0 {
		return nil, fmt.Errorf("token file %s: its mode %v lets everybody read it: chmod 600 it, and think about a new token", path, info.Mode().Perm())
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
	if value, err = randomToken(); err != nil {
		return "", err
	}
	value = tokenPrefix + value
	return value, replaceFile(path, value+"\n")
}

// replaceFile writes a file, which appears complete or not at all. It has owner and
// mode of the one whose place it takes, or the relay, which is another user than
// the operator at the command line, could not read it any more. A new one has the
// mode 0600.
func replaceFile(path, text string) error {
	path, err := followed(path)
	if err != nil {
		return err
	}
	dir := filepath.Dir(path)
	f, err := os.CreateTemp(dir, ".token-*") // mode 0600
	if err != nil {
		return err
	}
	defer os.Remove(f.Name()) // fails once it was renamed
	_, err = f.WriteString(text)
	err = errors.Join(err, keepOwner(f, path), f.Sync(), f.Close())
	if err != nil {
		return err
	}
	if err := os.Rename(f.Name(), path); err != nil {
		return err
	}
	return syncDir(dir)
}

// followed gives the file that path leads to. Root follows no link out of a directory
// of somebody else, who could have it lead to any file of the machine.
func followed(path string) (string, error) {
	var link, dir unix.Stat_t
	if err := unix.Lstat(path, &link); err != nil || link.Mode&unix.S_IFMT != unix.S_IFLNK {
		return path, nil // what is wrong is said by whoever uses it
	}
	if err := unix.Stat(filepath.Dir(path), &dir); err != nil {
		return "", err
	}
	if os.Geteuid() == 0 && dir.Uid != 0 {
		return "", fmt.Errorf("it is a symbolic link in a directory of the user %d: name the file that it leads to, or run this as that user", dir.Uid)
	}
	return filepath.EvalSymlinks(path)
}

// keepOwner gives f owner and mode of the file at path. Where there is none, what
// root makes belongs to the owner of the directory.
func keepOwner(f *os.File, path string) error {
	var now, want unix.Stat_t
	if err := unix.Fstat(int(f.Fd()), &now); err != nil {
		return err
	}
	err := unix.Lstat(path, &want)
	switch {
	case err == nil:
		err = f.Chmod(fs.FileMode(want.Mode) & fs.ModePerm)
	case errors.Is(err, fs.ErrNotExist) && os.Geteuid() == 0:
		err = unix.Stat(filepath.Dir(path), &want)
	case errors.Is(err, fs.ErrNotExist):
		return nil
	}
	if err != nil || now.Uid == want.Uid && now.Gid == want.Gid {
		return err
	}
	if err := f.Chown(int(want.Uid), int(want.Gid)); err != nil {
		return fmt.Errorf("it belongs to the user %d: run this as that user or as root: %w", want.Uid, err)
	}
	return nil
}

// bareLine is a line of a token file with a token and nothing else.
var bareLine = regexp.MustCompile(`(?m)^[ \t]*([^\s#]\S*)[ \t\r]*$`)

// AddTokenLine adds a line with a token's hash to a token file, which it makes
// when there is none; a bare token in it gets its name and role written out. It is
// the way to a first token, or to one more, for somebody who may write the file;
// the relay reads it at a start and at a reload.
func AddTokenLine(path string, t Token) error {
	text, err := os.ReadFile(path)
	if err != nil && !errors.Is(err, fs.ErrNotExist) {
		return fmt.Errorf("token file: %w", err)
	}
	text = bareLine.ReplaceAll(text, []byte("admin "+RoleAdmin+" $1"))
	if len(text) > 0 && text[len(text)-1] != '\n' {
		text = append(text, '\n')
	}
	line := t.Name + " " + string(t.Role) + " " + t.hashText()
	if !t.Expires.IsZero() {
		line += " " + t.Expires.UTC().Format(time.RFC3339)
	}
	after := string(text) + line + "\n"
	if _, err := ParseTokens(after); err != nil {
		return fmt.Errorf("token file %s: the token was not added: %w", path, err)
	}
	if err := replaceFile(path, after); err != nil {
		return fmt.Errorf("token file %s: %w", path, err)
	}
	return nil
}

// syncDir makes a new name in a directory durable.
func syncDir(dir string) error {
	d, err := os.Open(dir)
	if err != nil {
		return err
	}
	return errors.Join(d.Sync(), d.Close())
}
