package wirejson_test

import (
	"encoding/json"
	"fmt"
	"math"
	"strings"
	"testing"
	"time"

	"google.golang.org/protobuf/encoding/prototext"
	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/reflect/protodesc"
	"google.golang.org/protobuf/reflect/protoreflect"
	"google.golang.org/protobuf/reflect/protoregistry"
	"google.golang.org/protobuf/types/descriptorpb"
	"google.golang.org/protobuf/types/dynamicpb"
	_ "google.golang.org/protobuf/types/known/durationpb" // the message below contains a Duration
	"pgregory.net/rapid"

	chatv1 "github.com/edumatrix/interlinked/proto/gen/edumatrix/chat/v1"
	"github.com/edumatrix/interlinked/proto/refusal"
	"github.com/edumatrix/interlinked/shared/wirejson"
)

// anything declares a message type with every feature of Protobuf that wirejson supports, including features that the
// catalog does not use.
const anything = `
name: "anything.proto" package: "test" syntax: "proto3"
dependency: "google/protobuf/timestamp.proto" dependency: "google/protobuf/duration.proto"
enum_type { name: "Color"
  value { name: "COLOR_UNSPECIFIED" number: 0 } value { name: "COLOR_RED" number: 1 }
  value { name: "COLOR_DARK_BLUE" number: 2 } }
message_type { name: "Anything"
  field { name: "text" number: 1 label: LABEL_OPTIONAL type: TYPE_STRING }
  field { name: "truth" number: 2 label: LABEL_OPTIONAL type: TYPE_BOOL }
  field { name: "raw" number: 3 label: LABEL_OPTIONAL type: TYPE_BYTES }
  field { name: "i32" number: 4 label: LABEL_OPTIONAL type: TYPE_INT32 }
  field { name: "i64" number: 5 label: LABEL_OPTIONAL type: TYPE_SINT64 }
  field { name: "u32" number: 6 label: LABEL_OPTIONAL type: TYPE_FIXED32 }
  field { name: "u64" number: 7 label: LABEL_OPTIONAL type: TYPE_UINT64 }
  field { name: "f32" number: 8 label: LABEL_OPTIONAL type: TYPE_FLOAT }
  field { name: "f64" number: 9 label: LABEL_OPTIONAL type: TYPE_DOUBLE }
  field { name: "color" number: 10 label: LABEL_OPTIONAL type: TYPE_ENUM type_name: ".test.Color" }
  field { name: "at" number: 11 label: LABEL_OPTIONAL type: TYPE_MESSAGE type_name: ".google.protobuf.Timestamp" }
  field { name: "lasts" number: 12 label: LABEL_OPTIONAL type: TYPE_MESSAGE type_name: ".google.protobuf.Duration" }
  field { name: "inner" number: 13 label: LABEL_OPTIONAL type: TYPE_MESSAGE type_name: ".test.Anything" }
  field { name: "many" number: 14 label: LABEL_REPEATED type: TYPE_MESSAGE type_name: ".test.Anything" }
  field { name: "numbers" number: 15 label: LABEL_REPEATED type: TYPE_INT64 }
  field { name: "by_name" number: 16 label: LABEL_REPEATED type: TYPE_MESSAGE type_name: ".test.Anything.ByNameEntry" }
  field { name: "by_number" number: 17 label: LABEL_REPEATED type: TYPE_MESSAGE
    type_name: ".test.Anything.ByNumberEntry" }
  field { name: "by_truth" number: 18 label: LABEL_REPEATED type: TYPE_MESSAGE
    type_name: ".test.Anything.ByTruthEntry" }
  field { name: "either" number: 19 label: LABEL_OPTIONAL type: TYPE_STRING oneof_index: 0 }
  field { name: "or" number: 20 label: LABEL_OPTIONAL type: TYPE_INT64 oneof_index: 0 }
  field { name: "maybe" number: 21 label: LABEL_OPTIONAL type: TYPE_STRING oneof_index: 1 proto3_optional: true }
  oneof_decl { name: "choice" } oneof_decl { name: "_maybe" }
  nested_type { name: "ByNameEntry" options { map_entry: true }
    field { name: "key" number: 1 label: LABEL_OPTIONAL type: TYPE_STRING }
    field { name: "value" number: 2 label: LABEL_OPTIONAL type: TYPE_MESSAGE type_name: ".test.Anything" } }
  nested_type { name: "ByNumberEntry" options { map_entry: true }
    field { name: "key" number: 1 label: LABEL_OPTIONAL type: TYPE_INT32 }
    field { name: "value" number: 2 label: LABEL_OPTIONAL type: TYPE_STRING } }
  nested_type { name: "ByTruthEntry" options { map_entry: true }
    field { name: "key" number: 1 label: LABEL_OPTIONAL type: TYPE_BOOL }
    field { name: "value" number: 2 label: LABEL_OPTIONAL type: TYPE_UINT64 } } }`

func anythingType(t testing.TB) protoreflect.MessageType {
	t.Helper()
	file := &descriptorpb.FileDescriptorProto{}
	if err := prototext.Unmarshal([]byte(anything), file); err != nil {
		t.Fatal(err)
	}
	d, err := protodesc.NewFile(file, protoregistry.GlobalFiles)
	if err != nil {
		t.Fatal(err)
	}
	return dynamicpb.NewMessageType(d.Messages().Get(0))
}

// everyType returns the message type that anything declares, and all message types of the mesh.
func everyType(t testing.TB) []protoreflect.MessageType {
	all := []protoreflect.MessageType{anythingType(t)}
	protoregistry.GlobalTypes.RangeMessages(func(m protoreflect.MessageType) bool {
		if strings.HasPrefix(string(m.Descriptor().FullName()), "edumatrix.") {
			all = append(all, m)
		}
		return true
	})
	return all
}

// fill sets some fields of a message to random values. The parameter depth is the number of messages that contain the
// message.
func fill(t *rapid.T, m protoreflect.Message, depth int) {
	d := m.Descriptor()
	switch d.FullName() {
	case "google.protobuf.Timestamp":
		at := time.Date(1, 1, 1, 0, 0, 0, 0, time.UTC).Unix()
		end := time.Date(9999, 12, 31, 23, 59, 59, 0, time.UTC).Unix()
		m.Set(d.Fields().ByName("seconds"), protoreflect.ValueOfInt64(rapid.Int64Range(at, end).Draw(t, "seconds")))
		m.Set(d.Fields().ByName("nanos"), protoreflect.ValueOfInt32(rapid.Int32Range(0, 999_999_999).Draw(t, "nanos")))
		return
	case "google.protobuf.Duration":
		seconds := rapid.Int64Range(0, 315_576_000_000).Draw(t, "seconds")
		nanos := rapid.Int32Range(0, 999_999_999).Draw(t, "nanos")
		if rapid.Bool().Draw(t, "negative") {
			seconds, nanos = -seconds, -nanos
		}
		m.Set(d.Fields().ByName("seconds"), protoreflect.ValueOfInt64(seconds))
		m.Set(d.Fields().ByName("nanos"), protoreflect.ValueOfInt32(nanos))
		return
	}
	for i := range d.Fields().Len() {
		f := d.Fields().Get(i)
		if depth > 3 && f.Message() != nil || rapid.IntRange(0, 2).Draw(t, "skip") == 0 {
			continue
		}
		switch {
		case f.IsMap():
			for range rapid.IntRange(0, 3).Draw(t, "entries") {
				v := m.Mutable(f).Map().NewValue()
				if f.MapValue().Message() != nil {
					fill(t, v.Message(), depth+1)
				} else {
					v = value(t, f.MapValue())
				}
				m.Mutable(f).Map().Set(value(t, f.MapKey()).MapKey(), v)
			}
		case f.IsList():
			for range rapid.IntRange(0, 3).Draw(t, "elements") {
				if f.Message() != nil {
					fill(t, m.Mutable(f).List().AppendMutable().Message(), depth+1)
				} else {
					m.Mutable(f).List().Append(value(t, f))
				}
			}
		case f.Message() != nil:
			fill(t, m.Mutable(f).Message(), depth+1)
		default:
			m.Set(f, value(t, f))
		}
	}
}

func value(t *rapid.T, f protoreflect.FieldDescriptor) protoreflect.Value {
	name := string(f.Name())
	switch f.Kind() {
	case protoreflect.StringKind:
		return protoreflect.ValueOfString(strings.ReplaceAll(rapid.String().Draw(t, name), "\x00", ""))
	case protoreflect.BytesKind:
		return protoreflect.ValueOfBytes(rapid.SliceOf(rapid.Byte()).Draw(t, name))
	case protoreflect.BoolKind:
		return protoreflect.ValueOfBool(rapid.Bool().Draw(t, name))
	case protoreflect.EnumKind:
		values := f.Enum().Values()
		if values.Len() < 2 {
			return protoreflect.ValueOfEnum(0)
		}
		return protoreflect.ValueOfEnum(values.Get(rapid.IntRange(1, values.Len()-1).Draw(t, name)).Number())
	case protoreflect.FloatKind:
		return protoreflect.ValueOfFloat32(rapid.Float32Range(-math.MaxFloat32, math.MaxFloat32).Draw(t, name))
	case protoreflect.DoubleKind:
		return protoreflect.ValueOfFloat64(rapid.Float64Range(-math.MaxFloat64, math.MaxFloat64).Draw(t, name))
	case protoreflect.Uint32Kind, protoreflect.Fixed32Kind:
		return protoreflect.ValueOfUint32(rapid.Uint32().Draw(t, name))
	case protoreflect.Uint64Kind, protoreflect.Fixed64Kind:
		return protoreflect.ValueOfUint64(rapid.Uint64().Draw(t, name))
	case protoreflect.Int32Kind, protoreflect.Sint32Kind, protoreflect.Sfixed32Kind:
		return protoreflect.ValueOfInt32(rapid.Int32().Draw(t, name))
	default:
		return protoreflect.ValueOfInt64(rapid.Int64().Draw(t, name))
	}
}

func TestMarshal_IsDecodedToTheSameMessage(t *testing.T) {
	t.Parallel()
	for _, messageType := range everyType(t) {
		t.Run(string(messageType.Descriptor().FullName()), func(t *testing.T) {
			t.Parallel()
			rapid.Check(t, func(t *rapid.T) {
				m := messageType.New()
				fill(t, m, 0)
				written, err := wirejson.Marshal(m.Interface())
				if err != nil || !json.Valid(written) {
					t.Fatalf("%v was written as %s: %v", m, written, err)
				}
				back := messageType.New().Interface()
				if err := wirejson.Unmarshal(written, back); err != nil || !proto.Equal(m.Interface(), back) {
					t.Fatalf("%s came back as %v: %v", written, back, err)
				}
				if again, err := wirejson.Marshal(back); err != nil || string(again) != string(written) {
					t.Fatalf("%s, written again, is %s: %v", written, again, err)
				}
			})
		})
	}
}

func TestMarshal_WritesEveryFeatureOfProto(t *testing.T) {
	t.Parallel()
	all := anythingType(t)
	for _, test := range []struct{ text, want string }{
		{``, `{"text":"","truth":false,"raw":"","i32":0,"i64":0,"u32":0,"u64":0,"f32":0,"f64":0,"many":[],"numbers":[],` +
			`"by_name":{},"by_number":{},"by_truth":{}}`},
		{`f32: 0.1 f64: 1e300 color: COLOR_DARK_BLUE`, `"f32":0.1,"f64":1e+300,"color":"dark_blue"`},
		{`color: 7`, `"color":"7"`}, // a number that only a later release declares
		{`lasts { seconds: 1 nanos: 500000000 }`, `"lasts":1.5,`},
		{`lasts { nanos: -1 }`, `"lasts":-0.000000001,`},
		{`lasts { seconds: 315576000000 nanos: 1 }`, `"lasts":315576000000.000000001,`},
		{`at { seconds: 0 }`, `"at":"1970-01-01T00:00:00Z"`},
		{`at { seconds: 1 nanos: 20 }`, `"at":"1970-01-01T00:00:01.00000002Z"`},
		{`by_number { key: 10 value: "b" } by_number { key: -1 value: "a" }`, `"by_number":{"-1":"a","10":"b"}`},
		{`by_truth { key: true value: 18446744073709551615 }`, `"by_truth":{"true":18446744073709551615}`},
		{`either: ""`, `"either":""`},
		{`maybe: ""`, `"maybe":""`},
		{`inner {}`, `"inner":{"text":""`},
	} {
		m := all.New().Interface()
		if err := prototext.Unmarshal([]byte(test.text), m); err != nil {
			t.Fatal(err)
		}
		if got, err := wirejson.Marshal(m); err != nil || !strings.Contains(string(got), test.want) {
			t.Errorf("%s: got %s %v, want %s", test.text, got, err, test.want)
		}
	}
	for _, text := range []string{`f64: nan`, `f32: inf`, `at { seconds: 253402300800 }`, `at { nanos: -1 }`,
		`lasts { seconds: 1 nanos: -1 }`, `lasts { seconds: 315576000001 }`, `many { at { seconds: -62135596801 } }`} {
		m := all.New().Interface()
		if err := prototext.Unmarshal([]byte(text), m); err != nil {
			t.Fatal(err)
		}
		if got, err := wirejson.Marshal(m); err == nil {
			t.Errorf("%s was written as %s", text, got)
		}
	}
	if got, err := wirejson.Marshal(&chatv1.SendMessage{Body: "\xff"}); err == nil {
		t.Errorf("text that is not UTF-8 was written as %s", got)
	}
}

func TestUnmarshal_RefusesWhatDoesNotMatchTheDeclaration(t *testing.T) {
	t.Parallel()
	all := anythingType(t)
	deep := func(n int) string { return strings.Repeat(`{"inner":`, n) + `{}` + strings.Repeat(`}`, n) }
	for _, test := range []struct{ json, wantText string }{
		{` { "i32" : 5.0 , "i64":-1e3,"u32":4294967295,"u64":18446744073709551615, "f64":-0.5E-3 } `, ""},
		{`{"i64":9007199254740993}`, ""},
		{`{"text":"\ud83d\ude00 \u00e9 \/ \b\f","color":"dark_blue","raw":"AQI="}`, ""},
		{`{"at":"2026-01-02T03:04:05.123456789+02:00","lasts":-1.5,"by_truth":{"false":1}}`, ""},
		{`{"either":"a","or":null}`, ""},
		{deep(30), ""},
		{deep(40), "inner.inner is nested deeper than 32"},
		{strings.Repeat(`{"many":[`, 100000), "nested deeper"},
		{`{"either":"a","or":1}`, "or and either exclude each other"},
		{`{"i32":2147483648}`, "i32 cannot be 2147483648: a whole number from -2147483648 to 2147483647 is wanted"},
		{`{"u32":-1}`, "u32 cannot be -1"},
		{`{"u64":18446744073709551616}`, "u64 cannot be"},
		{`{"i64":9223372036854775808}`, "i64 cannot be"},
		{`{"i64":1e16}`, "i64 cannot be"},
		{`{"i64":1e400}`, "i64 cannot be"},
		{`{"i64":"5"}`, "i64 has to be a number, not text"},
		{`{"f32":1e39}`, "f32 cannot be"},
		{`{"f64":1e400}`, "f64 cannot be"},
		{`{"i64":` + strings.Repeat("9", 1000) + `}`, strings.Repeat("9", 64) + "…"},
		{`{"i32":01}`, "out of place"},
		{`{"i32":+1}`, "out of place"},
		{`{"i32":1.}`, "out of place"},
		{`{"i32":-}`, "out of place"},
		{`{"i32":1,}`, "out of place"},
		{`{"numbers":[1,]}`, "out of place"},
		{`{"numbers":[1 2]}`, "out of place"},
		{`{"numbers":[1,"2"]}`, "numbers[1] has to be a number, not text"},
		{`{"numbers":[null]}`, "numbers[0] has to be a number, not null"},
		{`{"text":"a` + "\n" + `"}`, "U+000A"},
		{`{"text":"\x"}`, "out of place"},
		{`{"text":"\u12"}`, "not an escape"},
		{`{"text":"\ud800"}`, "text holds half of a surrogate pair"},
		{`{"text":"\ud800\u0041"}`, "text holds half of a surrogate pair"},
		{`{"text":"\udc00\ud800"}`, "text holds half of a surrogate pair"},
		{`{"text":"a`, "too early"},
		{`{"text":"a\`, "too early"},
		{`{"text":"a\u`, "too early"},
		{`{text:"a"}`, "out of place"},
		{`{"text" "a"}`, "out of place"},
		{`{"truth":tru}`, "out of place"},
		{`{"truth":1}`, "truth has to be true or false, not a number"},
		{`{"text":"a"}x`, "follows"},
		{"{}\x00", "follows"},
		{`{"color":"unspecified"}`, "color has to be one of red, dark_blue"},
		{`{"color":"RED"}`, "color has to be one of"},
		{`{"color":1}`, "color has to be one of"},
		{`{"raw":"AQI"}`, "raw has to be base64"},
		{`{"at":5}`, "at has to be an RFC 3339 time"},
		{`{"at":"0000-12-31T23:59:59Z"}`, "at is outside the years 1 to 9999"},
		{`{"at":"9999-12-31T23:59:59-01:00"}`, "at is outside the years 1 to 9999"},
		{`{"lasts":"1s"}`, "lasts has to be a number of seconds, not text"},
		{`{"lasts":1e3}`, "lasts has to be a number of seconds with at most nine decimals"},
		{`{"lasts":0.0000000001}`, "nine decimals"},
		{`{"lasts":315576000001}`, "lasts has to be"},
		{`{"by_name":{"a":{},"a":{}}}`, "by_name.a is there twice"},
		{`{"by_name":{"a b":{"i32":"x"}}}`, `by_name."a b".i32 has to be a number`},
		{`{"by_name":{"\u0000":{}}}`, "U+0000"},
		{`{"by_number":{"x":"a"}}`, "by_number.x cannot be x"},
		{`{"by_number":{"1":"a","1.0":"b"}}`, "is there twice"},
		{`{"by_truth":{"yes":1}}`, `has to be "true" or "false"`},
		{`{"by_name":[]}`, "by_name has to be an object, not a list"},
		{`{"many":[{"inner":{"by_name":{"k":{"numbers":[0,true]}}}}]}`, "many[0].inner.by_name.k.numbers[1] has to be"},
		{`{"byName":{}}`, `byName is unknown here; did you mean "by_name"?`},
		{`{"txet":1}`, `txet is unknown here; did you mean "text"?`},
		{`{"` + strings.Repeat("x", 5000) + `":1}`, strings.Repeat("x", 64) + "… is unknown here; known fields: text, truth"},
		{`{"a\nb":1}`, `"a\nb" is unknown here`},
	} {
		err := wirejson.Unmarshal([]byte(test.json), all.New().Interface())
		short := test.json[:min(len(test.json), 80)]
		if test.wantText == "" {
			if err != nil {
				t.Errorf("%s: %v", short, err)
			}
			continue
		}
		if r, ok := refusal.Of(err); !ok || !strings.Contains(r.Text, test.wantText) || len(r.Text) > 600 {
			t.Errorf("%s: got %v, want %q", short, err, test.wantText)
		}
	}
}

// FuzzUnmarshal decodes any text into two message types. A text that Unmarshal accepts must be JSON. If the resulting
// message is encoded and decoded again, the result must be the same message.
func FuzzUnmarshal(f *testing.F) {
	for _, seed := range []string{
		`{"messages":[{"author":"a","sent_at":"2026-01-02T03:04:05Z","version":3}],"more":true}`,
		`{"messages":[[[[`, `{"version":1e400}`, `{"messages":null}`, `{"text":"\ud83d\ude00\u0000","i64":-0}`,
		`{"by_name":{"a":{"lasts":-0.5,"at":"2026-01-02T03:04:05.6+01:00"}},"raw":"AQ==","f32":1e-40}`,
		`{"by_number":{"1.0":"x"},"or":1.5e1,"color":"dark_blue"}`, strings.Repeat(`{"inner":`, 40),
	} {
		f.Add([]byte(seed))
	}
	types := []protoreflect.MessageType{anythingType(f), (&chatv1.HistoryResponse{}).ProtoReflect().Type()}
	f.Fuzz(func(t *testing.T, data []byte) {
		for _, messageType := range types {
			m := messageType.New().Interface()
			if err := wirejson.Unmarshal(data, m); err != nil {
				if r, ok := refusal.Of(err); !ok || r.Code != refusal.Malformed && r.Code != refusal.InvalidField {
					t.Fatalf("%q: %v", data, err)
				}
				continue
			}
			written, err := wirejson.Marshal(m)
			if err != nil || !json.Valid(data) || !json.Valid(written) {
				t.Fatalf("%q was accepted, and written as %q: %v", data, written, err)
			}
			again := messageType.New().Interface()
			if err := wirejson.Unmarshal(written, again); err != nil || !proto.Equal(m, again) {
				t.Fatalf("%q came back as %v: %v", written, again, err)
			}
		}
	})
}

func ExampleUnmarshal() {
	var m chatv1.SendMessage
	fmt.Println(wirejson.Unmarshal([]byte(`{"conversationId":"7","body":"hi"}`), &m))
	fmt.Println(wirejson.Unmarshal([]byte(`{"conversation_id":7}`), &m))
	// Output:
	// invalid_field: conversationId is unknown here; did you mean "conversation_id"?
	// invalid_field: conversation_id has to be text, not a number
}
