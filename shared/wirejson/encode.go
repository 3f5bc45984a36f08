package wirejson

import (
	"bytes"
	"encoding/json"
)

// Encode encodes a value that contains no Protobuf message, such as a text or an error. Unlike json.Marshal, Encode
// does not escape <, > and &, so that these characters have the same form in all messages.
func Encode(v any) ([]byte, error) {
	var b bytes.Buffer
	e := json.NewEncoder(&b)
	e.SetEscapeHTML(false)
	if err := e.Encode(v); err != nil {
		return nil, err
	}
	return bytes.TrimSuffix(b.Bytes(), []byte("\n")), nil
}
