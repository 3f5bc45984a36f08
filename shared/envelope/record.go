package envelope

import (
	"github.com/ThreeDotsLabs/watermill/message"

	meshv1 "github.com/edumatrix/interlinked/proto/gen/edumatrix/mesh/v1"
)

// Record returns the event in the form in which owners send events to other services by RPC. The result has the
// contents of the event's record on its topic.
func (e Event) Record(topic string) *meshv1.Record {
	m := e.Message()
	r := &meshv1.Record{Topic: topic, Key: m.Metadata.Get(MetadataKey), Body: e.Body}
	for k, v := range m.Metadata {
		if k != MetadataKey {
			r.Headers = append(r.Headers, &meshv1.Header{Key: k, Value: v})
		}
	}
	return r
}

// ReadRecord reads an event from the record that Record has returned.
func ReadRecord(r *meshv1.Record) (Event, error) {
	m := &message.Message{Metadata: message.Metadata{MetadataKey: r.GetKey()}, Payload: r.GetBody()}
	for _, h := range r.GetHeaders() {
		m.Metadata.Set(h.GetKey(), h.GetValue())
	}
	return ReadEvent(m)
}
