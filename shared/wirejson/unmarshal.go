package wirejson

import (
	"bytes"
	"encoding/base64"
	"math"
	"strconv"
	"strings"
	"time"
	"unicode/utf8"

	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/reflect/protoreflect"

	"github.com/edumatrix/interlinked/proto/refusal"
)

// maxNesting is the maximum nesting of decoded values; the method skip accepts twice as many levels.
const maxNesting = 32

// Unmarshal decodes one JSON object into an empty message, and accepts only what the message declares: no unknown
// field, no field that occurs twice, no number for a text or text for a number, no word that an enum does not have.
// Null means that a field is not set. A whole number may be written 5.0, but not 5.5 or "5". A text with U+0000 is
// refused, because it cannot be stored.
//
// Its errors are refusals: "malformed" for data that is not a JSON object, and "invalid_field" with the path of the
// field otherwise. After an error the message must not be used.
func Unmarshal(data []byte, m proto.Message) error { return unmarshal(data, m, false) }

// UnmarshalKnown decodes like Unmarshal, but ignores the fields that the message does not declare.
func UnmarshalKnown(data []byte, m proto.Message) error { return unmarshal(data, m, true) }

func unmarshal(data []byte, m proto.Message, known bool) error {
	if !utf8.Valid(data) {
		return refusal.New(refusal.Malformed, "the data is not UTF-8")
	}
	d := decoder{scanner{data: data}, known}
	if d.next() != '{' && shape(m.ProtoReflect().Descriptor()) == object {
		if kind := d.kind(); kind != "" {
			return refusal.New(refusal.Malformed, "the data is not a JSON object, but %s", kind)
		}
		return refused(d.unexpected())
	}
	if err := d.message(m.ProtoReflect(), 0); err != nil {
		return refused(err)
	}
	if d.next() != 0 || d.at < len(d.data) {
		return refusal.New(refusal.Malformed, "something follows the JSON object")
	}
	return nil
}

type decoder struct {
	scanner
	known bool // whether fields that the message does not declare are ignored; otherwise they are refused
}

func (d *decoder) message(m protoreflect.Message, depth int) error {
	switch shape(m.Descriptor()) {
	case timestamp:
		return d.time(m)
	case duration:
		return d.duration(m)
	}
	if depth > maxNesting {
		return invalid("is nested deeper than %d", maxNesting)
	}
	if err := d.wants('{', "an object"); err != nil {
		return err
	}
	fields := m.Descriptor().Fields()
	var few [64]bool
	seen := few[:]
	if fields.Len() > len(few) {
		seen = make([]bool, fields.Len())
	}
	d.at++
	for i := -1; ; {
		more, err := d.more(i < 0, '}')
		if !more || err != nil {
			return err
		}
		name, err := d.text()
		if err != nil {
			return err
		}
		at := find(fields, name, i+1)
		if at < 0 && d.known {
			if err = d.take(':'); err == nil {
				err = d.skip(depth)
			}
			if err != nil {
				return err
			}
			i = max(i, 0)
			continue
		}
		if i = at; i < 0 {
			return in(quoted(string(name)), invalid("is unknown here%s", suggest(fields, string(name))))
		}
		f := fields.Get(i)
		if seen[i] {
			return in(string(f.Name()), invalid("is there twice"))
		}
		seen[i] = true
		if err := d.take(':'); err != nil {
			return err
		}
		if err := d.field(m, f, depth+1); err != nil {
			return in(string(f.Name()), err)
		}
	}
}

// find returns the index of a field, or -1. It first tries the likely index, because clients usually write fields in
// the order of their declaration.
func find(fields protoreflect.FieldDescriptors, name []byte, likely int) int {
	n := fields.Len()
	for i := range n {
		if at := (likely + i) % n; string(name) == string(fields.Get(at).Name()) {
			return at
		}
	}
	return -1
}

// wants checks that the next value begins with the character c. Otherwise its error names the wanted kind of value.
func (d *decoder) wants(c byte, what string) error {
	if d.next() == c {
		return nil
	}
	kind := d.kind()
	if kind == "" {
		return d.unexpected()
	}
	return invalid("has to be %s, not %s", what, kind)
}

func (d *decoder) field(m protoreflect.Message, f protoreflect.FieldDescriptor, depth int) error {
	if d.next() == 'n' {
		return d.word("null")
	}
	if o := f.ContainingOneof(); o != nil && !o.IsSynthetic() {
		if other := m.WhichOneof(o); other != nil {
			return invalid("and %s exclude each other", other.Name())
		}
	}
	switch {
	case f.IsMap():
		return d.mapping(m.Mutable(f).Map(), f, depth)
	case f.IsList():
		return d.list(m.Mutable(f).List(), f, depth)
	case f.Message() != nil:
		return d.message(m.Mutable(f).Message(), depth)
	default:
		v, err := d.scalar(f)
		if err == nil {
			m.Set(f, v)
		}
		return err
	}
}

func (d *decoder) list(l protoreflect.List, f protoreflect.FieldDescriptor, depth int) error {
	if err := d.wants('[', "a list"); err != nil {
		return err
	}
	d.at++
	for i := 0; ; i++ {
		more, err := d.more(i == 0, ']')
		if !more || err != nil {
			return err
		}
		if f.Message() != nil {
			err = d.message(l.AppendMutable().Message(), depth+1)
		} else {
			var v protoreflect.Value
			if v, err = d.scalar(f); err == nil {
				l.Append(v)
			}
		}
		if err != nil {
			return inList(i, err)
		}
	}
}

func (d *decoder) mapping(all protoreflect.Map, f protoreflect.FieldDescriptor, depth int) error {
	if err := d.wants('{', "an object"); err != nil {
		return err
	}
	d.at++
	for first := true; ; first = false {
		more, err := d.more(first, '}')
		if !more || err != nil {
			return err
		}
		name, err := d.text()
		if err != nil {
			return err
		}
		key, err := mapKey(f.MapKey(), name)
		if err != nil {
			return in(quoted(string(name)), err)
		}
		if all.Has(key) {
			return in(quoted(string(name)), invalid("is there twice"))
		}
		if err := d.take(':'); err != nil {
			return err
		}
		v := all.NewValue()
		if f.MapValue().Message() != nil {
			err = d.message(v.Message(), depth+1)
		} else {
			v, err = d.scalar(f.MapValue())
		}
		if err != nil {
			return in(quoted(string(name)), err)
		}
		all.Set(key, v)
	}
}

// mapKey decodes the key of a map, which is a text in JSON.
func mapKey(f protoreflect.FieldDescriptor, name []byte) (protoreflect.MapKey, error) {
	var v protoreflect.Value
	var err error
	switch f.Kind() {
	case protoreflect.StringKind:
		v, err = text(name)
	case protoreflect.BoolKind:
		if v = protoreflect.ValueOfBool(string(name) == "true"); !v.Bool() && string(name) != "false" {
			err = invalid(`has to be "true" or "false"`)
		}
	default:
		v, err = number(f.Kind(), name)
	}
	if err != nil {
		return protoreflect.MapKey{}, err
	}
	return v.MapKey(), nil
}

func text(s []byte) (protoreflect.Value, error) {
	if bytes.IndexByte(s, 0) >= 0 {
		return protoreflect.Value{}, invalid("contains the character U+0000, which cannot be stored")
	}
	return protoreflect.ValueOfString(string(s)), nil
}

func (d *decoder) scalar(f protoreflect.FieldDescriptor) (protoreflect.Value, error) {
	var none protoreflect.Value
	switch f.Kind() {
	case protoreflect.StringKind:
		s, err := d.quotedText("text")
		if err != nil {
			return none, err
		}
		return text(s)
	case protoreflect.BoolKind:
		switch d.next() {
		case 't':
			return protoreflect.ValueOfBool(true), d.word("true")
		case 'f':
			return protoreflect.ValueOfBool(false), d.word("false")
		}
		return none, d.wants('t', "true or false")
	case protoreflect.BytesKind:
		s, err := d.quotedText("base64")
		if err != nil {
			return none, err
		}
		raw, err := base64.StdEncoding.Strict().AppendDecode(nil, s)
		if err != nil {
			return none, invalid("has to be base64")
		}
		return protoreflect.ValueOfBytes(raw), nil
	case protoreflect.EnumKind:
		return d.enum(f.Enum())
	default:
		if c := d.next(); c != '-' && c-'0' > 9 {
			return none, d.wants('0', "a number")
		}
		n, err := d.number()
		if err != nil {
			return none, err
		}
		return number(f.Kind(), n)
	}
}

func (d *decoder) quotedText(what string) ([]byte, error) {
	if err := d.wants('"', what); err != nil {
		return nil, err
	}
	return d.scanner.text()
}

func number(kind protoreflect.Kind, n []byte) (protoreflect.Value, error) {
	switch kind {
	case protoreflect.Int32Kind, protoreflect.Sint32Kind, protoreflect.Sfixed32Kind:
		i, err := integer(n, math.MinInt32, math.MaxInt32)
		return protoreflect.ValueOfInt32(int32(i)), err
	case protoreflect.Int64Kind, protoreflect.Sint64Kind, protoreflect.Sfixed64Kind:
		i, err := integer(n, math.MinInt64, math.MaxInt64)
		return protoreflect.ValueOfInt64(i), err
	case protoreflect.Uint32Kind, protoreflect.Fixed32Kind:
		i, err := integer(n, 0, math.MaxUint32)
		return protoreflect.ValueOfUint32(uint32(i)), err
	case protoreflect.Uint64Kind, protoreflect.Fixed64Kind:
		u, err := strconv.ParseUint(string(n), 10, 64)
		if err != nil {
			var i int64
			if i, err = integer(n, 0, math.MaxInt64); err != nil {
				err = outside(n, "0", strconv.FormatUint(math.MaxUint64, 10))
			}
			u = uint64(i)
		}
		return protoreflect.ValueOfUint64(u), err
	case protoreflect.FloatKind:
		x, err := strconv.ParseFloat(string(n), 32)
		if err != nil {
			err = invalid("cannot be %s", quoted(string(n)))
		}
		return protoreflect.ValueOfFloat32(float32(x)), err
	default:
		x, err := strconv.ParseFloat(string(n), 64)
		if err != nil {
			err = invalid("cannot be %s", quoted(string(n)))
		}
		return protoreflect.ValueOfFloat64(x), err
	}
}

func integer(n []byte, low, high int64) (int64, error) {
	i, err := strconv.ParseInt(string(n), 10, 64)
	if err != nil && bytes.ContainsAny(n, ".eE") {
		// Some languages write every number as a floating-point number, which is not exact above 2^53.
		var x float64
		if x, err = strconv.ParseFloat(string(n), 64); x != math.Trunc(x) || math.Abs(x) > 1<<53 {
			err = strconv.ErrSyntax
		}
		i = int64(x)
	}
	if err != nil || i < low || i > high {
		return 0, outside(n, strconv.FormatInt(low, 10), strconv.FormatInt(high, 10))
	}
	return i, nil
}

func outside(n []byte, low, high string) error {
	return invalid("cannot be %s: a whole number from %s to %s is wanted", clipped(string(n)), low, high)
}

func (d *decoder) enum(e protoreflect.EnumDescriptor) (protoreflect.Value, error) {
	prefix, values := enumPrefix(e), e.Values()
	if d.next() == '"' {
		word, err := d.scanner.text()
		if err != nil {
			return protoreflect.Value{}, err
		}
		for i := range values.Len() {
			if v := values.Get(i); v.Number() != 0 && isWord(word, v, prefix) {
				return protoreflect.ValueOfEnum(v.Number()), nil
			}
		}
	}
	var words []string
	for i := range values.Len() {
		if v := values.Get(i); v.Number() != 0 {
			words = append(words, string(appendWord(nil, v, prefix)))
		}
	}
	return protoreflect.Value{}, invalid("has to be one of %s", strings.Join(words, ", "))
}

func isWord(word []byte, v protoreflect.EnumValueDescriptor, prefix string) bool {
	name := strings.TrimPrefix(string(v.Name()), prefix)
	if len(name) != len(word) {
		return false
	}
	for i := range word {
		if word[i] != lower(name[i]) {
			return false
		}
	}
	return true
}

func (d *decoder) time(m protoreflect.Message) error {
	s, err := d.quotedText("an RFC 3339 time, such as 2026-01-02T15:04:05Z")
	if err != nil {
		return err
	}
	at, err := time.Parse(time.RFC3339Nano, string(s))
	if err != nil {
		return invalid("has to be an RFC 3339 time, such as 2026-01-02T15:04:05Z")
	}
	if at = at.UTC(); at.Year() < 1 || at.Year() > 9999 {
		return invalid("is outside the years 1 to 9999")
	}
	setPair(m, at.Unix(), int32(at.Nanosecond()))
	return nil
}

// duration reads seconds with up to nine decimals, to the nanosecond.
func (d *decoder) duration(m protoreflect.Message) error {
	if c := d.next(); c != '-' && c-'0' > 9 {
		return d.wants('0', "a number of seconds")
	}
	n, err := d.number()
	if err != nil {
		return err
	}
	whole, decimals, _ := strings.Cut(string(n), ".")
	seconds, err := strconv.ParseInt(whole, 10, 64)
	if err != nil || len(decimals) > 9 || seconds > maxDuration || seconds < -maxDuration {
		return invalid("has to be a number of seconds with at most nine decimals, not %s", clipped(string(n)))
	}
	nanos, err := strconv.ParseInt((decimals + "000000000")[:9], 10, 32)
	if err != nil {
		return invalid("has to be a number of seconds with at most nine decimals, not %s", clipped(string(n)))
	}
	if n[0] == '-' {
		nanos = -nanos
	}
	setPair(m, seconds, int32(nanos))
	return nil
}

// setPair sets the fields of a Timestamp or Duration by their numbers, which are the same in both. The message may have
// any Go type, such as dynamicpb.Message.
func setPair(m protoreflect.Message, seconds int64, nanos int32) {
	fields := m.Descriptor().Fields()
	m.Set(fields.ByNumber(1), protoreflect.ValueOfInt64(seconds))
	m.Set(fields.ByNumber(2), protoreflect.ValueOfInt32(nanos))
}
