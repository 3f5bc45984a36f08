package hub

import (
	"crypto/hmac"
	"crypto/sha256"
	"encoding/base64"
	"encoding/binary"
	"hash/fnv"
	"maps"
	"math"
	"slices"

	"github.com/edumatrix/interlinked/proto/catalog"
)

// Progress contains, for each owner's log, the position up to which everything was sent to a connection. The client
// gets it as a resume token, through the connection's queue. So a client that has read the token has also read
// everything that was queued before the token.
type Progress map[string]Point

// Point is a place in one log.
type Point struct {
	Position catalog.Position
	// Incarnation identifies the incarnation of the log (see IncarnationOf). A log of another incarnation may have lost
	// events that the client has.
	Incarnation uint32
}

// IncarnationOf returns the number that stands for a log's incarnation in resume tokens, or 0 if the log has none.
func IncarnationOf(incarnation string) uint32 {
	if incarnation == "" {
		return 0
	}
	h := fnv.New32a()
	_, _ = h.Write([]byte(incarnation)) // never fails
	return max(1, h.Sum32())
}

// Holds reports whether a log of the given incarnation has all events that the client has. It returns true if the log
// had no incarnation when the client got the token.
func (p Point) Holds(incarnation uint32) bool {
	return p.Incarnation == 0 || p.Incarnation == incarnation
}

const (
	// maxToken bounds a resume token, in characters.
	maxToken = 1024
	// tokenVersion is the first byte of a decoded resume token. Tokens of lower versions were not bound to a user.
	tokenVersion = 3
	// tokenMAC is the number of bytes of the HMAC at the end of a resume token.
	tokenMAC = 16
)

// encode returns the part of a resume token that is the same for all users with this progress.
func (p Progress) encode() []byte {
	b := []byte{tokenVersion}
	for _, owner := range slices.Sorted(maps.Keys(p)) {
		b = append(b, byte(len(owner)))
		b = append(b, owner...)
		b = binary.AppendUvarint(b, uint64(max(0, p[owner].Position)))
		b = binary.BigEndian.AppendUint32(b, p[owner].Incarnation)
	}
	return b
}

// ResumeToken encodes progress for a user's client. The token is bound to the user and authenticated. It grants no
// access. It is authenticated because a gateway that resumed from invented positions would ask owners for events that
// do not exist.
func (h *Hub) ResumeToken(user string, p Progress) string { return h.seal(user, p.encode()) }

func (h *Hub) seal(user string, encoded []byte) string {
	b := append(slices.Clip(encoded), h.tokenMAC(user, encoded)...)
	return base64.RawURLEncoding.EncodeToString(b)
}

func (h *Hub) tokenMAC(user string, encoded []byte) []byte {
	mac := hmac.New(sha256.New, h.options.TokenKey)
	mac.Write([]byte(user))
	mac.Write([]byte{0})
	mac.Write(encoded)
	return mac.Sum(nil)[:tokenMAC]
}

// ReadResumeToken reads the resume token that a user's client sends. It returns false if no gateway of this
// installation made the token for this user, or if the token has another version.
func (h *Hub) ReadResumeToken(user, token string) (Progress, bool) {
	if len(token) > maxToken {
		return nil, false
	}
	b, err := base64.RawURLEncoding.Strict().DecodeString(token)
	if err != nil || len(b) < 1+tokenMAC || b[0] != tokenVersion {
		return nil, false
	}
	b, mac := b[:len(b)-tokenMAC], b[len(b)-tokenMAC:]
	if !hmac.Equal(mac, h.tokenMAC(user, b)) {
		return nil, false
	}
	p := Progress{}
	for b = b[1:]; len(b) > 0; {
		n := int(b[0])
		if len(b) < 1+n {
			return nil, false
		}
		owner := string(b[1 : 1+n])
		position, size := binary.Uvarint(b[1+n:])
		if size <= 0 || position > math.MaxInt64 || len(b) < 1+n+size+4 {
			return nil, false
		}
		b = b[1+n+size:]
		p[owner] = Point{Position: catalog.Position(position), Incarnation: binary.BigEndian.Uint32(b)}
		b = b[4:]
	}
	return p, true
}
