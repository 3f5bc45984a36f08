// Package wirejson is the one JSON of all surfaces: names as proto has them (snake_case), whole numbers as numbers, times
// as RFC 3339, enums as short lower-case words ("direct" for KIND_DIRECT), bytes as base64.
//
// Written are all scalars and all lists, also empty ones, so that a client need not ask whether a field is there; left
// out are messages and times that are not set, and enums without a value.
package wirejson

import (
	"encoding/base64"
	"fmt"
	"math"
	"strconv"
	"strings"
	"time"
	"unicode/utf8"

	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/reflect/protoreflect"
	"google.golang.org/protobuf/types/known/durationpb"
	"google.golang.org/protobuf/types/known/timestamppb"
)

const (
	timestamp = protoreflect.FullName("google.protobuf.Timestamp")
	duration  = protoreflect.FullName("google.protobuf.Duration")
)

// Marshal writes a message.
func Marshal(m proto.Message) ([]byte, error) {
	return appendMessage(make([]byte, 0, 256), m.ProtoReflect())
}

func appendMessage(b []byte, m protoreflect.Message) ([]byte, error) {
	switch m.Descriptor().FullName() {
	case timestamp:
		return appendTime(b, m)
	case duration:
		d := m.Interface().(*durationpb.Duration)
		return strconv.AppendFloat(b, d.AsDuration().Seconds(), 'f', -1, 64), nil
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

func appendTime(b []byte, m protoreflect.Message) ([]byte, error) {
	ts := m.Interface().(*timestamppb.Timestamp)
	if err := ts.CheckValid(); err != nil {
		return nil, err
	}
	b = append(b, '"')
	b = ts.AsTime().AppendFormat(b, time.RFC3339Nano)
	return append(b, '"'), nil
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

func appendMap(b []byte, f protoreflect.FieldDescriptor, m protoreflect.Map) (_ []byte, err error) {
	b = append(b, '{')
	first := true
	m.Range(func(k protoreflect.MapKey, v protoreflect.Value) bool {
		if !first {
			b = append(b, ',')
		}
		first = false
		if b, err = appendString(b, k.String()); err != nil {
			return false
		}
		b, err = appendValue(append(b, ':'), f.MapValue(), v)
		return err == nil
	})
	if err != nil {
		return nil, err
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
		return appendString(b, enumWord(f.Enum(), v.Enum()))
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
		return strconv.AppendFloat(b, v.Float(), 'g', -1, 64), nil
	case protoreflect.Uint32Kind, protoreflect.Uint64Kind, protoreflect.Fixed32Kind, protoreflect.Fixed64Kind:
		return strconv.AppendUint(b, v.Uint(), 10), nil
	default:
		return strconv.AppendInt(b, v.Int(), 10), nil
	}
}

const hex = "0123456789abcdef"

func appendString(b []byte, s string) ([]byte, error) {
	if !utf8.ValidString(s) {
		return nil, fmt.Errorf("text is no UTF-8")
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

// enumWord is an enum's value without the prefix that all of its values have: "direct" for KIND_DIRECT.
func enumWord(d protoreflect.EnumDescriptor, n protoreflect.EnumNumber) string {
	v := d.Values().ByNumber(n)
	if v == nil {
		return strconv.Itoa(int(n)) // of a later release
	}
	return strings.ToLower(strings.TrimPrefix(string(v.Name()), enumPrefix(d)))
}

func enumPrefix(d protoreflect.EnumDescriptor) string {
	if zero := d.Values().ByNumber(0); zero != nil {
		if prefix, ok := strings.CutSuffix(string(zero.Name()), "UNSPECIFIED"); ok {
			return prefix
		}
	}
	return ""
}
