package envelope_test

import (
	"testing"
	"time"

	"github.com/stretchr/testify/require"
	"github.com/twmb/franz-go/pkg/kgo"

	"github.com/edumatrix/interlinked/proto/catalog"
	routingv1 "github.com/edumatrix/interlinked/proto/gen/edumatrix/routing/v1"
	"github.com/edumatrix/interlinked/shared/envelope"
)

// raw returns the metadata of a message as headers of a Kafka record, with an unknown header before them.
func raw(metadata map[string]string) (headers []kgo.RecordHeader) {
	headers = append(headers, kgo.RecordHeader{Key: "something_else", Value: []byte("x")})
	for k, v := range metadata {
		if k != envelope.MetadataKey {
			headers = append(headers, kgo.RecordHeader{Key: k, Value: []byte(v)})
		}
	}
	return headers
}

var full = envelope.Event{ID: "i", Type: "chat.message_sent", Source: "chat", Stream: "conversation:g", Version: 3,
	Position: 9, Before: 7, Time: time.Unix(1, 5).UTC(), Actor: "alice", Cause: "c", Correlation: "r",
	Class: routingv1.Class_CLASS_COUNTER, Rooms: []string{"conversation:g", "user:bob"},
	Opens:   []catalog.Membership{{Room: "conversation:g", Users: []string{"bob", "eve"}}},
	Closes:  []catalog.Membership{{Room: "conversation:h", Users: []string{"bob"}}},
	Subject: "m", Answers: true, CommandType: "chat.send_message", Redacted: true, TraceParent: "00-x-y-01",
	Body: []byte("body"), Incarnation: "one", Epoch: 2, Partitions: 4, Expires: time.Unix(2, 3).UTC()}

func TestReadRawEvent_ReturnsTheSameAsReadEvent(t *testing.T) {
	t.Parallel()
	fence := envelope.Position("chat", 7, 5)
	fence.Epoch, fence.Partitions, fence.Fence, fence.Incarnation = 3, 6, true, "two"
	for _, e := range []envelope.Event{full, envelope.Position("chat", 7, 5), fence,
		{ID: "i", Type: "t", Source: "s", Stream: "s:1", Class: routingv1.Class_CLASS_DURABLE, Time: time.Unix(1, 0).UTC()}} {
		m := e.Message()
		want, err := envelope.ReadEvent(m)
		require.NoError(t, err)
		headers := raw(m.Metadata)
		body := append([]byte(nil), m.Payload...)
		got, err := envelope.ReadRawEvent(headers, body)
		require.NoError(t, err)
		for i := range headers { // a reader may reuse the record's memory, which must not change the event
			clear(headers[i].Value)
		}
		clear(body)
		require.Equal(t, string(want.Body), string(got.Body))
		want.Body, got.Body = nil, nil
		require.Equal(t, want, got)

		for name := range m.Metadata {
			less := m.Copy()
			delete(less.Metadata, name)
			_, err := envelope.ReadEvent(less)
			_, rawErr := envelope.ReadRawEvent(raw(less.Metadata), nil)
			require.Equal(t, err == nil, rawErr == nil, "%s without %s: %v, %v", e.Type, name, err, rawErr)
		}
	}
}

func TestReadRawOutcome_ReturnsTheSameAsReadOutcome(t *testing.T) {
	t.Parallel()
	want := envelope.Outcome{Actor: "alice", CommandID: "c", Type: "chat.leave", Source: "chat", Stream: "s:1",
		Kind: envelope.Refused, Version: 2, Position: 3, Code: "no", Text: "why", Field: "user_id", TraceParent: "00-x-y-01"}
	m := want.Message()
	got, err := envelope.ReadRawOutcome(raw(m.Metadata))
	require.NoError(t, err)
	require.Equal(t, want, got)
	for name := range m.Metadata {
		less := m.Copy()
		delete(less.Metadata, name)
		_, err := envelope.ReadOutcome(less)
		_, rawErr := envelope.ReadRawOutcome(raw(less.Metadata))
		require.Equal(t, err == nil, rawErr == nil, "without %s: %v, %v", name, err, rawErr)
	}
}

func BenchmarkReadEvent(b *testing.B) {
	m := full.Message()
	headers := raw(m.Metadata)
	b.Run("message", func(b *testing.B) {
		b.ReportAllocs()
		for b.Loop() {
			_, _ = envelope.ReadEvent(m)
		}
	})
	b.Run("raw", func(b *testing.B) {
		b.ReportAllocs()
		for b.Loop() {
			_, _ = envelope.ReadRawEvent(headers, m.Payload)
		}
	})
}
