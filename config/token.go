package config

import (
	"crypto/x509"
	"errors"
	"fmt"
	"net/url"
	"path/filepath"
	"slices"
	"strings"
)

// TokenLogin says where access tokens come from, with as: xoauth2 and as: oauthbearer. Exactly one of the four ways is
// set.
type TokenLogin struct {
	File      string          `yaml:"file" path:"yes" doc:"File with the access token, read at each login: the bare token, or JSON with access_token. {user} in the name is the login name: a file for each user. Without it one token opens all mailboxes."`
	Command   []string        `yaml:"command" doc:"Program and arguments (no shell) that print the access token: bare, or JSON with access_token and expires_in. {user} in an argument is the login name: a token for each user. Without it one token opens all mailboxes."`
	Google    *GoogleToken    `yaml:"google" doc:"A Google service account with domain-wide delegation."`
	Microsoft *MicrosoftToken `yaml:"microsoft" doc:"An application in Microsoft Entra, for Microsoft 365 (client credentials). It proves itself with a secret, or with cert and key."`
	CA        string          `yaml:"ca" path:"yes" doc:"PEM file with the authorities to trust for the token endpoint, instead of the system's. A company that looks into TLS needs it."`
}

// GoogleToken is a service account of Google.
type GoogleToken struct {
	KeyFile string `yaml:"key_file" path:"yes" doc:"The service account's JSON key file, as Google's console hands it out."`
	Scope   string `yaml:"scope" doc:"Scope that is delegated to the service account. Empty means https://mail.google.com/, which IMAP needs."`
}

// MicrosoftToken is an application of Microsoft Entra.
type MicrosoftToken struct {
	Tenant     string `yaml:"tenant" doc:"Id of the directory (tenant), or a domain of it."`
	ClientID   string `yaml:"client_id" doc:"Id of the application (client)."`
	SecretFile string `yaml:"secret_file" path:"yes" doc:"File with the application's client secret (its value, not its id); one newline at its end is dropped."`
	SecretEnv  string `yaml:"secret_env" doc:"Environment variable with the client secret, as the other way."`
	Cert       string `yaml:"cert" path:"yes" doc:"PEM file with a certificate that is uploaded to the application, in place of a secret."`
	Key        string `yaml:"key" path:"yes" doc:"PEM file with its RSA private key."`
	Authority  string `yaml:"authority" doc:"Where tokens are asked for. Empty means https://login.microsoftonline.com; national clouds have others."`
	Scope      string `yaml:"scope" doc:"Empty means https://outlook.office365.com/.default; national clouds have others."`
}

// Secret reads the client secret from secret_file or secret_env.
func (m *MicrosoftToken) Secret() (Secret, error) {
	s, err := readPassword(m.SecretFile, m.SecretEnv)
	if err != nil {
		return s, fmt.Errorf("client secret: %w", err)
	}
	return s, nil
}

// Roots reads ca; nil when it is not set.
func (t *TokenLogin) Roots() (*x509.CertPool, error) {
	if t.CA == "" {
		return nil, nil
	}
	data, err := readBounded(t.CA, maxFile)
	if err != nil {
		return nil, fmt.Errorf("read ca: %w", err)
	}
	pool := x509.NewCertPool()
	if !pool.AppendCertsFromPEM(data) {
		return nil, fmt.Errorf("read ca: %s holds no certificate in PEM", t.CA)
	}
	return pool, nil
}

// warnings lists files with secrets that others can read.
func (t *TokenLogin) warnings() []string {
	out := appendExposed(nil, "token.file", t.File)
	if t.Google != nil {
		out = appendExposed(out, "token.google.key_file", t.Google.KeyFile)
	}
	if t.Microsoft != nil {
		out = appendExposed(out, "token.microsoft.secret_file", t.Microsoft.SecretFile)
		out = appendExposed(out, "token.microsoft.key", t.Microsoft.Key)
	}
	return out
}

// tokenLogin checks a login with tokens.
func (k *checker) tokenLogin(key string, l *Login) {
	if l.User != "" || l.PasswordFile != "" || l.PasswordEnv != "" || l.PasswordsFile != "" {
		k.fail(key+".as", "as: %s logs in by token as the user himself: remove user, password_file, password_env and passwords_file", l.As)
	}
	if l.Mechanism != MechanismAuto {
		k.fail(key+".mechanism", "as: %s is a mechanism itself: remove this", l.As)
	}
	t := l.Token
	if t == nil {
		k.fail(key+".token", "missing: as: %s needs a token, such as {google: {key_file: ./sa.json}}; known are file, command, google and microsoft", l.As)
		return
	}
	ways := 0
	for _, set := range []bool{t.File != "", len(t.Command) > 0, t.Google != nil, t.Microsoft != nil} {
		if set {
			ways++
		}
	}
	switch {
	case ways == 0:
		k.fail(key+".token", "nothing says where the token comes from: set one of file, command, google and microsoft")
	case ways > 1:
		k.fail(key+".token", "%d ways to get a token are set: set one of file, command, google and microsoft", ways)
	}
	if len(t.Command) > 0 && (t.Command[0] == "" || strings.ContainsRune(t.Command[0], filepath.Separator) && !filepath.IsAbs(t.Command[0])) {
		k.fail(key+".token.command", "the program is given with its full path, or by a name that is found in PATH")
	}
	if t.Google != nil && t.Google.KeyFile == "" {
		k.fail(key+".token.google.key_file", "missing: name the service account's JSON key file")
	}
	if t.Microsoft != nil {
		k.microsoft(key+".token.microsoft", t.Microsoft)
	}
}

func (k *checker) microsoft(key string, m *MicrosoftToken) {
	if m.Tenant == "" {
		k.fail(key+".tenant", "missing: write the id of the directory (tenant), or a domain of it")
	}
	if m.ClientID == "" {
		k.fail(key+".client_id", "missing: write the id of the application (client)")
	}
	k.envName(key+".secret_env", m.SecretEnv, "the secret")
	if (m.Cert == "") != (m.Key == "") {
		k.fail(key+".cert", "cert and key belong together: set both, or neither")
	}
	var proofs []string
	for name, set := range map[string]bool{"secret_file": m.SecretFile != "", "secret_env": m.SecretEnv != "", "cert": m.Cert != ""} {
		if set {
			proofs = append(proofs, name)
		}
	}
	slices.Sort(proofs)
	switch {
	case len(proofs) == 0 && m.Key == "":
		k.fail(key+".secret_file", "missing: name a file with the client secret, an environment variable with secret_env, or cert and key")
	case len(proofs) > 1:
		k.fail(key+"."+proofs[len(proofs)-1], "%s are set: one is enough", strings.Join(proofs, " and "))
	}
	if m.Authority != "" {
		if err := checkAuthority(m.Authority); err != nil {
			k.fail(key+".authority", "%s", err)
		}
	}
}

func checkAuthority(text string) error {
	u, err := url.Parse(text)
	switch {
	case err != nil || u.Host == "" || u.User != nil || u.RawQuery != "" || u.Fragment != "":
		return errors.New("not a URL such as https://login.microsoftonline.com")
	case u.Scheme != "https" && !(u.Scheme == "http" && isLoopback(u.Hostname())):
		return errors.New("not https: the secret would cross the network readable")
	}
	return nil
}

// envName checks the name of an environment variable. What stands there in its place may be the secret itself, so
// the message does not show it.
func (k *checker) envName(key, name, what string) {
	if name == "" || envName.MatchString(name) {
		return
	}
	problem := k.c.src.at(key, fmt.Sprintf("not the name of an environment variable: letters, digits and underscores (the name goes here, not %s)", what))
	problem.Excerpt = ""
	k.problems = append(k.problems, problem)
}

// LoginMechanism is how a password is proved to the server. The zero value is auto.
type LoginMechanism string

// The mechanisms for passwords.
const (
	MechanismAuto  LoginMechanism = ""              // PLAIN where it is offered, else LOGIN; SCRAM where neither may be used
	MechanismPlain LoginMechanism = "plain"         // SASL PLAIN, RFC 4616
	MechanismLogin LoginMechanism = "login"         // the command LOGIN
	MechanismSCRAM LoginMechanism = "scram-sha-256" // RFC 7677: the password is not sent, and the server proves itself
)

// UnmarshalText reads auto, plain, login or scram-sha-256.
func (m *LoginMechanism) UnmarshalText(text []byte) error {
	switch word := LoginMechanism(text); word {
	case "auto":
		*m = MechanismAuto
	case MechanismPlain, MechanismLogin, MechanismSCRAM:
		*m = word
	default:
		return badValue(0, "unknown mechanism %q: known are auto, plain, login and scram-sha-256", string(word))
	}
	return nil
}

// MarshalText returns the form that UnmarshalText reads.
func (m LoginMechanism) MarshalText() ([]byte, error) {
	if m == MechanismAuto {
		return []byte("auto"), nil
	}
	return []byte(m), nil
}
