package callback

import (
	"crypto/hmac"
	"crypto/sha256"
	"encoding/base64"
	"errors"
	"fmt"
	"strings"
)

// The lengths in bytes that Standard Webhooks demands of secrets.
const (
	secretLeast = 24
	secretMost  = 64
)

// Secret is a key of signatures.
type Secret []byte

// ParseSecret reads a secret as Standard Webhooks writes it: 24 to 64 bytes in base64,
// with whsec_ before or without.
func ParseSecret(text string) (Secret, error) {
	b, err := base64.StdEncoding.DecodeString(strings.TrimPrefix(text, "whsec_"))
	if err != nil {
		return nil, errors.New("it is not in base64: make one with 'openssl rand -base64 32'")
	}
	if len(b) < secretLeast || len(b) > secretMost {
		return nil, fmt.Errorf("it has %d bytes, and must have %d to %d: make one with 'openssl rand -base64 32'", len(b), secretLeast, secretMost)
	}
	return b, nil
}

// sign returns a signature of version 1.
func (s Secret) sign(id, timestamp string, body []byte) string {
	mac := hmac.New(sha256.New, s)
	_, _ = mac.Write([]byte(id + "." + timestamp + ".")) // it never fails
	_, _ = mac.Write(body)
	return "v1," + base64.StdEncoding.EncodeToString(mac.Sum(nil))
}
