package imapconn

import (
	"encoding/base64"
	"errors"
	"sort"
	"strconv"
	"strings"
)

// secrets keeps what was sent to prove a login, in each form that it had, so
// that it can be cut out of what a server says: it may repeat what it was sent,
// in its answer and in a goodbye, whole or in part.
type secrets struct{ known []string }

func (x *secrets) add(secret string) {
	if secret == "" {
		return
	}
	q := strconv.Quote(secret) // as errors quote it
	x.known = append(x.known, secret, q[1:len(q)-1])
	sort.Slice(x.known, func(i, j int) bool { return len(x.known[i]) > len(x.known[j]) })
}

// encode gives a response as it goes out, and keeps it.
func (x *secrets) encode(response []byte) string {
	out := base64.StdEncoding.EncodeToString(response)
	if len(response) > 1 {
		x.add(out)
	}
	return out
}

// clean cuts the secrets out of an error, and makes an answer a LoginError.
func (x *secrets) clean(mech Mechanism, detail string, err error) error {
	if err == nil {
		return nil
	}
	var e *Error
	if errors.As(err, &e) {
		answer := Error{Command: e.Command, Status: e.Status, Code: x.cut(e.Code), Text: x.cut(e.Text)}
		return &LoginError{Mechanism: mech, Answer: answer, Detail: x.cut(detail)}
	}
	if text := x.cut(err.Error()); text != err.Error() {
		return errors.New(text)
	}
	return err
}

const redacted = "<redacted>"

// leastPart is the shortest piece of a long secret that is cut out: a server's
// words are shortened above, so that a token in them need not be whole.
const leastPart = 12

func (x *secrets) cut(text string) string {
	var pairs []string
	for _, s := range x.known {
		pairs = append(pairs, s, redacted)
	}
	text = strings.NewReplacer(pairs...).Replace(text)
	var b strings.Builder
	for i := 0; i < len(text); {
		n := x.partAt(text[i:])
		if n < leastPart {
			b.WriteByte(text[i])
			i++
			continue
		}
		b.WriteString(redacted)
		i += n
	}
	return b.String()
}

// partAt gives the length of the longest piece of a secret that text begins with.
func (x *secrets) partAt(text string) int {
	longest := 0
	for _, s := range x.known {
		for n := max(longest+1, leastPart); n <= len(text) && strings.Contains(s, text[:n]); n++ {
			longest = n
		}
	}
	return longest
}
