package seal

import (
	"crypto/ed25519"
	"encoding/base64"
)

// SignText signs a text of a kind, in base64. The kind keeps a signature of one
// kind from being shown as one of another.
func (k Key) SignText(kind string, text []byte) string {
	if k.private == nil {
		return ""
	}
	return base64.StdEncoding.EncodeToString(ed25519.Sign(k.private, textOf(kind, text)))
}

// CheckText tells whether value is what SignText gave with the key whose public
// part is given.
func CheckText(public, kind string, text []byte, value string) bool {
	key, err := base64.StdEncoding.DecodeString(public)
	sig, err2 := base64.StdEncoding.DecodeString(value)
	return err == nil && err2 == nil && len(key) == ed25519.PublicKeySize && ed25519.Verify(key, textOf(kind, text), sig)
}

func textOf(kind string, text []byte) []byte {
	return append([]byte("crossfade "+kind+"\n"), text...)
}
