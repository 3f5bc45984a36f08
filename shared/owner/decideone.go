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
	"github.com/edumatrix/interlinked/shared/command"
	"github.com/edumatrix/interlinked/shared/envelope"
	"github.com/edumatrix/interlinked/shared/eventlog"
	"github.com/edumatrix/interlinked/shared/telemetry"
)

// decidedBatch is the result of deciding a batch of commands.
type decidedBatch struct {
	write   eventlog.Write
	decided []*pendingCommand // the commands of write.Commands, in the same order
	putOff  []*pendingCommand // commands that cannot be decided yet
}

// decide decides the commands in turn, each on a state that includes the events of the earlier commands.
func (d *decider) decide(h *loadedState, at time.Time, batch []*pendingCommand) (r decidedBatch, err error) {
	r.write.Expected, r.write.DecidedAt = eventlog.AnyVersion, at
	merged := 0 // the number of commands that are decided or merged into an earlier one
	for i, pc := range batch {
		m := pc.message
		if i >= merged {
			m, merged = d.merge(h.state, batch[i:])
			merged += i
		}
		one, err := d.decideOne(h, at, pc, m)
		if notYet, is := refusal.IsNotYet(err); is {
			pc.notYet, r.putOff = notYet, append(r.putOff, pc)
			continue
		}
		if err != nil {
			return decidedBatch{decided: batch}, fmt.Errorf("decide %s for %s: %w", pc.command.Type, pc.command.Stream, err)
		}
		r.write.Commands, r.decided = append(r.write.Commands, one), append(r.decided, pc)
	}
	return r, nil
}

// merge merges the first command with those that follow it, as far as the aggregate can merge them (see Merging). It
// returns the merged command and the number of commands in it, which is 1 if the first command stays as it is.
func (d *decider) merge(state State, batch []*pendingCommand) (m proto.Message, commands int) {
	m = batch[0].message
	merging, ok := state.(Merging)
	if !ok || !d.mergeable(batch[0]) {
		return m, 1
	}
	for i, pc := range batch[1:] {
		if pc.declared != batch[0].declared || pc.command.Actor != batch[0].command.Actor || !d.mergeable(pc) {
			return m, i + 1
		}
		both := merging.Merge(m, pc.message)
		if both == nil {
			return m, i + 1
		}
		m = both
	}
	return m, len(batch)
}

// mergeable reports whether the aggregate decides a command: a command that is refused anyway must have no effect.
func (d *decider) mergeable(pc *pendingCommand) bool { return pc.refused == nil && !d.expired(pc) }

func (d *decider) expired(pc *pendingCommand) bool {
	return !pc.command.Expires.IsZero() && d.now().After(pc.command.Expires)
}

// decideOne decides one command. The parameter message is the command's own message, or one into which later commands
// were merged. It turns a panic of the aggregate into an error of this command.
func (d *decider) decideOne(h *loadedState, at time.Time, pc *pendingCommand, message proto.Message) (decided eventlog.Decided, err error) {
	ctx, span := d.tracer.Start(pc.trace, "decide "+pc.command.Type,
		trace.WithAttributes(attribute.String("edumatrix.stream", pc.command.Stream)))
	defer span.End()
	defer func() {
		if p := recover(); p != nil {
			d.logger.Error("deciding panicked", "command", pc.command.ID, "type", pc.command.Type, "panic", p,
				"stack", string(debug.Stack()))
			err = fmt.Errorf("panic: %v", p)
		}
		if err != nil {
			span.SetStatus(codes.Error, err.Error())
		}
	}()
	origin := pc.origin()
	origin.At, origin.Version, origin.Room = at, h.version, pc.room
	decided = eventlog.Decided{Actor: pc.command.Actor, CommandID: pc.command.ID, Type: pc.command.Type, Digest: pc.digest,
		Correlation: pc.command.Correlation, TraceParent: telemetry.TraceParent(ctx), Stream: pc.command.Stream,
		Expected: h.version, Timer: pc.timer}
	switch {
	case pc.refused != nil:
		refuse(&decided, pc.refused)
	case d.expired(pc):
		refuse(&decided, command.Expired)
	default:
		decided.MemberOf = pc.declared.MemberOf(pc.message, origin)
		decided.Requires = pc.declared.Requires(pc.message, origin)
		err = d.decideWithState(h, origin, pc, message, &decided)
	}
	span.SetAttributes(attribute.String("edumatrix.outcome", string(decided.Kind)))
	return decided, err
}

func refuse(decided *eventlog.Decided, r *refusal.Error) {
	decided.Kind, decided.Code, decided.Text, decided.Field = envelope.Refused, r.Code, r.Text, r.Field
}

// decideWithState lets the aggregate decide the parameter message, stores the result in the parameter decided, and
// applies the new events of the aggregate's own stream to the aggregate.
func (d *decider) decideWithState(h *loadedState, origin catalog.Origin, pc *pendingCommand, message proto.Message,
	decided *eventlog.Decided) error {
	events, err := h.state.Decide(origin, message)
	if refused, is := refusal.Of(err); is {
		refuse(decided, refused)
		return nil
	}
	if err != nil {
		return err
	}
	if decided.Kind = envelope.Unchanged; len(events) == 0 {
		return nil
	}
	decided.Kind = envelope.Committed
	for _, e := range events {
		also := eventlog.Also{Expected: eventlog.AnyVersion, Event: e}
		if x, is := e.(catalog.Expecting); is {
			if x.Otherwise == nil {
				return fmt.Errorf("%s expects a version, but has no refusal", x.ProtoReflect().Descriptor().FullName())
			}
			also = eventlog.Also{Expected: x.Version, Otherwise: x.Otherwise, Event: x.Message}
		}
		place := catalog.Place{Stream: pc.command.Stream}
		if declared, ok := d.catalog.EventOf(also.Event); ok {
			place = declared.Place(also.Event, origin)
		}
		if place.Stream != pc.command.Stream {
			also.Stream = place.Stream
			decided.Also = append(decided.Also, also)
			continue
		}
		h.version++
		decided.Events = append(decided.Events, also.Event)
		h.state.Evolve(catalog.NewFact(pc.command.Actor, h.version, origin.At, &h.timeRead), also.Event)
		h.grow(place.Subject, proto.Size(also.Event))
	}
	if len(decided.Events) == 0 {
		return errors.New("none of the events belongs to the stream that the command changes")
	}
	return nil
}

const (
	// notYetPatience is how long a command that lacks a fact (refusal.NotYetError) is retried.
	notYetPatience = 2 * time.Second
	notYetPause    = 50 * time.Millisecond
)

// putOff queues a command again after a pause, behind the commands of its stream that have arrived meanwhile. After
// d.patience, or when d.ctx has ended, it refuses the command instead. This refusal is not stored, so the sender may
// send the command again.
func (d *decider) putOff(pc *pendingCommand) {
	now := time.Now()
	if pc.since.IsZero() {
		pc.since = now
	}
	if now.Sub(pc.since) >= d.patience || d.ctx.Err() != nil {
		t := command.Topics{Service: pc.declared.Owner}
		pc.outcome <- commandOutcome{Outcome: t.Refused(pc.command,
			refusal.New(refusal.Unavailable, "%s; send the command again with the same id", pc.notYet.Text))}
		return
	}
	time.AfterFunc(notYetPause, func() { d.enqueue(pc) })
}

// digestOf returns the digest of a command. If the type is not declared or the body cannot be decoded, the digest is
// computed from the encoded body.
func (d *decider) digestOf(c envelope.Command) string {
	if declared, ok := d.catalog.Command(c.Type); ok {
		body := declared.Type.New().Interface()
		if proto.Unmarshal(c.Body, body) == nil {
			return digestOfMessage(c, body)
		}
	}
	return digest(c, c.Body)
}

// digestOfMessage returns the digest of a command with a decoded body. The digest does not depend on how the gateway
// encoded the body, and is "" if the body cannot be encoded.
func digestOfMessage(c envelope.Command, body proto.Message) string {
	canonical, err := proto.MarshalOptions{Deterministic: true}.Marshal(body)
	if err != nil {
		return ""
	}
	return digest(c, canonical)
}
