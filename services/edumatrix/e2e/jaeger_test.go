//go:build integration

package e2e

import (
	"encoding/json"
	"fmt"
	"net/http"
	"net/url"
	"slices"
	"strings"
	"testing"

	"github.com/edumatrix/interlinked/shared/meshtest"
)

// A trace is read back from a real Jaeger: one message, across separate processes.
func TestTrace_IsReadBackFromJaeger(t *testing.T) {
	t.Parallel()
	endpoint, query := meshtest.Jaeger(t)
	m := separate(t, "OTEL_EXPORTER_OTLP_ENDPOINT="+endpoint)
	alice, bob := m.connect(t, someone("alice"), 0), m.connect(t, someone("bob"), 1)
	started := alice.do("chat.start_direct", map[string]any{"user_id": bob.id})
	alice.do("chat.send_message", map[string]any{"conversation_id": conversationOf(started), "body": "traced"})
	bob.awaitVersion(started.Stream, 2)

	want := []string{"gateway/receive chat.send_message", "gateway/send chat-commands", "chat/process chat-commands",
		"chat/decide chat.send_message", "chat/send chat-events", "gateway/process chat-events",
		"gateway/fan-out chat.message_sent"}
	var got []string
	eventually(t, "the trace is in Jaeger", func() bool {
		got = jaegerTrace(t, query, "receive chat.send_message")
		for _, span := range want {
			if !slices.Contains(got, span) {
				return false
			}
		}
		// Both gateways fan it out.
		n := 0
		for _, span := range got {
			if span == "gateway/fan-out chat.message_sent" {
				n++
			}
		}
		return n == 2
	})
}

// jaegerTrace lists the spans of the newest trace with an operation of the gateway, as service/operation.
func jaegerTrace(t *testing.T, query, operation string) (spans []string) {
	t.Helper()
	r, err := http.Get(query + "/api/traces?" + url.Values{"service": {"gateway"}, "operation": {operation}, "limit": {"1"}}.Encode())
	if err != nil {
		t.Fatal(err)
	}
	defer r.Body.Close()
	var answer struct {
		Data []struct {
			Spans []struct {
				OperationName string `json:"operationName"`
				ProcessID     string `json:"processID"`
			} `json:"spans"`
			Processes map[string]struct {
				ServiceName string `json:"serviceName"`
			} `json:"processes"`
		} `json:"data"`
	}
	if err := json.NewDecoder(r.Body).Decode(&answer); err != nil {
		t.Fatal(err)
	}
	for _, trace := range answer.Data {
		for _, s := range trace.Spans {
			spans = append(spans, fmt.Sprint(trace.Processes[s.ProcessID].ServiceName, "/", strings.TrimSpace(s.OperationName)))
		}
	}
	return spans
}
