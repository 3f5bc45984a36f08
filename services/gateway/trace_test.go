package gateway

import (
	"context"
	"slices"
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

// A connection ends before its command is answered. The trace must contain the command nevertheless.
func TestTrace_ContainsACommandWithoutAnAnswer(t *testing.T) {
	t.Parallel()
	m := begin(t)
	spans := tracetest.NewInMemoryExporter()
	m.exporter = spans
	m.start(`["alice","bob"]`)
	address, _ := m.gateway(settings{})
	alice := connect(t, address, "alice")
	ctx, cancel := context.WithCancel(t.Context())
	ended := make(chan error, 1)
	go func() { _, err := alice.Command(ctx, "chat.send_message", hello); ended <- err }()
	has := func(name string) func() bool {
		return func() bool {
			return slices.ContainsFunc(spans.GetSpans(), func(s tracetest.SpanStub) bool { return s.Name == name })
		}
	}
	require.Eventually(t, has("send chat-commands"), 10*time.Second, time.Millisecond)
	require.False(t, has("receive chat.send_message")())
	alice.Close()
	require.Eventually(t, has("receive chat.send_message"), 10*time.Second, time.Millisecond)
	cancel()
	require.Error(t, <-ended)
}
