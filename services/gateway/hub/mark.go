package hub

import (
	"encoding/base64"
	"encoding/binary"
	"errors"
	"hash/crc32"
	"hash/fnv"
	"maps"
	"math"
	"slices"

	"github.com/edumatrix/interlinked/shared/wirejson"
)

// Mark holds, for each owner's log, up to which position a connection was given everything that was for it. It travels
// through the connection's own queue, so whoever has read it has read all that.
type Mark map[string]Point

// Point is a place in one log.
type Point struct {
	Position int64
	// Incarnation is that of the log (see IncarnationOf): a log of another incarnation may have lost what the client has.
	Incarnation uint32
	// Partial reports whether events up to the position were left out, and the client was cut off before it was told of
	// which rooms: it was given the mark while it got what it missed.
	Partial bool
}

// IncarnationOf is what marks hold of a log's incarnation; 0 where the log has none.
func IncarnationOf(incarnation string) uint32 {
	if incarnation == "" {
		return 0
	}
	h := fnv.New32a()
	_, _ = h.Write([]byte(incarnation)) // never fails
	return max(1, h.Sum32())
}

// Holds reports whether a log of an incarnation has everything that the client has. Marks of releases whose logs had
// none are believed.
func (p Point) Holds(incarnation uint32) bool {
	return p.Incarnation == 0 || p.Incarnation == incarnation
}

// maxMark bounds a mark as clients see it.
const maxMark = 1024

// The first byte of a mark is its version. Version 1 had positions alone; it is still read.
const (
	markVersion1 = 1
	markVersion  = 2
)

var errNoMark = errors.New("not a mark that a gateway gave")

// String is the mark as clients see it. It ends with a checksum, against accidents: a mark grants nothing.
func (m Mark) String() string {
	b := []byte{markVersion}
	for _, owner := range slices.Sorted(maps.Keys(m)) {
		p := m[owner]
		b = append(b, byte(len(owner)))
		b = append(b, owner...)
		b = binary.AppendUvarint(b, uint64(max(0, p.Position)))
		b = binary.BigEndian.AppendUint32(b, p.Incarnation)
		partial := byte(0)
		if p.Partial {
			partial = 1
		}
		b = append(b, partial)
	}
	return base64.RawURLEncoding.EncodeToString(binary.BigEndian.AppendUint32(b, crc32.ChecksumIEEE(b)))
}

// ParseMark reads what a client brings back.
func ParseMark(text string) (Mark, error) {
	if len(text) > maxMark {
		return nil, errNoMark
	}
	b, err := base64.RawURLEncoding.Strict().DecodeString(text)
	if err != nil || len(b) < 5 || b[0] != markVersion1 && b[0] != markVersion {
		return nil, errNoMark
	}
	version := b[0]
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
		p := Point{Position: int64(position)}
		if b = b[1+n+size:]; version == markVersion {
			if len(b) < 5 || b[4] > 1 {
				return nil, errNoMark
			}
			p.Incarnation, p.Partial = binary.BigEndian.Uint32(b), b[4] == 1
			b = b[5:]
		}
		m[owner] = p
	}
	return m, nil
}

// markFrame is the frame that gives a client its mark.
func markFrame(mark string) []byte {
	frame, _ := wirejson.Encode(struct {
		At string `json:"at"`
	}{mark})
	return frame
}

// readyFrame gives a client its first mark and says that all its rooms are open, and which session it comes back to.
func readyFrame(mark, session string) []byte {
	frame, _ := wirejson.Encode(struct {
		Ready   bool   `json:"ready"`
		At      string `json:"at"`
		Session string `json:"session"`
	}{true, mark, session})
	return frame
}

// sharedMark is a mark that many connections get: it is encoded once, when the first of them is to get it. One goroutine
// uses it.
type sharedMark struct {
	hub       *Hub
	positions []int64 // by number of the log
	encoded   string
	framed    []byte
}

func (h *Hub) newMark(positions []int64) *sharedMark {
	return &sharedMark{hub: h, positions: positions}
}

func (m *sharedMark) text() string {
	if m.encoded == "" {
		mark := Mark{}
		for log, owner := range m.hub.logs {
			mark[owner] = Point{Position: m.positions[log], Incarnation: m.hub.views[owner].incarnation.Load()}
		}
		m.encoded = mark.String()
	}
	return m.encoded
}

func (m *sharedMark) frame() []byte {
	if m.framed == nil {
		m.framed = markFrame(m.text())
	}
	return m.framed
}
