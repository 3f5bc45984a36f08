package frame_test

import (
	"encoding/json"
	"errors"
	"strings"
	"testing"
	"time"

	"github.com/stretchr/testify/require"
	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/reflect/protoreflect"
	"google.golang.org/protobuf/types/known/timestamppb"

	"github.com/edumatrix/interlinked/proto/catalog"
	gatewayv1 "github.com/edumatrix/interlinked/proto/gen/edumatrix/gateway/v1"
	"github.com/edumatrix/interlinked/proto/refusal"
	"github.com/edumatrix/interlinked/services/gateway/frame"
	"github.com/edumatrix/interlinked/services/gateway/internal/schema"
	"github.com/edumatrix/interlinked/shared/wirejson"
)

// fill sets every field of a message and of its nested messages.
func fill(m protoreflect.Message) {
	if at, ok := m.Interface().(*timestamppb.Timestamp); ok {
		at.Seconds, at.Nanos = 1_800_000_000, 5000
		return
	}
	value := func(f protoreflect.FieldDescriptor, fresh func() protoreflect.Value) protoreflect.Value {
		switch f.Kind() {
		case protoreflect.StringKind:
			return protoreflect.ValueOfString("x")
		case protoreflect.BoolKind:
			return protoreflect.ValueOfBool(true)
		case protoreflect.EnumKind:
			return protoreflect.ValueOfEnum(1)
		case protoreflect.BytesKind:
			return protoreflect.ValueOfBytes([]byte{})
		case protoreflect.Int32Kind:
			return protoreflect.ValueOfInt32(7)
		case protoreflect.Int64Kind:
			return protoreflect.ValueOfInt64(7)
		}
		v := fresh()
		fill(v.Message())
		return v
	}
	fields := m.Descriptor().Fields()
	for i := range fields.Len() {
		f := fields.Get(i)
		if f.IsList() {
			list := m.Mutable(f).List()
			list.Append(value(f, list.NewElement))
			continue
		}
		m.Set(f, value(f, func() protoreflect.Value { return m.NewField(f) }))
	}
}

func filled(t protoreflect.MessageType) proto.Message {
	m := t.New()
	fill(m)
	return m.Interface()
}

func load(t *testing.T) *catalog.Catalog {
	t.Helper()
	c, err := catalog.Load()
	require.NoError(t, err)
	return c
}

// Every frame that gateways send must match the AsyncAPI document, whether all of its fields are set or none.
func TestSchemas_MatchTheFramesThatGatewaysSend(t *testing.T) {
	t.Parallel()
	c := load(t)
	checked := map[string]bool{}
	check := func(name string, text []byte, err error) {
		t.Helper()
		require.NoError(t, err)
		require.NoError(t, schema.Check(name, text))
		require.NoError(t, schema.CheckReceived(text))
		checked[name] = true
	}
	encoded := func(name string, f frame.Frame) {
		t.Helper()
		text, err := f.Encode(frame.JSON)
		check(name, text, err)
	}
	for _, name := range c.EventNames() {
		e, _ := c.Event(name)
		for _, m := range []proto.Message{filled(e.Type), e.Type.New().Interface()} {
			body, err := proto.Marshal(m)
			require.NoError(t, err)
			for _, v := range []frame.Event{
				{Name: name, Stream: "s", Version: 3, ID: "e", Time: time.Now(), Actor: "bob", CommandID: "c", Redacted: true},
				{Name: name, Stream: "s", Version: 3, ID: "e", Time: time.Now()},
			} {
				text, err := v.Encode(frame.JSON, body, e.Type.New().Interface())
				check("event."+name, text, err)
			}
		}
	}
	for _, name := range c.QueryNames() {
		if q, _ := c.Query(name); q.Public {
			encoded("reply."+name, frame.Answer("1", filled(q.Response)))
			encoded("reply."+name, frame.Answer("1", q.Response.New().Interface()))
		}
	}
	for _, name := range c.SignalNames() {
		s, _ := c.Signal(name)
		encoded("signal."+name, frame.Signal(name, "r", "bob", filled(s.Type)))
	}
	for name, m := range map[string]proto.Message{"connect": &gatewayv1.Connected{}, "authenticate": &gatewayv1.Authenticated{},
		"subscribe": &gatewayv1.Subscribed{}} {
		encoded("reply."+name, frame.Answer("1", filled(m.ProtoReflect().Type())))
	}
	refused := &refusal.Error{Code: "c", Text: "t", Field: "f", RetryAfter: time.Second, TraceID: "t"}
	bare := &refusal.Error{Code: "c", Text: "t"}
	for _, r := range []*refusal.Error{refused, bare} {
		encoded("reply.error", frame.Refused("1", r))
		encoded("error", frame.Refused("", r))
		encoded("unsubscribed", frame.Unsubscribed("r", r))
		encoded("closing", frame.Closing(4001, r))
		encoded("reply.outcome", frame.Outcome("1", &gatewayv1.Outcome{Kind: gatewayv1.OutcomeKind_OUTCOME_KIND_REFUSED,
			CommandId: "c", Error: frame.ErrorOf(r)}))
	}
	full := filled((&gatewayv1.Outcome{}).ProtoReflect().Type()).(*gatewayv1.Outcome)
	encoded("reply.outcome", frame.Outcome("1", full))
	encoded("outcome", frame.LateOutcome(full))
	encoded("reply.done", frame.Done("1"))
	encoded("not_recovered", frame.NotRecovered("r"))
	encoded("heartbeat", frame.Heartbeat(""))
	encoded("heartbeat", frame.Heartbeat("t"))
	encoded("token_expiring", frame.TokenExpiring(time.Minute))

	names, err := schema.Messages()
	require.NoError(t, err)
	for _, name := range names {
		if kind, _, _ := strings.Cut(name, "."); kind == "reply" || kind == "event" || kind == "signal" {
			require.True(t, checked[name], "no frame was checked against the schema of %s", name)
		}
	}
	require.Error(t, schema.CheckReceived([]byte(`{"type":"heartbeat","resume_token":7}`)))
	require.Error(t, schema.CheckReceived([]byte(`{"type":"heartbeat","other":"x"}`)), "a field that the document does not have")
	require.Error(t, schema.CheckReceived([]byte(`{"type":"reply","reply_to":"1","ok":true,"data":{"x":1}}`)))
}

// The schemas of client frames must accept the frames that the gateway accepts, and refuse the frames that the gateway
// refuses.
func TestSchemas_RefuseTheFramesThatGatewaysRefuse(t *testing.T) {
	t.Parallel()
	c := load(t)
	seen := map[bool]int{}
	hold := func(name string, typ protoreflect.MessageType, check func(proto.Message) error) {
		t.Helper()
		valid := map[string]any{}
		text, err := wirejson.Marshal(filled(typ))
		require.NoError(t, err)
		require.NoError(t, json.Unmarshal(text, &valid))
		agree := func(data map[string]any) {
			t.Helper()
			sent, err := json.Marshal(map[string]any{"id": "1", "type": name, "data": data})
			require.NoError(t, err)
			encoded, err := json.Marshal(data)
			require.NoError(t, err)
			m := typ.New().Interface()
			refused := frame.Data{Bytes: encoded}.Read(m)
			if refused == nil {
				refused = check(m)
			}
			documented := schema.Check(name, sent)
			require.Equal(t, refused == nil, documented == nil, "%.200s: the gateway returns %v, the schema %.500v", sent, refused, documented)
			seen[refused == nil]++
		}
		agree(valid)
		other := func(key string, v any) {
			changed := map[string]any{}
			for k, was := range valid {
				changed[k] = was
			}
			if changed[key] = v; v == nil {
				delete(changed, key)
			}
			agree(changed)
		}
		other("unknown_field", "x")
		for key, was := range valid {
			other(key, nil)
			other(key, map[string]any{})
			switch was.(type) {
			case string:
				for _, v := range []any{"", "a b", "a:b", 7, strings.Repeat("é", 200), strings.Repeat("é", 201), strings.Repeat("x", 256),
					strings.Repeat("é", 8000), strings.Repeat("é", 8001), strings.Repeat("é", 20000), strings.Repeat("é", 20001)} {
					other(key, v)
				}
			case []any:
				for _, v := range []any{[]string{}, []string{""}, []string{"a b"}, []int{1}, strings.Split(strings.Repeat("a", 500), ""),
					strings.Split(strings.Repeat("a", 501), "")} {
					other(key, v)
				}
			case float64:
				for _, v := range []any{0, -1, 1.5, "7"} {
					other(key, v)
				}
			case bool:
				other(key, "true")
			}
		}
	}
	for _, name := range c.CommandNames() {
		if d, _ := c.Command(name); d.Public {
			hold(name, d.Type, d.Check)
		}
	}
	for _, name := range c.QueryNames() {
		if d, _ := c.Query(name); d.Public {
			hold(name, d.Request, d.Check)
		}
	}
	for _, name := range c.SignalNames() {
		d, _ := c.Signal(name)
		hold(name, d.Type, func(m proto.Message) error {
			if _, ok := d.Room(m, "bob"); !ok {
				return errors.New("its fields name no room")
			}
			return d.Check(m)
		})
	}
	require.Greater(t, seen[true], 20)
	require.Greater(t, seen[false], 20)
}
