package gateway

import (
	"strings"
	"testing"
	"time"

	"github.com/stretchr/testify/require"
	"go.opentelemetry.io/otel/sdk/trace/tracetest"
	"go.opentelemetry.io/otel/trace"

	"github.com/edumatrix/interlinked/services/gateway/internal/fake"
)

func TestTrace_GoesFromTheFrameToTheLastFanOut(t *testing.T) {
	t.Parallel()
	m := begin(t)
	spans := tracetest.NewInMemoryExporter()
	m.exporter = spans
	m.onCommand(m.commits)
	m.start(`["alice","bob"]`)
	m.owners["chat"].OnQuery(func(string, fake.Question) (string, error) { return `{}`, nil })
	address, _ := m.gateway(settings{})
	alice, bob := connect(t, address, "alice"), connect(t, address, "bob")
	_, err := alice.Command(t.Context(), "chat.send_message", hello)
	require.NoError(t, err)
	bob.expect(t, "hello")
	var answer struct{}
	require.NoError(t, alice.Query(t.Context(), "chat.history", map[string]string{"conversation_id": "g"}, &answer))

	find := func(name string) (found tracetest.SpanStub) {
		t.Helper()
		require.Eventually(t, func() bool {
			for _, s := range spans.GetSpans() {
				if s.Name == name {
					found = s
					return true
				}
			}
			return false
		}, 10*time.Second, time.Millisecond, name)
		return found
	}
	received, sent, out := find("receive chat.send_message"), find("send chat-commands"), find("fan-out chat.message_sent")
	require.Equal(t, trace.SpanKindServer, received.SpanKind)
	require.False(t, received.Parent.IsValid())
	require.Equal(t, trace.SpanKindProducer, sent.SpanKind)
	require.Equal(t, received.SpanContext.SpanID(), sent.Parent.SpanID())
	require.Equal(t, received.SpanContext.TraceID(), out.SpanContext.TraceID())
	require.Equal(t, sent.SpanContext.SpanID(), out.Parent.SpanID(), "the parent is in the event's record")
	for _, s := range spans.GetSpans() {
		require.False(t, strings.HasPrefix(s.Name, "fan-out") && !s.Parent.IsValid(), "%s begins a trace", s.Name)
	}
	for _, a := range out.Attributes {
		if a.Key == "edumatrix.connections" {
			require.EqualValues(t, 2, a.Value.AsInt64())
		}
	}
	asked, called := find("receive chat.history"), find("edumatrix.chat.v1.ChatService/History")
	require.Equal(t, asked.SpanContext.TraceID(), called.SpanContext.TraceID())
	require.Equal(t, trace.SpanKindClient, called.SpanKind)
}
