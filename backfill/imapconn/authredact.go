package imapconn

import (
	"encoding/base64"
	"errors"

	"crossfade/backfill/imapconn/token"
)

// secrets keeps what was sent to prove a login, in each form that it had, so
// that it can be cut out of what a server says: it may repeat what it was sent,
// in its answer and in a goodbye.
type secrets struct{ known token.Redactor }

func (x *secrets) add(secret string) { x.known.Add(secret) }

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
		answer := Error{Command: e.Command, Status: e.Status, Code: x.known.Cut(e.Code), Text: x.known.Cut(e.Text)}
		return &LoginError{Mechanism: mech, Answer: answer, Detail: x.known.Cut(detail)}
	}
	if text := x.known.Cut(err.Error()); text != err.Error() {
		return errors.New(text)
	}
	return err
}
