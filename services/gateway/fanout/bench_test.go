package fanout

import (
	"fmt"
	"strconv"
	"testing"

	"github.com/edumatrix/interlinked/services/gateway/internal/fake"
	"github.com/edumatrix/interlinked/shared/bus"
)

// BenchmarkTake measures how long the fan-out takes for one record, from the bytes in Kafka to the hub. It measures a
// record whose room has no connection, and a record whose room has one connection.
func BenchmarkTake(b *testing.B) {
	for _, conversation := range []string{"nobody", "g"} {
		b.Run(conversation, func(b *testing.B) {
			w := begin(b)
			users := `["bob"]`
			if conversation == "nobody" {
				users = `["eve"]`
			}
			first := w.chat.Append("alice", "chat.conversation_started",
				fmt.Sprintf(`{"conversation_id":%q,"user_ids":%s}`, conversation, users))
			p := w.chat.Partition(first)
			e := w.messageSent(conversation, "hello, everybody")
			w.take(b, p, first)
			r := record("chat-events", e.Message())
			r.Partition = p
			var position, before *bus.Header
			for i := range r.Headers {
				switch r.Headers[i].Key {
				case "ce_position":
					position = &r.Headers[i]
				case "ce_before":
					before = &r.Headers[i]
				}
			}
			b.ReportAllocs()
			n := e.Position
			for b.Loop() {
				before.Value = strconv.AppendInt(nil, int64(n-1), 10)
				position.Value = strconv.AppendInt(nil, int64(n), 10)
				w.fan.take(b.Context(), r)
				if n++; n%500 == 0 {
					fake.Take(w.conn, 1000)
				}
			}
		})
	}
}
