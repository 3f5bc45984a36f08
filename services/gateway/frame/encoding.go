// Package frame encodes the frames that the gateway sends, and decodes those that clients send, in every encoding of
// the client protocol. The frames are declared in proto/edumatrix/gateway/v1.
package frame

import "slices"

// Encoding is the encoding of the frames of one connection.
type Encoding int

const (
	// JSON is the subprotocol edumatrix.v1.json. It is also used if a client offers no subprotocol.
	JSON Encoding = iota
	// Protobuf is the subprotocol edumatrix.v1.proto.
	Protobuf
)

// Encodings is the number of encodings.
const Encodings = 2

// Protocol is the version of the client protocol.
const Protocol = 1

var subprotocols = [Encodings]string{JSON: "edumatrix.v1.json", Protobuf: "edumatrix.v1.proto"}

// Subprotocol returns the WebSocket subprotocol of an encoding.
func (e Encoding) Subprotocol() string { return subprotocols[e] }

// Choose returns the encoding of the first offered subprotocol that this gateway supports, or JSON if there is none. It
// returns false if the client offers subprotocols but the gateway supports none of them.
func Choose(offered []string) (Encoding, bool) {
	for _, name := range offered {
		if i := slices.Index(subprotocols[:], name); i >= 0 {
			return Encoding(i), true
		}
	}
	return JSON, len(offered) == 0
}
