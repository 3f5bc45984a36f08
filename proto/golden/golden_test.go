package golden

import (
	"bytes"
	"encoding/json"
	"flag"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/stretchr/testify/require"
	"google.golang.org/protobuf/encoding/protojson"
	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/reflect/protoreflect"

	"github.com/edumatrix/interlinked/proto/catalog"
)

// release is the number of the release to which new samples belong. It grows with each release.
const release = "1"

var update = flag.Bool("update", false, "add samples for events and fields that have none")

// Every sample must be decoded to the fields with which it was encoded, and every field of every event must be part of a
// sample. With the flag -update, the test adds the missing samples and fails, so that they are committed.
func TestSamples_ContainEveryFieldOfEveryEvent(t *testing.T) {
	c, err := catalog.Load()
	require.NoError(t, err)
	all, err := Samples()
	require.NoError(t, err)
	covered := map[string]map[protoreflect.FullName]bool{}
	for _, s := range all {
		m, err := s.Decode(c)
		require.NoError(t, err)
		require.Empty(t, m.ProtoReflect().GetUnknown(), "%s has fields that are not declared any more", s.Path)
		if covered[s.Event] == nil {
			covered[s.Event] = map[protoreflect.FullName]bool{}
		}
		note(covered[s.Event], m.ProtoReflect())
	}
	for _, name := range c.EventNames() {
		e, _ := c.Event(name)
		full := e.Type.New().Interface()
		fill(full.ProtoReflect(), 0)
		needed := map[protoreflect.FullName]bool{}
		note(needed, full.ProtoReflect())
		for field := range needed {
			if covered[name][field] {
				continue
			}
			if *update {
				add(t, name, full)
			}
			t.Errorf("no sample contains %s of %s; run go test ./proto/golden -update, and commit the new file", field, name)
			break
		}
	}
}

// note records the fields that a message and the messages in it have.
func note(covered map[protoreflect.FullName]bool, m protoreflect.Message) {
	m.Range(func(f protoreflect.FieldDescriptor, v protoreflect.Value) bool {
		covered[f.FullName()] = true
		switch {
		case f.Message() == nil || f.IsMap():
		case f.IsList():
			for i := range v.List().Len() {
				note(covered, v.List().Get(i).Message())
			}
		default:
			note(covered, v.Message())
		}
		return true
	})
}

// fill sets every field of a message to a value that follows from its name.
func fill(m protoreflect.Message, depth int) {
	for i := range m.Descriptor().Fields().Len() {
		f := m.Descriptor().Fields().Get(i)
		switch {
		case f.ContainingOneof() != nil && f.ContainingOneof().Fields().Get(0) != f && !f.HasOptionalKeyword(), depth > 4:
		case f.IsMap():
			value := m.NewField(f)
			value.Map().Set(protoreflect.ValueOfString("key").MapKey(), scalar(f.MapValue(), 1))
			m.Set(f, value)
		case f.IsList():
			list := m.NewField(f)
			if f.Message() != nil {
				fill(list.List().AppendMutable().Message(), depth+1)
			} else {
				list.List().Append(scalar(f, 1))
				list.List().Append(scalar(f, 2))
			}
			m.Set(f, list)
		case f.Message() != nil && f.Message().FullName() == "google.protobuf.Timestamp":
			value := m.NewField(f)
			value.Message().Set(f.Message().Fields().ByName("seconds"), protoreflect.ValueOfInt64(1_767_323_045))
			m.Set(f, value)
		case f.Message() != nil:
			fill(m.Mutable(f).Message(), depth+1)
		default:
			m.Set(f, scalar(f, 1))
		}
	}
}

// scalar returns the value of a field, or the nth value of a list. The value of "user_id", and the first value of
// "user_ids", is "user".
func scalar(f protoreflect.FieldDescriptor, n int) protoreflect.Value {
	switch f.Kind() {
	case protoreflect.StringKind:
		text := strings.TrimSuffix(strings.TrimSuffix(string(f.Name()), "s"), "_id")
		if n > 1 {
			text = fmt.Sprint(text, n)
		}
		return protoreflect.ValueOfString(text)
	case protoreflect.BytesKind:
		return protoreflect.ValueOfBytes([]byte{byte(n)})
	case protoreflect.BoolKind:
		return protoreflect.ValueOfBool(true)
	case protoreflect.EnumKind:
		return protoreflect.ValueOfEnum(f.Enum().Values().Get(f.Enum().Values().Len() - 1).Number())
	case protoreflect.Int32Kind, protoreflect.Sint32Kind, protoreflect.Sfixed32Kind:
		return protoreflect.ValueOfInt32(int32(f.Number()))
	case protoreflect.Int64Kind, protoreflect.Sint64Kind, protoreflect.Sfixed64Kind:
		return protoreflect.ValueOfInt64(int64(f.Number()))
	case protoreflect.Uint32Kind, protoreflect.Fixed32Kind:
		return protoreflect.ValueOfUint32(uint32(f.Number()))
	case protoreflect.Uint64Kind, protoreflect.Fixed64Kind:
		return protoreflect.ValueOfUint64(uint64(f.Number()))
	case protoreflect.FloatKind:
		return protoreflect.ValueOfFloat32(0.5)
	case protoreflect.DoubleKind:
		return protoreflect.ValueOfFloat64(0.5)
	}
	panic("a field of an unknown kind: " + string(f.FullName()))
}

// add writes a sample of an event. If the event has a sample of this release already, the file gets the next number.
func add(t *testing.T, event string, m proto.Message) {
	t.Helper()
	body, err := proto.MarshalOptions{Deterministic: true}.Marshal(m)
	require.NoError(t, err)
	data, err := protojson.Marshal(m)
	require.NoError(t, err)
	var compact bytes.Buffer // package protojson varies its spaces on purpose
	require.NoError(t, json.Compact(&compact, data))
	raw, err := json.MarshalIndent(Sample{Event: event, Body: body, Data: compact.Bytes()}, "", "  ")
	require.NoError(t, err)
	require.NoError(t, os.MkdirAll(filepath.Join("samples", release), 0o755))
	for n := 1; ; n++ {
		name := filepath.Join("samples", release, event+".json")
		if n > 1 {
			name = filepath.Join("samples", release, fmt.Sprintf("%s.%d.json", event, n))
		}
		if _, err := os.Stat(name); err == nil {
			continue
		}
		require.NoError(t, os.WriteFile(name, append(raw, '\n'), 0o644))
		return
	}
}
