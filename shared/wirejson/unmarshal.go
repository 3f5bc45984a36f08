package wirejson

import (
	"bytes"
	"encoding/base64"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"math"
	"strconv"
	"strings"
	"time"
	"unicode/utf8"

	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/reflect/protoreflect"
	"google.golang.org/protobuf/types/known/durationpb"
	"google.golang.org/protobuf/types/known/timestamppb"

	"github.com/edumatrix/interlinked/proto/refusal"
)

// deepest is how far values may be nested.
const deepest = 32

// Unmarshal reads one JSON object into an empty message, and takes nothing that the message does not declare. Null is a
// field that is not set. Its errors are refusals: "malformed" for what is no JSON object, "invalid_field" with the name
// of the field for all else. Text with U+0000 is refused, because it cannot be stored.
func Unmarshal(data []byte, m proto.Message) error {
	if !utf8.Valid(data) {
		return refusal.New(refusal.Malformed, "the data is no UTF-8")
	}
	d := decoder{json.NewDecoder(bytes.NewReader(data))}
	d.UseNumber()
	if err := d.object(m.ProtoReflect(), "", 0); err != nil {
		if r, ok := refusal.Of(err); ok {
			return r
		}
		return refusal.New(refusal.Malformed, "the data is no JSON object: %s", plain(err))
	}
	if _, err := d.Token(); !errors.Is(err, io.EOF) {
		return refusal.New(refusal.Malformed, "something follows the JSON object")
	}
	return nil
}

func plain(err error) string {
	if errors.Is(err, io.EOF) || errors.Is(err, io.ErrUnexpectedEOF) {
		return "it ends too early"
	}
	return err.Error()
}

type decoder struct{ *json.Decoder }

func invalid(path, format string, args ...any) error {
	return refusal.New(refusal.InvalidField, "%s %s", path, fmt.Sprintf(format, args...))
}

func within(path, name string) string {
	if path == "" {
		return name
	}
	return path + "." + name
}

// object reads a message, whose opening brace has not been read.
func (d decoder) object(m protoreflect.Message, path string, depth int) error {
	token, err := d.Token()
	if err != nil {
		return err
	}
	return d.message(m, token, path, depth)
}

func (d decoder) message(m protoreflect.Message, token json.Token, path string, depth int) error {
	switch m.Descriptor().FullName() {
	case timestamp:
		return readTime(m, token, path)
	case duration:
		return readDuration(m, token, path)
	}
	if token != json.Delim('{') {
		if path == "" {
			return refusal.New(refusal.Malformed, "the data is no JSON object, but %s", kindOf(token))
		}
		return invalid(path, "has to be an object, not %s", kindOf(token))
	}
	if depth > deepest {
		return invalid(path, "is nested deeper than %d", deepest)
	}
	seen := map[protoreflect.FieldNumber]bool{}
	fields := m.Descriptor().Fields()
	for {
		key, err := d.Token()
		if err != nil {
			return err
		}
		if key == json.Delim('}') {
			return nil
		}
		name, _ := key.(string)
		f := fields.ByName(protoreflect.Name(name))
		if f == nil {
			return invalid(within(path, name), "is unknown here%s", nearest(fields, name))
		}
		if seen[f.Number()] {
			return invalid(within(path, name), "is there twice")
		}
		seen[f.Number()] = true
		if err := d.field(m, f, within(path, name), depth+1); err != nil {
			return err
		}
	}
}

func nearest(fields protoreflect.FieldDescriptors, name string) string {
	var names []string
	for i := range fields.Len() {
		known := string(fields.Get(i).Name())
		if strings.EqualFold(strings.ReplaceAll(name, "_", ""), strings.ReplaceAll(known, "_", "")) {
			return fmt.Sprintf("; meant is %q", known)
		}
		names = append(names, known)
	}
	if len(names) == 0 {
		return ": there are no fields"
	}
	return "; known are " + strings.Join(names, ", ")
}

func (d decoder) field(m protoreflect.Message, f protoreflect.FieldDescriptor, path string, depth int) error {
	token, err := d.Token()
	if err != nil {
		return err
	}
	if token == nil {
		return nil
	}
	switch {
	case f.IsMap():
		return d.mapping(m.Mutable(f).Map(), f, token, path, depth)
	case f.IsList():
		return d.list(m.Mutable(f).List(), f, token, path, depth)
	case f.Message() != nil:
		return d.message(m.Mutable(f).Message(), token, path, depth)
	default:
		v, err := scalar(f, token, path)
		if err != nil {
			return err
		}
		m.Set(f, v)
		return nil
	}
}

func (d decoder) list(l protoreflect.List, f protoreflect.FieldDescriptor, token json.Token, path string, depth int) error {
	if token != json.Delim('[') {
		return invalid(path, "has to be a list, not %s", kindOf(token))
	}
	for i := 0; ; i++ {
		token, err := d.Token()
		if err != nil {
			return err
		}
		if token == json.Delim(']') {
			return nil
		}
		at := path + "[" + strconv.Itoa(i) + "]"
		if f.Message() != nil {
			if err := d.message(l.AppendMutable().Message(), token, at, depth+1); err != nil {
				return err
			}
			continue
		}
		v, err := scalar(f, token, at)
		if err != nil {
			return err
		}
		l.Append(v)
	}
}

func (d decoder) mapping(all protoreflect.Map, f protoreflect.FieldDescriptor, token json.Token, path string, depth int) error {
	if token != json.Delim('{') {
		return invalid(path, "has to be an object, not %s", kindOf(token))
	}
	for {
		key, err := d.Token()
		if err != nil {
			return err
		}
		if key == json.Delim('}') {
			return nil
		}
		name, _ := key.(string)
		at := within(path, name)
		var k json.Token = name
		if kind := f.MapKey().Kind(); kind != protoreflect.StringKind {
			k = json.Number(name)
			if kind == protoreflect.BoolKind {
				k = name == "true"
			}
		}
		mapKey, err := scalar(f.MapKey(), k, at)
		if err != nil {
			return err
		}
		if token, err = d.Token(); err != nil {
			return err
		}
		v := all.NewValue()
		if f.MapValue().Message() != nil {
			err = d.message(v.Message(), token, at, depth+1)
		} else {
			v, err = scalar(f.MapValue(), token, at)
		}
		if err != nil {
			return err
		}
		all.Set(mapKey.MapKey(), v)
	}
}

func scalar(f protoreflect.FieldDescriptor, token json.Token, path string) (protoreflect.Value, error) {
	var none protoreflect.Value
	switch f.Kind() {
	case protoreflect.StringKind:
		s, ok := token.(string)
		if !ok {
			return none, invalid(path, "has to be text, not %s", kindOf(token))
		}
		if strings.ContainsRune(s, 0) {
			return none, invalid(path, "holds the character U+0000, which cannot be stored")
		}
		return protoreflect.ValueOfString(s), nil
	case protoreflect.BoolKind:
		b, ok := token.(bool)
		if !ok {
			return none, invalid(path, "has to be true or false, not %s", kindOf(token))
		}
		return protoreflect.ValueOfBool(b), nil
	case protoreflect.BytesKind:
		s, ok := token.(string)
		raw, err := base64.StdEncoding.DecodeString(s)
		if !ok || err != nil {
			return none, invalid(path, "has to be base64")
		}
		return protoreflect.ValueOfBytes(raw), nil
	case protoreflect.EnumKind:
		return enum(f.Enum(), token, path)
	default:
		return number(f.Kind(), token, path)
	}
}

func number(kind protoreflect.Kind, token json.Token, path string) (protoreflect.Value, error) {
	var none protoreflect.Value
	n, ok := token.(json.Number)
	if !ok {
		return none, invalid(path, "has to be a number, not %s", kindOf(token))
	}
	var v protoreflect.Value
	var err error
	switch kind {
	case protoreflect.Int32Kind, protoreflect.Sint32Kind, protoreflect.Sfixed32Kind:
		var i int64
		i, err = strconv.ParseInt(n.String(), 10, 32)
		v = protoreflect.ValueOfInt32(int32(i))
	case protoreflect.Int64Kind, protoreflect.Sint64Kind, protoreflect.Sfixed64Kind:
		var i int64
		i, err = strconv.ParseInt(n.String(), 10, 64)
		v = protoreflect.ValueOfInt64(i)
	case protoreflect.Uint32Kind, protoreflect.Fixed32Kind:
		var u uint64
		u, err = strconv.ParseUint(n.String(), 10, 32)
		v = protoreflect.ValueOfUint32(uint32(u))
	case protoreflect.Uint64Kind, protoreflect.Fixed64Kind:
		var u uint64
		u, err = strconv.ParseUint(n.String(), 10, 64)
		v = protoreflect.ValueOfUint64(u)
	case protoreflect.FloatKind:
		var x float64
		x, err = strconv.ParseFloat(n.String(), 32)
		v = protoreflect.ValueOfFloat32(float32(x))
	default:
		var x float64
		x, err = strconv.ParseFloat(n.String(), 64)
		v = protoreflect.ValueOfFloat64(x)
	}
	if err != nil {
		return none, invalid(path, "cannot be %s: a %s is wanted", n, kind)
	}
	return v, nil
}

func enum(d protoreflect.EnumDescriptor, token json.Token, path string) (protoreflect.Value, error) {
	word, ok := token.(string)
	var words []string
	for i := range d.Values().Len() {
		n := d.Values().Get(i).Number()
		if n == 0 {
			continue
		}
		known := enumWord(d, n)
		if ok && word == known {
			return protoreflect.ValueOfEnum(n), nil
		}
		words = append(words, known)
	}
	return protoreflect.Value{}, invalid(path, "has to be one of %s", strings.Join(words, ", "))
}

func readTime(m protoreflect.Message, token json.Token, path string) error {
	s, ok := token.(string)
	at, err := time.Parse(time.RFC3339Nano, s)
	if !ok || err != nil {
		return invalid(path, "has to be an RFC 3339 time, such as 2026-01-02T15:04:05Z")
	}
	value := timestamppb.New(at)
	if value.CheckValid() != nil {
		return invalid(path, "is outside the years 1 to 9999")
	}
	proto.Merge(m.Interface(), value)
	return nil
}

func readDuration(m protoreflect.Message, token json.Token, path string) error {
	n, ok := token.(json.Number)
	seconds, err := strconv.ParseFloat(n.String(), 64)
	if !ok || err != nil || math.Abs(seconds) > 1e9 {
		return invalid(path, "has to be a number of seconds")
	}
	proto.Merge(m.Interface(), durationpb.New(time.Duration(math.Round(seconds*1e9))))
	return nil
}

func kindOf(token json.Token) string {
	switch t := token.(type) {
	case json.Delim:
		if t == '{' {
			return "an object"
		}
		return "a list"
	case string:
		return "text"
	case json.Number:
		return "a number"
	case bool:
		return "true or false"
	default:
		return "null"
	}
}
