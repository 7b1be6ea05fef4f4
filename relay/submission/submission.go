// Package submission knows who may submit mail with a name and a password: a
// file of bcrypt hashes that is read again when it changes, and the patience that
// guesses meet.
//
// It takes no part in SMTP; relay/wire runs AUTH and asks [Users.Verify].
package submission

import (
	"bufio"
	"bytes"
	"context"
	"crypto/hmac"
	"crypto/rand"
	"crypto/sha256"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net/netip"
	"os"
	"strings"
	"sync"
	"time"

	"golang.org/x/crypto/bcrypt"
)

// Verdict is what came of a login.
type Verdict int

// The verdicts.
const (
	Refused Verdict = iota // the name or the password is wrong
	Granted
	Later // it was not looked at: too many guesses from there, or nobody can look now
)

// The bounds.
const (
	// Cost is that of the hashes that [Hash] makes: about 50 ms of one core.
	Cost = 10
	// maxCost keeps one line of the file from taking a core for minutes.
	maxCost = 14
	// maxFile bounds the file in octets.
	maxFile = 16 << 20
	// atOnce bounds the hashes that are computed at the same time, for strangers
	// can ask for one with each connection.
	atOnce = 2
	// patience is how long a login waits for its turn.
	patience = 10 * time.Second
	// remembered bounds the logins whose password need not be hashed again.
	remembered = 10_000
)

// Users are the names and hashes of one file. Its methods may be called from
// many goroutines.
type Users struct {
	path  string
	log   *slog.Logger
	turns chan struct{}
	key   []byte // of what is remembered; never leaves the process
	guess guesses

	mu     sync.Mutex
	stamp  stamp
	hashes map[string]string
	dummy  string                       // what the password for an unknown name is compared with
	known  map[string][sha256.Size]byte // name -> MAC of hash and password that matched
}

// stamp tells one version of a file from another.
type stamp struct {
	size int64
	mod  time.Time
}

// Open reads the file of users.
func Open(path string, log *slog.Logger) (*Users, error) {
	u := &Users{path: path, log: log, turns: make(chan struct{}, atOnce), key: make([]byte, sha256.Size), known: map[string][sha256.Size]byte{}}
	u.guess.init()
	_, _ = rand.Read(u.key) // it does not fail, see crypto/rand
	var err error
	if u.hashes, u.stamp, err = load(path); err != nil {
		return nil, err
	}
	u.dummy = costliest(u.hashes)
	return u, nil
}

// nobody is a hash of [Cost], of a random password that was not kept.
const nobody = "$2b$10$YN3e0Wz9t0giLB80OAd/SuX1pytncp.wFo8uVh8.v6Siz6tjdeHkq"

// costliest is the hash that takes longest: an unknown name is to take as long as a
// wrong password, whatever made the file.
func costliest(hashes map[string]string) string {
	out, most := nobody, 0
	for _, h := range hashes {
		if cost, err := bcrypt.Cost([]byte(h)); err == nil && cost > most {
			out, most = h, cost
		}
	}
	return out
}

// Len is the number of users.
func (u *Users) Len() int {
	u.mu.Lock()
	defer u.mu.Unlock()
	return len(u.hashes)
}

// load reads a file of lines NAME:HASH. Empty lines and lines that begin with #
// are left out.
func load(path string) (map[string]string, stamp, error) {
	f, err := os.Open(path)
	if err != nil {
		return nil, stamp{}, fmt.Errorf("read the users who may submit mail: %w", err)
	}
	defer f.Close()
	info, err := f.Stat()
	if err != nil {
		return nil, stamp{}, fmt.Errorf("read the users who may submit mail: %w", err)
	}
	if info.Mode().Perm()&0o007 != 0 {
		return nil, stamp{}, fmt.Errorf("read the users who may submit mail: everybody may read or write %s: chmod 640 %s", path, path)
	}
	raw, err := io.ReadAll(io.LimitReader(f, maxFile+1))
	if err != nil || len(raw) > maxFile {
		return nil, stamp{}, fmt.Errorf("read the users who may submit mail: %s: %w", path, errors.Join(err, tooLarge(len(raw))))
	}
	hashes, err := parse(raw)
	if err != nil {
		return nil, stamp{}, fmt.Errorf("read the users who may submit mail: %s: %w", path, err)
	}
	return hashes, stamp{info.Size(), info.ModTime()}, nil
}

func tooLarge(n int) error {
	if n > maxFile {
		return fmt.Errorf("it has more than %d octets", maxFile)
	}
	return nil
}

func parse(raw []byte) (map[string]string, error) {
	hashes := map[string]string{}
	lines := bufio.NewScanner(bytes.NewReader(raw))
	for n := 1; lines.Scan(); n++ {
		line := strings.TrimSpace(lines.Text())
		if line == "" || line[0] == '#' {
			continue
		}
		name, hash, ok := strings.Cut(line, ":")
		if !ok || name == "" {
			return nil, fmt.Errorf("line %d is not NAME:HASH", n)
		}
		cost, err := bcrypt.Cost([]byte(hash))
		switch {
		case err != nil: // the line is not shown: it may be a password
			return nil, fmt.Errorf("line %d: what is behind the name is no bcrypt hash; `crossfade password NAME` makes the line", n)
		case cost > maxCost:
			return nil, fmt.Errorf("line %d: a hash of cost %d would take too long, %d is the most", n, cost, maxCost)
		case hashes[name] != "":
			return nil, fmt.Errorf("line %d: %s is there twice", n, name)
		}
		hashes[name] = hash
	}
	if err := lines.Err(); err != nil {
		return nil, err
	}
	return hashes, nil
}

// Hash is the line of the file for a user.
func Hash(name, password string) (string, error) {
	switch {
	case name == "" || strings.ContainsAny(name, ":\r\n\x00") || name[0] == '#':
		return "", fmt.Errorf("%q cannot be a name: it must not be empty, begin with # or hold a colon", name)
	case len(password) < 8:
		return "", errors.New("the password has fewer than 8 characters")
	case len(password) > 72:
		return "", errors.New("the password has more than 72 octets, which bcrypt does not take")
	}
	h, err := bcrypt.GenerateFromPassword([]byte(password), Cost)
	if err != nil {
		return "", fmt.Errorf("hash the password: %w", err)
	}
	return name + ":" + string(h), nil
}

// refresh reads the file again when it changed. A file that cannot be read leaves
// those who were there before.
func (u *Users) refresh() {
	info, err := os.Stat(u.path)
	if err == nil && (stamp{info.Size(), info.ModTime()}) == u.stamp {
		return
	}
	hashes, s, err := load(u.path)
	if err != nil {
		if info != nil {
			u.stamp = stamp{info.Size(), info.ModTime()} // told once for each version
		}
		u.log.Error("the users who may submit mail stay as they were", "error", err)
		return
	}
	u.hashes, u.stamp, u.dummy = hashes, s, costliest(hashes)
	clear(u.known)
	u.log.Info("the users who may submit mail were read again", "users", len(hashes))
}

// Verify tells whether the password is that of the name. Guesses are put
// off for longer and longer; an error of the file is Later.
func (u *Users) Verify(ctx context.Context, client netip.Addr, name, password string) Verdict {
	if !u.guess.try(client, name, time.Now()) {
		return Later
	}
	u.mu.Lock()
	u.refresh()
	hash, there := u.hashes[name]
	if !there {
		hash = u.dummy
	}
	mac := u.mac(hash, password)
	before, known := u.known[name]
	u.mu.Unlock()
	if there && known && hmac.Equal(before[:], mac[:]) {
		u.guess.heal(client, name)
		return Granted
	}
	ctx, cancel := context.WithTimeout(ctx, patience)
	defer cancel()
	select {
	case u.turns <- struct{}{}:
		defer func() { <-u.turns }()
	case <-ctx.Done():
		u.guess.forgive(client, name)
		return Later
	}
	if bcrypt.CompareHashAndPassword([]byte(hash), []byte(password)) != nil || !there {
		return Refused
	}
	u.guess.heal(client, name)
	u.mu.Lock()
	defer u.mu.Unlock()
	if len(u.known) < remembered && u.hashes[name] == hash {
		u.known[name] = mac
	}
	return Granted
}

func (u *Users) mac(hash, password string) (out [sha256.Size]byte) {
	m := hmac.New(sha256.New, u.key)
	m.Write([]byte(hash))
	m.Write([]byte{0})
	m.Write([]byte(password))
	m.Sum(out[:0])
	return out
}
