package eventlog

import (
	"context"
	"errors"
	"fmt"
	"time"

	"go.opentelemetry.io/otel/attribute"
	"go.opentelemetry.io/otel/codes"
	"go.opentelemetry.io/otel/trace"
	"google.golang.org/protobuf/proto"

	"github.com/edumatrix/interlinked/proto/catalog"
	"github.com/edumatrix/interlinked/proto/refusal"
	"github.com/edumatrix/interlinked/shared/envelope"
	"github.com/edumatrix/interlinked/shared/eventlog/inbox"
	"github.com/edumatrix/interlinked/shared/retry"
	"github.com/edumatrix/interlinked/shared/telemetry"
)

// unencrypted is the first byte of personal fields that are stored unencrypted.
const unencrypted = 0

// prepared is a Write after all the work that needs no lock: the rooms of its events are known, their personal
// fields are split off, and the events are encoded.
type prepared struct {
	stream   string
	expected catalog.Version
	at       time.Time // when the commands were decided
	entries  []*entry
	inbox    inbox.Change
	events   int
	bytes    int
}

// entry contains the events that one command, one Also or one Append adds to one stream, and the outcome of the
// command.
type entry struct {
	stream      string
	expected    catalog.Version
	actor       string
	cause       string
	commandType string
	digest      string
	correlation string
	traceParent string
	command     bool // whether the entry has an outcome; false for an Also and an Append
	kind        envelope.Kind
	code, text  string // code and text of the refusal; empty: the command is not refused
	field       string // field of the command to which the refusal refers; empty: none
	drafts      []draft
	index       int            // index of the command to which the entry belongs; -1: the entry belongs to an Append
	memberOf    string         // the room of which the actor must be a member
	requires    catalog.Part   // the part of another stream that must exist; zero: none
	otherwise   *refusal.Error // refusal of the command if the stream is not at the expected version; nil: a conflict
	fired       *TimerKey      // timer that sent the command; nil: none
	span        trace.Span
}

// draft is an event before it has a version, a position and a time.
type draft struct {
	declared *catalog.Event
	place    catalog.Place
	body     []byte
	personal []byte // nil: the event has no personal fields
	set      []timerRowOf
	cancel   []string // keys of the timers that the event cancels
	effect   Effect   // nil: no jobs follow from the event
	message  proto.Message
}

// maxEvent is the maximum size of an event on its topic, in bytes, as draft.size estimates it. Brokers accept up to 1
// MiB by default; the difference is for the fields that the estimate leaves out.
const maxEvent = 900_000

// size estimates the size of an event's record, in bytes.
func (d *draft) size() int {
	n := len(d.body) + len(d.personal) + len(d.place.Stream) + len(d.place.Subject)
	for _, room := range d.place.Rooms {
		n += len(room) + 1
	}
	for _, all := range [][]catalog.Membership{d.place.Opens, d.place.Closes} {
		for _, m := range all {
			n += len(m.Room) + 2
			for _, user := range m.Users {
				n += len(user) + 1
			}
		}
	}
	return n
}

func (l *Log) prepare(ctx context.Context, w Write) (*prepared, error) {
	p := &prepared{stream: w.Stream, expected: w.Expected, inbox: inbox.Change{Advance: w.Advance, Resolution: w.Resolution},
		at: w.DecidedAt.UTC().Truncate(time.Microsecond)}
	seen := map[commandKey]bool{}
	for i, d := range w.Commands {
		if err := l.draftAlso(p, i, d); err != nil {
			return nil, &WriteError{err}
		}
		e := &entry{index: i, memberOf: d.MemberOf, requires: d.Requires, fired: d.Timer, stream: w.Stream,
			expected: AnyVersion, actor: d.Actor, cause: d.CommandID, commandType: d.Type, digest: d.Digest,
			correlation: d.Correlation, traceParent: d.TraceParent, command: true, kind: d.Kind, code: d.Code, text: d.Text,
			field: d.Field}
		if d.Stream != "" {
			e.stream, e.expected = d.Stream, d.Expected
		}
		if e.kind == "" {
			e.kind = envelope.Unchanged
			if len(d.Events) > 0 {
				e.kind = envelope.Committed
			}
		}
		key := commandKey{d.Actor, d.CommandID}
		if d.CommandID != "" && seen[key] {
			return nil, &WriteError{fmt.Errorf("command %s of %s is in the write twice", d.CommandID, d.Actor)}
		}
		seen[key] = true
		if (e.kind == envelope.Committed) != (len(d.Events) > 0) {
			return nil, &WriteError{fmt.Errorf("command %s is %s with %d events", d.CommandID, e.kind, len(d.Events))}
		}
		if err := l.draft(p, e, d.Events); err != nil {
			return nil, &WriteError{err}
		}
	}
	for _, a := range w.Appends {
		e := &entry{index: -1, stream: a.Stream, expected: a.Expected, actor: a.Actor, cause: a.Cause, correlation: a.Correlation,
			traceParent: a.TraceParent}
		if err := l.draft(p, e, a.Events); err != nil {
			return nil, &WriteError{err}
		}
	}
	for _, e := range p.entries {
		l.begin(ctx, e)
	}
	return p, nil
}

func (l *Log) draft(p *prepared, e *entry, events []proto.Message) error {
	for _, m := range events {
		declared, ok := l.o.Catalog.EventOf(m)
		if !ok || declared.Owner != l.o.Owner {
			return fmt.Errorf("%s is not an event of %s", m.ProtoReflect().Descriptor().FullName(), l.o.Owner)
		}
		d := draft{declared: declared, place: declared.Place(m, catalog.Origin{Actor: e.actor, CommandID: e.cause})}
		if d.place.Stream != e.stream || e.stream == "" {
			return fmt.Errorf("%s belongs to the stream %q, not to %q", declared.Name, d.place.Stream, e.stream)
		}
		plain, personal := declared.Split(m)
		var err error
		if d.set, d.cancel, err = l.timersOf(declared, m, e); err != nil {
			return err
		}
		if d.body, err = proto.Marshal(plain); err != nil {
			return fmt.Errorf("encode %s: %w", declared.Name, err)
		}
		if personal != nil {
			if d.personal, err = (proto.MarshalOptions{}).MarshalAppend([]byte{unencrypted}, personal); err != nil {
				return fmt.Errorf("encode the personal fields of %s: %w", declared.Name, err)
			}
		}
		if n := d.size(); n > maxEvent {
			return fmt.Errorf("%s has %d bytes with its rooms; the maximum is %d", declared.Name, n, maxEvent)
		}
		if d.effect = l.effects.of[declared.Name]; d.effect != nil {
			d.message = m
		}
		e.drafts = append(e.drafts, d)
		p.events++
		p.bytes += len(d.body) + len(d.personal)
	}
	p.entries = append(p.entries, e)
	return nil
}

// begin starts the trace span of an entry, within the trace of its command. The traceparent of this span is stored with
// the events.
func (l *Log) begin(ctx context.Context, e *entry) {
	ctx = telemetry.Continue(ctx, e.traceParent)
	ctx, e.span = l.o.Tracer.Start(ctx, "append "+l.o.Owner, trace.WithAttributes(
		attribute.String("db.system.name", "postgresql"), attribute.String("edumatrix.stream", e.stream),
		attribute.String("edumatrix.command.type", e.commandType), attribute.Int("edumatrix.events", len(e.drafts))))
	if t := telemetry.TraceParent(ctx); t != "" {
		e.traceParent = t
	}
}

// end ends the trace spans of a Write. Only a WriteError or an error that wraps retry.ErrUnavailable marks the spans as
// failed. Other errors, such as those after which a Write is decided again, are recorded as events of the spans.
func (p *prepared) end(err error) {
	for _, e := range p.entries {
		var rejected *WriteError
		if errors.Is(err, retry.ErrUnavailable) || errors.As(err, &rejected) {
			e.span.RecordError(err)
			e.span.SetStatus(codes.Error, "not appended")
		} else if err != nil {
			e.span.AddEvent("not admitted", trace.WithAttributes(attribute.String("reason", err.Error())))
		}
		e.span.End()
	}
}
