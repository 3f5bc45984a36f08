package envelope

import (
	"bytes"
	"fmt"
	"strconv"
	"strings"
	"time"

	routingv1 "github.com/edumatrix/interlinked/proto/gen/edumatrix/routing/v1"

	"github.com/edumatrix/interlinked/proto/catalog"
)

// These constants number the headers whose values become strings in an Event. The constant texts is their count.
const (
	textID = iota
	textType
	textSource
	textSubject
	textActor
	textCause
	textCorrelation
	textAbout
	textCommandType
	textTraceParent
	textIncarnation
	textRooms
	textOpens
	textCloses
	texts
)

// Header is a constraint for types of record headers, such as kgo.RecordHeader. This package does not import that type,
// so that a program that never reads from Kafka does not link a Kafka client.
type Header interface {
	~struct {
		Key   string
		Value []byte
	}
}

// header is the type to which a Header of any type is converted.
type header struct {
	Key   string
	Value []byte
}

// ReadRawEvent is ReadEvent for a Kafka record. The result does not reference the record's own bytes: all strings share
// one copy, and the body is a copy of its own.
func ReadRawEvent[H Header](headers []H, body []byte) (Event, error) {
	r := rawReader{}
	var found [texts][]byte
	total := 0
	e := Event{}
	var position, before, version, class, at, expires []byte
	for i := range headers {
		h := header(headers[i])
		if n := textOf(h.Key); n >= 0 {
			found[n] = h.Value
			total += len(h.Value)
			continue
		}
		switch h.Key {
		case headerPosition:
			position = h.Value
		case headerBefore:
			before = h.Value
		case headerVersion:
			version = h.Value
		case headerClass:
			class = h.Value
		case headerTime:
			at = h.Value
		case headerExpires:
			expires = h.Value
		case headerAnswers:
			e.Answers = string(h.Value) == "1"
		case headerRedacted:
			e.Redacted = string(h.Value) == "1"
		case headerFence:
			e.Fence = string(h.Value) == "1"
		case headerEpoch:
			e.Epoch = int32(r.number(h.Key, h.Value, 32))
		case headerPartitions:
			e.Partitions = int32(r.number(h.Key, h.Value, 32))
		}
	}
	var all strings.Builder
	all.Grow(total)
	for _, v := range found {
		all.Write(v)
	}
	rest := all.String()
	var text [texts]string
	for n, v := range found {
		text[n], rest = rest[:len(v)], rest[len(v):]
	}
	e.ID, e.Type, e.Source = text[textID], text[textType], strings.TrimPrefix(text[textSource], "/")
	e.Stream, e.Actor, e.Cause = text[textSubject], text[textActor], text[textCause]
	e.Correlation, e.Subject, e.CommandType = text[textCorrelation], text[textAbout], text[textCommandType]
	e.TraceParent, e.Incarnation = text[textTraceParent], text[textIncarnation]
	e.Rooms = split(text[textRooms], ",")
	e.Opens, e.Closes = splitMemberships(text[textOpens]), splitMemberships(text[textCloses])
	r.required(headerID, e.ID)
	r.required(headerType, e.Type)
	r.required(headerSource, text[textSource])
	e.Position = catalog.Position(r.number(headerPosition, position, 64))
	e.Before = catalog.Position(r.number(headerBefore, before, 64))
	e.Time = r.time(headerTime, at)
	if !e.IsPosition() {
		if len(expires) > 0 {
			e.Expires = r.time(headerExpires, expires)
		}
		e.Version = catalog.Version(r.number(headerVersion, version, 64))
		e.Class = rawClass(class)
		r.required(headerClass, string(class))
		r.required(headerSubject, e.Stream)
	}
	if r.err != nil {
		return Event{}, fmt.Errorf("event record: %w", r.err)
	}
	e.Body = bytes.Clone(body)
	return e, nil
}

// RawStream returns the stream of an event from the headers of its Kafka record, without a copy.
func RawStream[H Header](headers []H) []byte {
	for i := range headers {
		if h := header(headers[i]); h.Key == headerSubject {
			return h.Value
		}
	}
	return nil
}

// ReadRawOutcome is ReadOutcome for a Kafka record.
func ReadRawOutcome[H Header](headers []H) (Outcome, error) {
	r := rawReader{}
	var o Outcome
	var kind, source string
	var version, position []byte
	for i := range headers {
		h := header(headers[i])
		switch h.Key {
		case headerActor:
			o.Actor = string(h.Value)
		case headerCause:
			o.CommandID = string(h.Value)
		case headerAbout:
			o.Type = string(h.Value)
		case headerKind:
			kind = string(h.Value)
		case headerVersion:
			version = h.Value
		case headerPosition:
			position = h.Value
		case headerSubject:
			o.Stream = string(h.Value)
		case headerCode:
			o.Code = string(h.Value)
		case headerText:
			o.Text = string(h.Value)
		case headerField:
			o.Field = string(h.Value)
		case HeaderTraceParent:
			o.TraceParent = string(h.Value)
		case headerSource:
			source = string(h.Value)
		}
	}
	o.Kind, o.Source = Kind(kind), strings.TrimPrefix(source, "/")
	r.required(headerActor, o.Actor)
	r.required(headerCause, o.CommandID)
	r.required(headerAbout, o.Type)
	r.required(headerKind, kind)
	r.required(headerSource, source)
	o.Version = catalog.Version(r.number(headerVersion, version, 64))
	o.Position = catalog.Position(r.number(headerPosition, position, 64))
	if r.err != nil {
		return Outcome{}, fmt.Errorf("outcome record: %w", r.err)
	}
	return o, nil
}

func textOf(header string) int {
	switch header {
	case headerID:
		return textID
	case headerType:
		return textType
	case headerSource:
		return textSource
	case headerSubject:
		return textSubject
	case headerActor:
		return textActor
	case headerCause:
		return textCause
	case headerCorrelation:
		return textCorrelation
	case headerAbout:
		return textAbout
	case headerCommandType:
		return textCommandType
	case HeaderTraceParent:
		return textTraceParent
	case headerIncarnation:
		return textIncarnation
	case headerRooms:
		return textRooms
	case headerOpens:
		return textOpens
	case headerCloses:
		return textCloses
	}
	return -1
}

func rawClass(name []byte) routingv1.Class {
	switch string(name) {
	case "durable":
		return routingv1.Class_CLASS_DURABLE
	case "counter":
		return routingv1.Class_CLASS_COUNTER
	case "ephemeral":
		return routingv1.Class_CLASS_EPHEMERAL
	}
	return classOf(string(name))
}

// rawReader reads the headers of a record and keeps the first error.
type rawReader struct{ err error }

func (r *rawReader) required(name, value string) {
	if value == "" && r.err == nil {
		r.err = fmt.Errorf("header %s is missing", name)
	}
}

func (r *rawReader) number(name string, value []byte, bits int) int64 {
	n, err := strconv.ParseInt(string(value), 10, bits)
	if err != nil && r.err == nil {
		r.err = fmt.Errorf("header %s is not a number: %q", name, value)
	}
	return n
}

func (r *rawReader) time(name string, value []byte) time.Time {
	t, err := time.Parse(time.RFC3339Nano, string(value))
	if err != nil && r.err == nil {
		r.err = fmt.Errorf("header %s is not an RFC 3339 time: %q", name, value)
	}
	return t
}
