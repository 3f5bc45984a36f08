package bus

import (
	"context"
	"fmt"
	"strconv"
	"time"

	"github.com/ThreeDotsLabs/watermill/message"
	"github.com/twmb/franz-go/pkg/kgo"
)

// Header is a header of a Record.
type Header = kgo.RecordHeader

// Fetched is a record as the broker returned it.
type Fetched = kgo.Record

// Record is a Kafka record. Its bytes belong to the buffer of a whole fetch: clone the bytes that you keep, because
// each reference keeps the whole buffer alive, up to about 16 MiB.
type Record struct {
	Topic     string // without the installation's prefix
	Partition int32
	Offset    int64
	Time      time.Time
	Key       []byte
	Value     []byte
	Headers   []Header
	// Ahead are records of the same partition that follow this one and are fetched already, in order. A Reader sets it,
	// and it is valid only during the call of the function handle.
	Ahead []*Fetched
}

// Header returns the value of the first header with a name; nil if there is none.
func (r *Record) Header(name string) []byte {
	for i := range r.Headers {
		if r.Headers[i].Key == name {
			return r.Headers[i].Value
		}
	}
	return nil
}

// ID returns the id of the record's message. For a record without an id, it returns "<topic>/<partition>/<offset>".
func (r *Record) ID() string {
	if id := r.Header(headerID); len(id) > 0 {
		return string(id)
	}
	return fmt.Sprintf("%s/%d/%d", r.Topic, r.Partition, r.Offset)
}

// Message returns the record as a Watermill message. The metadata are the record's headers, except the header of the
// id, and the record's key as the entry MetadataKey. The payload is the record's own slice; everything else is copied.
func (r *Record) Message(ctx context.Context) *message.Message {
	m := message.NewMessage(r.ID(), r.Value)
	for i := range r.Headers {
		if name := r.Headers[i].Key; name != headerID {
			m.Metadata[name] = string(r.Headers[i].Value)
		}
	}
	if len(r.Key) > 0 {
		m.Metadata[MetadataKey] = string(r.Key)
	}
	m.SetContext(ctx)
	return m
}

// recordOf converts a consumed record.
func recordOf(topic string, r *kgo.Record) Record {
	return Record{Topic: topic, Partition: r.Partition, Offset: r.Offset, Time: r.Timestamp, Key: r.Key, Value: r.Value,
		Headers: r.Headers}
}

// headerID is the header with a message's UUID. Records have the format of watermill-kafka's marshaler: each metadata
// entry except MetadataKey and MetadataPartition is a header of the same name, and the payload is the record's value.
const headerID = "_watermill_message_uuid"

// produced converts a message to a Kafka record.
func produced(topic string, m *message.Message) (*kgo.Record, error) {
	r := &kgo.Record{Topic: topic, Partition: byKey, Value: m.Payload}
	r.Headers = append(make([]Header, 0, len(m.Metadata)+3), Header{Key: headerID, Value: []byte(m.UUID)})
	for name, value := range m.Metadata {
		switch name {
		case MetadataKey:
			if value != "" {
				r.Key = []byte(value)
			}
		case MetadataPartition:
			if value == "" {
				continue
			}
			n, err := strconv.ParseInt(value, 10, 32)
			if err != nil || n < 0 {
				return nil, fmt.Errorf("metadata %s is not a partition: %q", MetadataPartition, value)
			}
			r.Partition = int32(n)
		case headerID:
			return nil, fmt.Errorf("metadata %s is reserved for the message's id", headerID)
		default:
			r.Headers = append(r.Headers, Header{Key: name, Value: []byte(value)})
		}
	}
	return r, nil
}

// setHeader replaces a header of a record, or adds the header if the record lacks it.
func setHeader(r *kgo.Record, name, value string) {
	for i := range r.Headers {
		if r.Headers[i].Key == name {
			r.Headers[i].Value = []byte(value)
			return
		}
	}
	r.Headers = append(r.Headers, Header{Key: name, Value: []byte(value)})
}
