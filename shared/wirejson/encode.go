package wirejson

import (
	"bytes"
	"encoding/json"
)

// Encode writes a value that has only plain fields and valid JSON in it, such as a frame around data that Marshal wrote.
// Unlike json.Marshal it does not escape <, > and &: all that clients get writes texts alike.
func Encode(v any) ([]byte, error) {
	var b bytes.Buffer
	e := json.NewEncoder(&b)
	e.SetEscapeHTML(false)
	if err := e.Encode(v); err != nil {
		return nil, err
	}
	return bytes.TrimSuffix(b.Bytes(), []byte("\n")), nil
}
