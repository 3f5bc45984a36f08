package hub

import (
	"encoding/base64"
	"encoding/binary"
	"encoding/json"
	"errors"
	"hash/crc32"
	"maps"
	"math"
	"slices"
)

// Mark says, for each owner's log, up to which position a connection was given everything that was for it. It travels
// through the connection's own queue, so whoever has read it has read all that.
type Mark map[string]int64

// mostMark bounds a mark as clients see it.
const mostMark = 1024

// markVersion is the first byte; one that is written otherwise will have another.
const markVersion = 1

var errNoMark = errors.New("no mark that a gateway gave")

// String is the mark as clients see it. It ends with a checksum, against accidents: a mark grants nothing.
func (m Mark) String() string {
	b := []byte{markVersion}
	for _, owner := range slices.Sorted(maps.Keys(m)) {
		b = append(b, byte(len(owner)))
		b = append(b, owner...)
		b = binary.AppendUvarint(b, uint64(max(0, m[owner])))
	}
	return base64.RawURLEncoding.EncodeToString(binary.BigEndian.AppendUint32(b, crc32.ChecksumIEEE(b)))
}

// ParseMark reads what a client brings back.
func ParseMark(text string) (Mark, error) {
	if len(text) > mostMark {
		return nil, errNoMark
	}
	b, err := base64.RawURLEncoding.Strict().DecodeString(text)
	if err != nil || len(b) < 5 || b[0] != markVersion {
		return nil, errNoMark
	}
	b, sum := b[:len(b)-4], b[len(b)-4:]
	if crc32.ChecksumIEEE(b) != binary.BigEndian.Uint32(sum) {
		return nil, errNoMark
	}
	m := Mark{}
	for b = b[1:]; len(b) > 0; {
		n := int(b[0])
		if len(b) < 1+n {
			return nil, errNoMark
		}
		owner := string(b[1 : 1+n])
		position, size := binary.Uvarint(b[1+n:])
		if size <= 0 || position > math.MaxInt64 {
			return nil, errNoMark
		}
		m[owner] = int64(position)
		b = b[1+n+size:]
	}
	return m, nil
}

// frame tells the client its mark.
func (m Mark) frame() []byte {
	frame, _ := json.Marshal(struct {
		At string `json:"at"`
	}{m.String()})
	return frame
}

// ready tells the client its first mark, that all its rooms are open, and which session it comes back to.
func (m Mark) ready(session string) []byte {
	frame, _ := json.Marshal(struct {
		Ready   bool   `json:"ready"`
		At      string `json:"at"`
		Session string `json:"session"`
	}{true, m.String(), session})
	return frame
}
