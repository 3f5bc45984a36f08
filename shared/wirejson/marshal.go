// Package wirejson is the JSON encoding of all interfaces to clients. Names are those of the .proto files (snake_case),
// whole numbers are numbers, times are RFC 3339 in UTC, durations are seconds, enums are short lower-case words
// ("direct" for KIND_DIRECT), and bytes are base64.
//
// Scalars, lists and maps are written even if they are empty, so that a client need not check whether a field exists.
// Marshal leaves out only these fields: messages, times and durations that are not set, enums with the number 0, and
// unset fields that are optional or in a oneof.
package wirejson

import (
	"bytes"
	"encoding/base64"
	"fmt"
	"math"
	"slices"
	"strconv"
	"strings"
	"time"
	"unicode/utf8"

	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/reflect/protoreflect"
)

type form int

const (
	object form = iota
	timestamp
	duration
)

// shape returns the encoding of a message type.
func shape(d protoreflect.MessageDescriptor) form {
	switch d.FullName() {
	case "google.protobuf.Timestamp":
		return timestamp
	case "google.protobuf.Duration":
		return duration
	default:
		return object
	}
}

// maxDuration is the limit of google.protobuf.Duration, in seconds.
const maxDuration = 315_576_000_000

// Marshal encodes a message. It fails for values without a form in JSON: text that is not UTF-8, times outside the
// years 1 to 9999, invalid durations (such as one above maxDuration), and numbers that are not finite.
func Marshal(m proto.Message) ([]byte, error) {
	return appendMessage(make([]byte, 0, 256), m.ProtoReflect())
}

func appendMessage(b []byte, m protoreflect.Message) ([]byte, error) {
	switch shape(m.Descriptor()) {
	case timestamp:
		return appendTime(b, m)
	case duration:
		return appendDuration(b, m)
	}
	b = append(b, '{')
	first := true
	fields := m.Descriptor().Fields()
	for i := range fields.Len() {
		f := fields.Get(i)
		if absent(m, f) {
			continue
		}
		if !first {
			b = append(b, ',')
		}
		first = false
		b = append(append(append(b, '"'), f.Name()...), '"', ':')
		var err error
		if b, err = appendField(b, f, m.Get(f)); err != nil {
			return nil, fmt.Errorf("%s: %w", f.FullName(), err)
		}
	}
	return append(b, '}'), nil
}

func absent(m protoreflect.Message, f protoreflect.FieldDescriptor) bool {
	if f.IsList() || f.IsMap() {
		return false
	}
	if f.Kind() == protoreflect.EnumKind {
		return m.Get(f).Enum() == 0
	}
	return f.HasPresence() && !m.Has(f)
}

// pair returns the fields of a Timestamp or Duration. The message may have any Go type, such as dynamicpb.Message.
func pair(m protoreflect.Message) (seconds, nanos int64) {
	fields := m.Descriptor().Fields()
	return m.Get(fields.ByNumber(1)).Int(), m.Get(fields.ByNumber(2)).Int()
}

func appendTime(b []byte, m protoreflect.Message) ([]byte, error) {
	seconds, nanos := pair(m)
	at := time.Unix(seconds, nanos).UTC()
	if nanos < 0 || nanos > 999_999_999 || at.Year() < 1 || at.Year() > 9999 {
		return nil, fmt.Errorf("%d s and %d ns are not a time in the years 1 to 9999", seconds, nanos)
	}
	b = append(b, '"')
	b = at.AppendFormat(b, time.RFC3339Nano)
	return append(b, '"'), nil
}

func appendDuration(b []byte, m protoreflect.Message) ([]byte, error) {
	seconds, nanos := pair(m)
	if max(seconds, -seconds) > maxDuration || max(nanos, -nanos) > 999_999_999 ||
		seconds > 0 && nanos < 0 || seconds < 0 && nanos > 0 {
		return nil, fmt.Errorf("%d s and %d ns are not a duration", seconds, nanos)
	}
	if seconds < 0 || nanos < 0 {
		b, seconds, nanos = append(b, '-'), -seconds, -nanos
	}
	b = strconv.AppendInt(b, seconds, 10)
	if nanos == 0 {
		return b, nil
	}
	from := len(b)
	b = strconv.AppendInt(b, 1_000_000_000+nanos, 10)
	b[from] = '.'
	return bytes.TrimRight(b, "0"), nil
}

func appendField(b []byte, f protoreflect.FieldDescriptor, v protoreflect.Value) (_ []byte, err error) {
	switch {
	case f.IsList():
		b = append(b, '[')
		for i := range v.List().Len() {
			if i > 0 {
				b = append(b, ',')
			}
			if b, err = appendValue(b, f, v.List().Get(i)); err != nil {
				return nil, err
			}
		}
		return append(b, ']'), nil
	case f.IsMap():
		return appendMap(b, f, v.Map())
	default:
		return appendValue(b, f, v)
	}
}

// appendMap writes the keys in order, so that equal messages have equal texts.
func appendMap(b []byte, f protoreflect.FieldDescriptor, m protoreflect.Map) (_ []byte, err error) {
	keys := make([]protoreflect.MapKey, 0, m.Len())
	m.Range(func(k protoreflect.MapKey, _ protoreflect.Value) bool {
		keys = append(keys, k)
		return true
	})
	slices.SortFunc(keys, func(x, y protoreflect.MapKey) int { return strings.Compare(x.String(), y.String()) })
	b = append(b, '{')
	for i, k := range keys {
		if i > 0 {
			b = append(b, ',')
		}
		if b, err = appendString(b, k.String()); err != nil {
			return nil, err
		}
		if b, err = appendValue(append(b, ':'), f.MapValue(), m.Get(k)); err != nil {
			return nil, err
		}
	}
	return append(b, '}'), nil
}

func appendValue(b []byte, f protoreflect.FieldDescriptor, v protoreflect.Value) ([]byte, error) {
	switch f.Kind() {
	case protoreflect.StringKind:
		return appendString(b, v.String())
	case protoreflect.BoolKind:
		return strconv.AppendBool(b, v.Bool()), nil
	case protoreflect.EnumKind:
		return appendEnum(b, f.Enum(), v.Enum()), nil
	case protoreflect.MessageKind, protoreflect.GroupKind:
		return appendMessage(b, v.Message())
	case protoreflect.BytesKind:
		b = append(b, '"')
		b = base64.StdEncoding.AppendEncode(b, v.Bytes())
		return append(b, '"'), nil
	case protoreflect.FloatKind, protoreflect.DoubleKind:
		if math.IsNaN(v.Float()) || math.IsInf(v.Float(), 0) {
			return nil, fmt.Errorf("%v has no form in JSON", v.Float())
		}
		bits := 64
		if f.Kind() == protoreflect.FloatKind {
			bits = 32
		}
		return strconv.AppendFloat(b, v.Float(), 'g', -1, bits), nil
	case protoreflect.Uint32Kind, protoreflect.Uint64Kind, protoreflect.Fixed32Kind, protoreflect.Fixed64Kind:
		return strconv.AppendUint(b, v.Uint(), 10), nil
	default:
		return strconv.AppendInt(b, v.Int(), 10), nil
	}
}

const hex = "0123456789abcdef"

func appendString(b []byte, s string) ([]byte, error) {
	if !utf8.ValidString(s) {
		return nil, fmt.Errorf("text is not UTF-8")
	}
	b = append(b, '"')
	from := 0
	for i := range len(s) {
		c := s[i]
		if c >= ' ' && c != '"' && c != '\\' {
			continue
		}
		b = append(b, s[from:i]...)
		from = i + 1
		switch c {
		case '"', '\\':
			b = append(b, '\\', c)
		case '\n':
			b = append(b, '\\', 'n')
		case '\r':
			b = append(b, '\\', 'r')
		case '\t':
			b = append(b, '\\', 't')
		default:
			b = append(b, '\\', 'u', '0', '0', hex[c>>4], hex[c&15])
		}
	}
	return append(append(b, s[from:]...), '"'), nil
}

// appendEnum writes the value of an enum in lower case, without the prefix that enumPrefix returns: "direct" for
// KIND_DIRECT.
func appendEnum(b []byte, e protoreflect.EnumDescriptor, n protoreflect.EnumNumber) []byte {
	b = append(b, '"')
	if v := e.Values().ByNumber(n); v != nil {
		b = appendWord(b, v, enumPrefix(e))
	} else {
		b = strconv.AppendInt(b, int64(n), 10) // a value of a later release
	}
	return append(b, '"')
}

func appendWord(b []byte, v protoreflect.EnumValueDescriptor, prefix string) []byte {
	name := strings.TrimPrefix(string(v.Name()), prefix)
	for i := range len(name) {
		b = append(b, lower(name[i]))
	}
	return b
}

func lower(c byte) byte {
	if 'A' <= c && c <= 'Z' {
		c += 'a' - 'A'
	}
	return c
}

// enumPrefix returns "KIND_" if the enum's zero value is KIND_UNSPECIFIED.
func enumPrefix(e protoreflect.EnumDescriptor) string {
	if zero := e.Values().ByNumber(0); zero != nil {
		if prefix, ok := strings.CutSuffix(string(zero.Name()), "UNSPECIFIED"); ok {
			return prefix
		}
	}
	return ""
}
