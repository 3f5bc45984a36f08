package owner

import (
	"errors"
	"fmt"
	"runtime/debug"
	"time"

	"go.opentelemetry.io/otel/attribute"
	"go.opentelemetry.io/otel/codes"
	"go.opentelemetry.io/otel/trace"
	"google.golang.org/protobuf/proto"

	"github.com/edumatrix/interlinked/proto/catalog"
	"github.com/edumatrix/interlinked/proto/refusal"
	"github.com/edumatrix/interlinked/shared/envelope"
	"github.com/edumatrix/interlinked/shared/eventlog"
	"github.com/edumatrix/interlinked/shared/telemetry"
)

// decidedRun is what a run of commands came to.
type decidedRun struct {
	write   eventlog.Write
	decided []*asked // those that the Write contains, in its order
	putOff  []*asked // those that cannot be decided yet
}

// decide asks the aggregate about each command in turn; each sees what those before it lead to.
func (d *decider) decide(h *held, at time.Time, run []*asked) (r decidedRun, err error) {
	r.write.Expected, r.write.DecidedAt = eventlog.AnyVersion, at
	for _, a := range run {
		one, err := d.decideOne(h, at, a)
		if notYet, is := refusal.IsNotYet(err); is {
			a.notYet, r.putOff = notYet, append(r.putOff, a)
			continue
		}
		if err != nil {
			return decidedRun{decided: run}, fmt.Errorf("decide %s for %s: %w", a.command.Type, a.command.Stream, err)
		}
		r.write.Commands, r.decided = append(r.write.Commands, one), append(r.decided, a)
	}
	return r, nil
}

// decideOne turns a panic of an aggregate into an error: it costs the command, not the service.
func (d *decider) decideOne(h *held, at time.Time, a *asked) (one eventlog.Decided, err error) {
	ctx, span := d.tracer.Start(a.trace, "decide "+a.command.Type,
		trace.WithAttributes(attribute.String("edumatrix.stream", a.command.Stream)))
	defer span.End()
	defer func() {
		if p := recover(); p != nil {
			d.logger.Error("deciding panicked", "command", a.command.ID, "type", a.command.Type, "panic", p,
				"stack", string(debug.Stack()))
			err = fmt.Errorf("panic: %v", p)
		}
		if err != nil {
			span.SetStatus(codes.Error, err.Error())
		}
	}()
	by := a.origin()
	by.At, by.Version = at, h.version
	one = eventlog.Decided{Actor: a.command.Actor, CommandID: a.command.ID, Type: a.command.Type, Digest: a.digest,
		Correlation: a.command.Correlation, TraceParent: telemetry.TraceParent(ctx), Stream: a.command.Stream,
		Expected: h.version, Timer: a.timer}
	switch {
	case a.refused != nil:
		refuse(&one, a.refused)
	case !a.command.Expires.IsZero() && d.now().After(a.command.Expires):
		refuse(&one, refusal.New(refusal.Expired, "the command arrived after it had expired"))
	default:
		one.MemberOf = a.declared.MemberOf(a.message, by)
		err = d.askState(h, by, a, &one)
	}
	span.SetAttributes(attribute.String("edumatrix.outcome", string(one.Kind)))
	return one, err
}

func refuse(one *eventlog.Decided, r *refusal.Error) {
	one.Kind, one.Code, one.Text = envelope.Refused, r.Code, r.Text
}

// askState has the aggregate decide, and applies what it decides.
func (d *decider) askState(h *held, by catalog.Origin, a *asked, one *eventlog.Decided) error {
	events, err := h.state.Decide(by, a.message)
	if refused, is := refusal.Of(err); is {
		refuse(one, refused)
		return nil
	}
	if err != nil {
		return err
	}
	if one.Kind = envelope.Unchanged; len(events) == 0 {
		return nil
	}
	one.Kind = envelope.Committed
	for _, e := range events {
		also := eventlog.Also{Expected: eventlog.AnyVersion, Event: e}
		if x, is := e.(catalog.Expecting); is {
			if x.Otherwise == nil {
				return fmt.Errorf("%s expects a version, but has no refusal", x.ProtoReflect().Descriptor().FullName())
			}
			also = eventlog.Also{Expected: x.Version, Otherwise: x.Otherwise, Event: x.Message}
		}
		place := catalog.Place{Stream: a.command.Stream}
		if declared, ok := d.catalog.EventOf(also.Event); ok {
			place = declared.Place(also.Event, by)
		}
		if place.Stream != a.command.Stream {
			also.Stream = place.Stream
			one.Also = append(one.Also, also)
			continue
		}
		h.version++
		one.Events = append(one.Events, also.Event)
		h.state.Evolve(catalog.NewFact(a.command.Actor, h.version, by.At, &h.timeRead), also.Event)
		h.grow(place.Subject, proto.Size(also.Event))
	}
	if len(one.Events) == 0 {
		return errors.New("none of the events belongs to the stream that the command changes")
	}
	return nil
}

const (
	// notYetPatience is for how long a command is decided again that rests on something not known yet.
	notYetPatience = 2 * time.Second
	notYetPause    = 50 * time.Millisecond
)

// putOff has a command decided again after a while, behind those of its stream that came since. When it has waited long
// enough it is answered without an outcome: the same command may be sent again.
func (d *decider) putOff(a *asked) {
	now := time.Now()
	if a.since.IsZero() {
		a.since = now
	}
	if now.Sub(a.since) >= d.patience || d.ctx.Err() != nil {
		a.answer <- answer{result: envelope.Result{Actor: a.command.Actor, CommandID: a.command.ID, Type: a.command.Type,
			Source: a.declared.Owner, Stream: a.command.Stream, Kind: envelope.Refused, Code: refusal.Unavailable,
			Text: a.notYet.Text + "; send the command again with the same id", TraceParent: a.command.TraceParent}}
		return
	}
	time.AfterFunc(notYetPause, func() { d.ask(a) })
}

// digestOf is that of a command which may not be readable.
func (d *decider) digestOf(c envelope.Command) string {
	if declared, ok := d.catalog.Command(c.Type); ok {
		body := declared.Type.New().Interface()
		if proto.Unmarshal(c.Body, body) == nil {
			return digestOfMessage(c, body)
		}
	}
	return digest(c, c.Body)
}

// digestOfMessage does not depend on how the gateway encoded the message.
func digestOfMessage(c envelope.Command, body proto.Message) string {
	canonical, err := proto.MarshalOptions{Deterministic: true}.Marshal(body)
	if err != nil {
		return ""
	}
	return digest(c, canonical)
}
