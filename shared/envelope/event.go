// Package envelope defines the form of the mesh's commands, events and outcomes on Kafka: CloudEvents in binary mode
// (Kafka binding 1.0), a Protobuf body (outcomes and position records have none), and W3C trace context. A gateway can
// decide by the headers alone whether it has a connection for an event.
package envelope

import (
	"fmt"
	"strconv"
	"strings"
	"time"

	"github.com/ThreeDotsLabs/watermill/message"

	"github.com/edumatrix/interlinked/proto/catalog"
	routingv1 "github.com/edumatrix/interlinked/proto/gen/edumatrix/routing/v1"
)

// Header names. CloudEvents attributes carry the prefix ce_, except the content type; extension names are lower-case
// letters and digits only. ce_subject contains the stream. ce_about contains Event.Subject or, in the record of an
// outcome, Outcome.Type.
const (
	headerSpec        = "ce_specversion"
	headerID          = "ce_id"
	headerType        = "ce_type"
	headerSource      = "ce_source"
	headerSubject     = "ce_subject"
	headerTime        = "ce_time"
	headerContent     = "content-type"
	headerVersion     = "ce_streamversion"
	headerPosition    = "ce_position"
	headerBefore      = "ce_before"
	headerActor       = "ce_actor"
	headerCause       = "ce_cause"
	headerCorrelation = "ce_correlationid"
	headerRooms       = "ce_rooms"
	headerOpens       = "ce_opens"
	headerCloses      = "ce_closes"
	headerClass       = "ce_class"
	headerAnswers     = "ce_answers"
	headerCommandType = "ce_commandtype"
	headerRedacted    = "ce_redacted"
	headerExpires     = "ce_expires"
	headerAbout       = "ce_about"
	headerIncarnation = "ce_incarnation"
	headerEpoch       = "ce_epoch"
	headerPartitions  = "ce_partitions"
	headerFence       = "ce_fence"

	// HeaderTraceParent and HeaderTraceState are the headers of W3C Trace Context.
	HeaderTraceParent = "traceparent"
	HeaderTraceState  = "tracestate"

	// MetadataKey is the metadata entry that becomes the Kafka key instead of a header.
	MetadataKey = "partition_key"

	typePosition = "mesh.position"
	contentType  = "application/protobuf"
)

// Event is an event as it is published on its topic.
type Event struct {
	ID          string
	Type        string // its declared name
	Source      string // the owner
	Stream      string
	Key         string // the Kafka key; empty: the stream
	Version     catalog.Version
	Position    catalog.Position
	Before      catalog.Position // position of the previous record in the same partition
	Time        time.Time
	Actor       string
	Cause       string // id of what caused the event: a command or, for the event of a reaction, another owner's event
	Correlation string
	Class       routingv1.Class
	Rooms       []string
	Opens       []catalog.Membership
	Closes      []catalog.Membership
	Subject     string // the part of the stream that the event is about, such as a message; may be empty
	Answers     bool   // whether this is the command's last event; its headers then contain the outcome "committed"
	CommandType string // type of the command; only with Answers
	Redacted    bool
	Expires     time.Time // time from which users get the event without its personal fields; zero: never
	TraceParent string
	Body        []byte

	// Incarnation identifies the history of the owner's log. Another history begins when the log's database has lost
	// commits, because of a restored backup or a failover. Positions of the new history are above all positions that were
	// published before. Incarnation is empty in records of releases without incarnations.
	Incarnation string
	// Epoch counts the changes of the partition count of the record's topic, from 1. Partitions is the partition count in
	// this epoch, which determines the partition of the event's stream. Both are 0 in records of releases without epochs.
	// A record whose epoch is lower than that of the last fence in its partition comes from a relay that had lost its
	// lease; readers ignore such a record.
	Epoch      int32
	Partitions int32
	// Fence reports whether this is a fence: the position record (see IsPosition) that begins an epoch. The relay
	// writes a fence into every partition, old and new, after all events up to the fence's Position and before any
	// event above that Position. A partition may have reached that Position already, and the fence then looks like a
	// repeat. So a reader must handle a fence before it drops repeats. In a new partition, the fence's Before is 0.
	Fence bool
}

// IsPosition reports whether this is a position record, which contains a position of the owner's log instead of an
// event. Such a record is written into a partition that has had no event for a while, and as a fence (see Event.Fence).
func (e Event) IsPosition() bool { return e.Type == typePosition }

// Position returns a position record. It shows readers that a partition is complete up to a position.
func Position(source string, position, before catalog.Position) Event {
	return Event{ID: source + ":" + strconv.FormatInt(int64(position), 10), Type: typePosition, Source: source,
		Position: position, Before: before, Time: time.Now().UTC()}
}

// Message returns the event as a Watermill message.
func (e Event) Message() *message.Message {
	m := message.NewMessage(e.ID, e.Body)
	set := func(k, v string) {
		if v != "" {
			m.Metadata.Set(k, v)
		}
	}
	set(headerSpec, "1.0")
	set(headerID, e.ID)
	set(headerType, e.Type)
	set(headerSource, "/"+e.Source)
	set(headerSubject, e.Stream)
	set(headerTime, e.Time.UTC().Format(time.RFC3339Nano))
	set(headerContent, contentType)
	set(headerPosition, strconv.FormatInt(int64(e.Position), 10))
	set(headerBefore, strconv.FormatInt(int64(e.Before), 10))
	if !e.IsPosition() {
		set(headerVersion, strconv.FormatInt(int64(e.Version), 10))
		set(headerClass, className(e.Class))
	}
	set(headerActor, e.Actor)
	set(headerCause, e.Cause)
	set(headerCorrelation, e.Correlation)
	set(headerRooms, strings.Join(e.Rooms, ","))
	set(headerOpens, joinMemberships(e.Opens))
	set(headerCloses, joinMemberships(e.Closes))
	set(headerAbout, e.Subject)
	if e.Answers {
		set(headerAnswers, "1")
		set(headerCommandType, e.CommandType)
	}
	if e.Redacted {
		set(headerRedacted, "1")
	}
	set(headerIncarnation, e.Incarnation)
	if e.Epoch != 0 {
		set(headerEpoch, strconv.FormatInt(int64(e.Epoch), 10))
		set(headerPartitions, strconv.FormatInt(int64(e.Partitions), 10))
	}
	if e.Fence {
		set(headerFence, "1")
	}
	if !e.Expires.IsZero() {
		set(headerExpires, e.Expires.UTC().Format(time.RFC3339Nano))
	}
	set(HeaderTraceParent, e.TraceParent)
	set(MetadataKey, e.PartitionKey())
	return m
}

// PartitionKey returns the Kafka key of the event, which determines its partition.
func (e Event) PartitionKey() string {
	if e.Key != "" {
		return e.Key
	}
	return e.Stream
}

// ReadEvent reads an event from a record. It does not decode the body.
func ReadEvent(m *message.Message) (Event, error) {
	r := reader{m: m.Metadata}
	e := Event{
		ID: r.text(headerID), Type: r.text(headerType), Source: strings.TrimPrefix(r.text(headerSource), "/"),
		Position: catalog.Position(r.number(headerPosition)), Before: catalog.Position(r.number(headerBefore)), Time: r.time(headerTime),
		Stream: m.Metadata.Get(headerSubject),
		Actor:  m.Metadata.Get(headerActor), Cause: m.Metadata.Get(headerCause),
		Correlation: m.Metadata.Get(headerCorrelation), Subject: m.Metadata.Get(headerAbout),
		Rooms: split(m.Metadata.Get(headerRooms), ","),
		Opens: splitMemberships(m.Metadata.Get(headerOpens)), Closes: splitMemberships(m.Metadata.Get(headerCloses)),
		Answers: m.Metadata.Get(headerAnswers) == "1", Redacted: m.Metadata.Get(headerRedacted) == "1",
		CommandType: m.Metadata.Get(headerCommandType),
		TraceParent: m.Metadata.Get(HeaderTraceParent), Body: m.Payload,
		Incarnation: m.Metadata.Get(headerIncarnation), Epoch: r.optional(headerEpoch),
		Partitions: r.optional(headerPartitions), Fence: m.Metadata.Get(headerFence) == "1",
	}
	if !e.IsPosition() {
		e.Version = catalog.Version(r.number(headerVersion))
		e.Class = classOf(r.text(headerClass))
		r.text(headerSubject)
		if m.Metadata.Get(headerExpires) != "" {
			e.Expires = r.time(headerExpires)
		}
	}
	if key := m.Metadata.Get(MetadataKey); key != e.Stream {
		e.Key = key
	}
	if r.err != nil {
		return Event{}, fmt.Errorf("event record: %w", r.err)
	}
	return e, nil
}

func className(c routingv1.Class) string {
	return strings.ToLower(strings.TrimPrefix(c.String(), "CLASS_"))
}

func classOf(name string) routingv1.Class {
	return routingv1.Class(routingv1.Class_value["CLASS_"+strings.ToUpper(name)])
}

// joinMemberships encodes memberships as "room=user,user;room=user". Rooms and users contain none of these characters.
func joinMemberships(all []catalog.Membership) string {
	parts := make([]string, len(all))
	for i, m := range all {
		parts[i] = m.Room + "=" + strings.Join(m.Users, ",")
	}
	return strings.Join(parts, ";")
}

func splitMemberships(s string) (all []catalog.Membership) {
	for _, part := range split(s, ";") {
		room, users, _ := strings.Cut(part, "=")
		all = append(all, catalog.Membership{Room: room, Users: split(users, ",")})
	}
	return all
}

func split(s, sep string) []string {
	if s == "" {
		return nil
	}
	return strings.Split(s, sep)
}

// reader reads the headers of a record and keeps the first error.
type reader struct {
	m   message.Metadata
	err error
}

func (r *reader) text(name string) string {
	v := r.m.Get(name)
	if v == "" && r.err == nil {
		r.err = fmt.Errorf("header %s is missing", name)
	}
	return v
}

func (r *reader) number(name string) int64 {
	v := r.text(name)
	n, err := strconv.ParseInt(v, 10, 64)
	if err != nil && r.err == nil {
		r.err = fmt.Errorf("header %s is not a number: %q", name, v)
	}
	return n
}

// optional reads a small number that older releases do not write; 0 if it is missing.
func (r *reader) optional(name string) int32 {
	v := r.m.Get(name)
	if v == "" {
		return 0
	}
	n, err := strconv.ParseInt(v, 10, 32)
	if err != nil && r.err == nil {
		r.err = fmt.Errorf("header %s is not a number: %q", name, v)
	}
	return int32(n)
}

func (r *reader) time(name string) time.Time {
	v := r.text(name)
	t, err := time.Parse(time.RFC3339Nano, v)
	if err != nil && r.err == nil {
		r.err = fmt.Errorf("header %s is not an RFC 3339 time: %q", name, v)
	}
	return t
}
