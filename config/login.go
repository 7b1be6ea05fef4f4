package config

import (
	"encoding/csv"
	"errors"
	"fmt"
	"io"
	"os"
	"strings"
)

// Login says how to log in to a backend's IMAP server. Passwords are never in the configuration: they are named by
// file or environment variable, and read each time Password or Passwords is called, so that a changed file is seen.
type Login struct {
	User          string         `yaml:"user" doc:"Login name of the master (as: authzid or suffix), or nothing with the other ways."`
	PasswordFile  string         `yaml:"password_file" path:"yes" doc:"File with the password; one newline at its end is dropped."`
	PasswordEnv   string         `yaml:"password_env" doc:"Environment variable with the password, as the other way."`
	PasswordsFile string         `yaml:"passwords_file" path:"yes" doc:"With as: user, a CSV file with the lines address,login,password; an empty login means the address."`
	As            LoginAs        `yaml:"as" doc:"How a user's mailbox is opened: authzid (a master login, with the user as SASL authorisation identity), suffix:* (log in as user*master), user (each user's own password from passwords_file), xoauth2 or oauthbearer (an access token, see token). docs/logins.md has a recipe for each server."`
	Mechanism     LoginMechanism `yaml:"mechanism" doc:"How a password is proved to the server: auto, plain, login or scram-sha-256. auto takes SASL PLAIN where it is offered, else the command LOGIN, and scram-sha-256 where neither can be used."`
	Token         *TokenLogin    `yaml:"token" doc:"Where access tokens come from, with as: xoauth2 and as: oauthbearer: one of file, command, google and microsoft."`
}

// LoginMode is the kind of a [LoginAs].
type LoginMode int

// The login modes.
const (
	LoginAuthzid     LoginMode = iota // SASL PLAIN, RFC 4616: authzid is the user, authcid the master
	LoginSuffix                       // LOGIN as user, separator, master
	LoginUser                         // each user's own login and password
	LoginXOAuth2                      // an access token, by XOAUTH2: Google, Microsoft
	LoginOAuthBearer                  // an access token, by OAUTHBEARER, RFC 7628
)

// LoginAs says as whom mailboxes are opened. The zero value is authzid.
type LoginAs struct {
	Mode      LoginMode
	Separator string // between user and master with LoginSuffix, such as "*"
}

const loginAsHelp = "known are authzid, suffix:* (with the separator of your server), user, xoauth2 and oauthbearer"

// UnmarshalText reads authzid, suffix:SEPARATOR, user, xoauth2 or oauthbearer.
func (a *LoginAs) UnmarshalText(text []byte) error {
	word := string(text)
	switch separator, isSuffix := strings.CutPrefix(word, "suffix:"); {
	case word == "authzid":
		*a = LoginAs{Mode: LoginAuthzid}
	case word == "user":
		*a = LoginAs{Mode: LoginUser}
	case word == "xoauth2":
		*a = LoginAs{Mode: LoginXOAuth2}
	case word == "oauthbearer":
		*a = LoginAs{Mode: LoginOAuthBearer}
	case word == "suffix", isSuffix && separator == "":
		return badValue(0, "suffix needs its separator, such as \"suffix:*\" (the server's auth_master_user_separator)")
	case isSuffix && (len(separator) > 4 || strings.ContainsFunc(separator, func(r rune) bool { return r <= ' ' || r > '~' })):
		return badValue(len("suffix:"), "bad separator %q: one to four printable ASCII characters", separator)
	case isSuffix:
		*a = LoginAs{Mode: LoginSuffix, Separator: separator}
	default:
		return badValue(0, "unknown login kind %q: %s", word, loginAsHelp)
	}
	return nil
}

// String returns the form that UnmarshalText reads.
func (a LoginAs) String() string {
	switch a.Mode {
	case LoginSuffix:
		return "suffix:" + a.Separator
	case LoginUser:
		return "user"
	case LoginXOAuth2:
		return "xoauth2"
	case LoginOAuthBearer:
		return "oauthbearer"
	}
	return "authzid"
}

// Bearer reports whether logins are made with access tokens.
func (a LoginAs) Bearer() bool { return a.Mode == LoginXOAuth2 || a.Mode == LoginOAuthBearer }

// MarshalText is [LoginAs.String].
func (a LoginAs) MarshalText() ([]byte, error) { return []byte(a.String()), nil }

// maxPassword bounds a password file: a device or a mailbox named by mistake must not be read whole.
const maxPassword = 64 << 10

// Password reads the master's password from password_file or password_env. One line end is dropped from a file. An
// empty password, and one with a line end or a NUL inside, is an error.
func (l *Login) Password() (Secret, error) {
	if l.PasswordFile == "" && l.PasswordEnv == "" {
		return Secret{}, errors.New("no password configured: set password_file or password_env")
	}
	return readPassword(l.PasswordFile, l.PasswordEnv)
}

// Password reads the password of Redis from password_file or password_env, as [Login.Password] does; the empty secret
// when neither is set.
func (r *Redis) Password() (Secret, error) {
	if r.PasswordFile == "" && r.PasswordEnv == "" {
		return Secret{}, nil
	}
	return readPassword(r.PasswordFile, r.PasswordEnv)
}

// readPassword reads a file, or else an environment variable.
func readPassword(file, env string) (Secret, error) {
	if file != "" {
		data, err := readBounded(file, maxPassword)
		if err != nil {
			return Secret{}, fmt.Errorf("read password_file: %w", err)
		}
		value := strings.TrimSuffix(strings.TrimSuffix(string(data), "\n"), "\r")
		return checkPassword(value, "password_file "+file)
	}
	value, set := os.LookupEnv(env)
	if !set {
		return Secret{}, fmt.Errorf("read password_env: the environment variable %s is not set", env)
	}
	return checkPassword(value, "password_env "+env)
}

func checkPassword(value, where string) (Secret, error) {
	if value == "" {
		return Secret{}, fmt.Errorf("%s is empty: put the password there", where)
	}
	if strings.ContainsAny(value, "\r\n\x00") {
		return Secret{}, fmt.Errorf("%s holds more than one line: put the password there and nothing else", where)
	}
	return NewSecret(value), nil
}

func readBounded(path string, limit int64) ([]byte, error) {
	f, err := os.Open(path)
	if err != nil {
		return nil, err
	}
	defer f.Close()
	data, err := io.ReadAll(io.LimitReader(f, limit+1))
	if err != nil {
		return nil, err
	}
	if int64(len(data)) > limit {
		return nil, fmt.Errorf("%s is larger than %s", path, Size(limit))
	}
	return data, nil
}

// UserLogin is one line of passwords_file: how one user logs in.
type UserLogin struct {
	Login    string
	Password Secret
}

// UserLogins maps addresses to logins. The zero value is empty.
type UserLogins struct {
	byAddress map[string]UserLogin
}

// Lookup returns the login of address; case does not matter, and a domain may be in either form.
func (u UserLogins) Lookup(address string) (UserLogin, bool) {
	login, ok := u.byAddress[addressKey(address)]
	return login, ok
}

// Len returns the number of addresses.
func (u UserLogins) Len() int { return len(u.byAddress) }

func addressKey(address string) string {
	at := strings.LastIndexByte(address, '@')
	if at < 0 {
		return strings.ToLower(address)
	}
	domain := address[at+1:]
	if ascii, err := NormalDomain(domain); err == nil {
		domain = ascii
	}
	return strings.ToLower(address[:at+1]) + strings.ToLower(domain)
}

// maxPasswords bounds passwords_file: a million users fit.
const maxPasswords = 256 << 20

// Passwords reads passwords_file: CSV (RFC 4180) with address, login and password, "#" starting a comment line, and
// an optional header line address,login,password. An empty login means the address. Errors name file and line and
// never repeat what the line holds.
func (l *Login) Passwords() (UserLogins, error) {
	if l.PasswordsFile == "" {
		return UserLogins{}, errors.New("no passwords_file configured")
	}
	f, err := os.Open(l.PasswordsFile)
	if err != nil {
		return UserLogins{}, fmt.Errorf("read passwords_file: %w", err)
	}
	defer f.Close()
	logins, err := parsePasswords(io.LimitReader(f, maxPasswords))
	if err != nil {
		return UserLogins{}, fmt.Errorf("read passwords_file %s: %w", l.PasswordsFile, err)
	}
	return logins, nil
}

func parsePasswords(r io.Reader) (UserLogins, error) {
	reader := csv.NewReader(r)
	reader.FieldsPerRecord = -1
	reader.Comment = '#'
	logins := UserLogins{byAddress: make(map[string]UserLogin)}
	lines := make(map[string]int)
	for first := true; ; first = false {
		record, err := reader.Read()
		if err == io.EOF {
			return logins, nil
		}
		if err != nil {
			return UserLogins{}, err // a csv.ParseError: line and column, never content
		}
		line, _ := reader.FieldPos(0)
		if first {
			record[0] = strings.TrimPrefix(record[0], "\ufeff")
			if strings.EqualFold(strings.Join(record, ","), "address,login,password") {
				continue
			}
		}
		address, login, err := passwordLine(record)
		if err != nil {
			return UserLogins{}, fmt.Errorf("line %d: %w", line, err)
		}
		if before, twice := lines[address]; twice {
			return UserLogins{}, fmt.Errorf("line %d: the same address as in line %d", line, before)
		}
		lines[address] = line
		logins.byAddress[address] = login
	}
}

func passwordLine(record []string) (string, UserLogin, error) {
	if len(record) != 3 {
		return "", UserLogin{}, fmt.Errorf("%d fields instead of 3: address,login,password (a comma or quote in a password needs the field in quotes)", len(record))
	}
	address := strings.TrimSpace(record[0])
	if at := strings.LastIndexByte(address, '@'); at < 1 || at == len(address)-1 {
		return "", UserLogin{}, errors.New("the first field is not an address, such as user@example.org")
	}
	password, err := checkPassword(record[2], "the password")
	if err != nil {
		return "", UserLogin{}, err
	}
	login := strings.TrimSpace(record[1])
	if login == "" {
		login = address
	}
	return addressKey(address), UserLogin{Login: login, Password: password}, nil
}
