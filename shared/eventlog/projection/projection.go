// Package projection declares projections: rows that are derived from a service's log alone. A projection has a name,
// the kinds of streams that it reads, its tables, and one function for each event of these streams. The functions add
// rows to statements; a batch of events is written with one execution of each statement.
//
// Everything else follows from the declaration: which events are read and how they are decoded, the statements of a
// batch, the tables that a rebuild replaces and compares, and the checks at the start of a service. A service does not
// start if an event has neither a function nor an Ignore (or IgnoreOthers), or if a table has no projection.
//
// Follow applies the log to a projection, and package rebuild rebuilds projections.
package projection

import (
	"context"
	"fmt"
	"slices"
	"strings"

	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/reflect/protoreflect"
	"google.golang.org/protobuf/reflect/protoregistry"

	routingv1 "github.com/edumatrix/interlinked/proto/gen/edumatrix/routing/v1"
	"github.com/edumatrix/interlinked/shared/envelope"
)

// Options declare the streams and the tables of a projection.
type Options struct {
	// Streams are the kinds of streams whose events the projection reads ("conversation"). All of them are kinds of the
	// same service.
	Streams []string
	// Tables are the tables that the projection writes, without a schema. No other projection writes them.
	Tables []string
}

// Projection is a declared projection. It is declared before it is used, and does not change afterwards.
type Projection struct {
	name       string
	o          Options
	statements []*Statement
	functions  map[string]function // by event
	ignored    map[string]bool     // events that the projection leaves out on purpose
	problems   []error             // errors of the declaration, which Check returns
}

type function func(b *Batch, e Event) error

// Event is an event of a stream that a projection reads.
type Event struct {
	envelope.Event
	// ID is the part of the stream's name after the kind: "7" of "conversation:7".
	ID string
}

// Declare declares a projection. The parameter name is the key under which the projection's position is stored, and
// must never change.
func Declare(name string, o Options) *Projection {
	return &Projection{name: name, o: o, functions: map[string]function{}, ignored: map[string]bool{}}
}

// Statement declares a statement that writes rows. Its parameters are arrays with one element for each row, as
// unnest($1::text[], $2::bigint[]) takes them. The statement is executed once for each batch that has rows for it. The
// statements of a batch are executed in the order of their declaration. A statement must not name a schema, because a
// rebuild executes it in another schema.
//
// The parameter key is a number of leading columns, at most 4 (maxKey). Within a batch, a row replaces an earlier row
// that has the same values in these columns. If key is 0, each row is kept. One execution of a statement cannot change
// a row of a table twice, so an update, or an insert with ON CONFLICT DO UPDATE, needs a key.
func (p *Projection) Statement(key int, sql string) *Statement {
	s := &Statement{sql: sql, key: key}
	p.statements = append(p.statements, s)
	return s
}

// On declares the function for an event. The function adds to the batch the rows that follow from the event, or removes
// rows of the batch, and does nothing else, so that a rebuild has the same result.
func On[M proto.Message](p *Projection, apply func(b *Batch, e Event, m M)) {
	var none M
	kind := none.ProtoReflect().Type()
	name := p.add(none)
	p.functions[name] = func(b *Batch, e Event) error {
		m := kind.New().Interface()
		if err := proto.Unmarshal(e.Body, m); err != nil {
			return err
		}
		apply(b, e, m.(M))
		return nil
	}
}

// Ignore declares events that do not change the projection.
func (p *Projection) Ignore(events ...proto.Message) {
	for _, m := range events {
		p.ignored[p.add(m)] = true
	}
}

// IgnoreOthers declares that the events of the projection's streams for which On was not called before do not change
// the projection. A projection that few events change does not have to name each new event then. An event that only a
// later release knows stops the projection nevertheless, because that release may have a function for it.
func (p *Projection) IgnoreOthers() {
	protoregistry.GlobalTypes.RangeMessages(func(m protoreflect.MessageType) bool {
		e := proto.GetExtension(m.Descriptor().Options(), routingv1.E_Event).(*routingv1.Event)
		if slices.Contains(p.o.Streams, e.GetKind()) && p.functions[e.GetName()] == nil {
			p.ignored[e.GetName()] = true
		}
		return true
	})
}

// add returns the name of an event. It records a problem if the message is not an event or is declared already.
func (p *Projection) add(m proto.Message) (name string) {
	d := m.ProtoReflect().Descriptor()
	name = proto.GetExtension(d.Options(), routingv1.E_Event).(*routingv1.Event).GetName()
	switch {
	case name == "":
		p.problem("%s is not an event", d.FullName())
	case p.functions[name] != nil || p.ignored[name]:
		p.problem("event %s is declared twice", name)
	}
	return name
}

func (p *Projection) problem(format string, args ...any) {
	p.problems = append(p.problems, fmt.Errorf("projection %s: "+format, append([]any{p.name}, args...)...))
}

// Name returns the key under which the position of the projection is stored.
func (p *Projection) Name() string { return p.name }

// Tables returns the tables that the projection writes, without a schema.
func (p *Projection) Tables() []string { return slices.Clone(p.o.Tables) }

// Apply writes the rows that follow from events, in one round trip if there are rows.
func (p *Projection) Apply(ctx context.Context, tx Tx, events []envelope.Event) error {
	b := &Batch{rows: map[*Statement]*rows{}}
	for _, e := range events {
		kind, id, _ := strings.Cut(e.Stream, ":")
		if !slices.Contains(p.o.Streams, kind) || p.ignored[e.Type] {
			continue
		}
		apply, ok := p.functions[e.Type]
		if !ok {
			return fmt.Errorf("%s at version %d: this release has no function for the event %s", e.Stream, e.Version, e.Type)
		}
		if err := apply(b, Event{Event: e, ID: id}); err != nil {
			return fmt.Errorf("%s at version %d: event %s: %w", e.Stream, e.Version, e.Type, err)
		}
	}
	statements, err := b.statements(p.statements)
	if err != nil || statements.Len() == 0 {
		return err
	}
	return tx.SendBatch(ctx, statements).Close()
}
