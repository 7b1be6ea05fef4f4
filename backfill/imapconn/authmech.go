package imapconn

import (
	"encoding/json"
	"errors"
	"fmt"
	"net"
	"strconv"
	"strings"

	"github.com/emersion/go-sasl"
	"github.com/xdg-go/scram"
)

// bearerClient is XOAUTH2 and OAUTHBEARER. Both send the token at once; a server
// that refuses it says why in a challenge, wants an empty answer to that, and
// says NO then. go-sasl gives up in the middle of this.
type bearerClient struct {
	mech   Mechanism
	first  []byte
	detail string // what the server said in its challenge
}

// newBearer makes the client of one login. go-sasl writes the first message of
// OAUTHBEARER, but leaves it to us that "," and "=" in a name are written as
// RFC 5801, 4 wants them.
func newBearer(mech Mechanism, user, token, address string) (*bearerClient, error) {
	if strings.ContainsFunc(user+token, func(r rune) bool { return r < ' ' || r == 0x7f }) {
		return nil, errors.New("a control character in the name or the token cannot be sent")
	}
	if token == "" {
		return nil, errors.New("the token is empty")
	}
	c := &bearerClient{mech: mech}
	if mech == MechanismXOAuth2 {
		c.first = []byte("user=" + user + "\x01auth=Bearer " + token + "\x01\x01")
		return c, nil
	}
	host, port, err := net.SplitHostPort(address)
	if err != nil {
		return nil, err
	}
	n, err := strconv.Atoi(port)
	if err != nil {
		n = 0
	}
	user = strings.NewReplacer("=", "=3D", ",", "=2C").Replace(user)
	_, c.first, err = sasl.NewOAuthBearerClient(&sasl.OAuthBearerOptions{Username: user, Token: token, Host: host, Port: n}).Start()
	return c, err
}

// Start implements sasl.Client.
func (c *bearerClient) Start() (mech string, ir []byte, err error) {
	return string(c.mech), c.first, nil
}

// Next implements sasl.Client. It keeps what the server complains of (RFC 7628,
// 3.2.2) and sends the empty answer: 0x01 with OAUTHBEARER (3.2.3), nothing with
// XOAUTH2.
func (c *bearerClient) Next(challenge []byte) ([]byte, error) {
	c.detail = describeChallenge(challenge)
	if c.mech == MechanismOAuthBearer {
		return []byte{1}, nil
	}
	return []byte{}, nil
}

func describeChallenge(challenge []byte) string {
	var said struct {
		Status string `json:"status"`
		Scope  string `json:"scope"`
	}
	if len(challenge) == 0 {
		return ""
	}
	if err := json.Unmarshal(challenge, &said); err != nil || said.Status == "" {
		return printable(string(challenge))
	}
	text := "status " + said.Status
	if said.Scope != "" {
		text += ", scope " + said.Scope
	}
	return printable(text)
}

// scramClient is SCRAM-SHA-256 without channel binding (RFC 7677).
type scramClient struct{ conv *scram.ClientConversation }

// maxIterations bounds what a server may make us compute: a second or so.
const maxIterations = 2_000_000

func newSCRAM(user, password, authz string) (*scramClient, error) {
	c, err := scram.SHA256.NewClient(user, password, authz)
	if err != nil {
		return nil, fmt.Errorf("the name or the password cannot be used with it (RFC 4013): %w", err)
	}
	return &scramClient{conv: c.NewConversation()}, nil
}

// Start implements sasl.Client.
func (c *scramClient) Start() (mech string, ir []byte, err error) {
	first, err := c.conv.Step("")
	return string(MechanismSCRAM), []byte(first), err
}

// Next implements sasl.Client.
func (c *scramClient) Next(challenge []byte) ([]byte, error) {
	for part := range strings.SplitSeq(string(challenge), ",") {
		if n, ok := strings.CutPrefix(part, "i="); ok {
			if i, err := strconv.Atoi(n); err != nil || i > maxIterations {
				return nil, fmt.Errorf("the server wants %s iterations of SCRAM: %d are the most", printable(n), maxIterations)
			}
		}
	}
	answer, err := c.conv.Step(string(challenge))
	if err != nil {
		return nil, err
	}
	return []byte(answer), nil
}

// Verified tells whether the server has shown that it knows the password (RFC
// 5802, 3): one that merely says OK may be anybody.
func (c *scramClient) Verified() error {
	if !c.conv.Valid() {
		return errors.New("the server did not prove that it knows the password (SCRAM): somebody may be in between")
	}
	return nil
}
