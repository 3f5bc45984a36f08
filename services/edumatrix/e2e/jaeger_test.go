//go:build integration

package e2e

import (
	"encoding/json"
	"net/http"
	"net/url"
	"slices"
	"testing"

	"github.com/edumatrix/interlinked/shared/meshtest"
)

// TestTrace_IsReadBackFromJaeger sends one message through separate processes, and reads the trace of this message from
// a real Jaeger.
func TestTrace_IsReadBackFromJaeger(t *testing.T) {
	t.Parallel()
	endpoint, query := meshtest.Jaeger(t)
	m := separate(t, "OTEL_EXPORTER_OTLP_ENDPOINT="+endpoint)
	alice, bob := m.connect(t, someone("alice"), 0), m.connect(t, someone("bob"), 1)
	started := alice.do("chat.start_direct", map[string]any{"user_id": bob.id})
	alice.do("chat.send_message", map[string]any{"conversation_id": conversationOf(started), "body": "traced"})
	bob.awaitVersion(started.Stream, 2)

	want := []string{"gateway/receive chat.send_message", "gateway/send chat-commands", "chat/process chat-commands",
		"chat/decide chat.send_message", "chat/append chat", "chat/send chat-events",
		"gateway/fan-out chat.message_sent"}
	eventually(t, "Jaeger has the whole trace, with a fan-out of each gateway", func() bool {
		chains := 0
		for _, chain := range jaegerChains(t, query, "receive chat.send_message", want[len(want)-1]) {
			if slices.Equal(chain, want) {
				chains++
			}
		}
		return chains == 2
	})
}

// jaegerChains finds the newest trace with the given operation of the gateway. It returns every path from the root of
// the trace to a span whose name is the parameter last. Each element of a path is service/operation.
func jaegerChains(t *testing.T, query, operation, last string) (chains [][]string) {
	t.Helper()
	r, err := http.Get(query + "/api/traces?" + url.Values{"service": {"gateway"}, "operation": {operation}, "limit": {"1"}}.Encode())
	if err != nil {
		t.Fatal(err)
	}
	defer r.Body.Close()
	type span struct {
		SpanID        string `json:"spanID"`
		OperationName string `json:"operationName"`
		ProcessID     string `json:"processID"`
		References    []struct {
			RefType string `json:"refType"`
			SpanID  string `json:"spanID"`
		} `json:"references"`
	}
	var answer struct {
		Data []struct {
			Spans     []span `json:"spans"`
			Processes map[string]struct {
				ServiceName string `json:"serviceName"`
			} `json:"processes"`
		} `json:"data"`
	}
	if err := json.NewDecoder(r.Body).Decode(&answer); err != nil {
		t.Fatal(err)
	}
	for _, trace := range answer.Data {
		byID := map[string]span{}
		for _, s := range trace.Spans {
			byID[s.SpanID] = s
		}
		name := func(s span) string { return trace.Processes[s.ProcessID].ServiceName + "/" + s.OperationName }
		for _, s := range trace.Spans {
			if name(s) != last {
				continue
			}
			var chain []string
			for at, ok := s, true; ok; {
				chain = append(chain, name(at))
				ok = false
				for _, r := range at.References {
					if r.RefType == "CHILD_OF" {
						at, ok = byID[r.SpanID]
					}
				}
			}
			slices.Reverse(chain)
			chains = append(chains, chain)
		}
	}
	return chains
}
