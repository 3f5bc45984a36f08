package rooms

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"time"

	"connectrpc.com/connect"

	"github.com/edumatrix/interlinked/proto/catalog"
	meshv1 "github.com/edumatrix/interlinked/proto/gen/edumatrix/mesh/v1"
	"github.com/edumatrix/interlinked/services/gateway/hub"
	"github.com/edumatrix/interlinked/shared/interval"
)

// maxResumed bounds the resuming connections of one call.
const maxResumed = 200

// resume attaches connections that resume. The owner answers with the membership intervals of their users. If the event
// buffer reaches back to the resume token of a connection, the missed events of this connection come from the buffer,
// and only those above Shard.Complete from the owner. Otherwise all of them come from the owner. One call returns both
// intervals and events. resume returns the connections for which the owner must be asked again.
func (a *ownerCalls) resume(ctx context.Context, batch []attaching) (retry []attaching, err error) {
	// Call Complete before reading the buffer, so that the buffer contains the events up to the returned position.
	complete := a.shard.Complete()
	bufferedAfter := a.shard.BufferedAfter()
	buffered, whole := a.buffered(batch, bufferedAfter)
	request := &meshv1.ResumeRequest{Limit: int32(a.options.Missed.Events), Bytes: int64(a.options.Missed.Bytes)}
	for _, n := range batch {
		after := n.point.Position
		r := &meshv1.Resumer{User: n.conn.User, After: int64(after), EventsAfter: int64(after), Subscriptions: n.rooms()}
		if whole && after >= bufferedAfter {
			r.EventsAfter = int64(max(after, complete))
		}
		request.Resumers = append(request.Resumers, r)
	}
	ctx, cancel := context.WithTimeout(ctx, deadline)
	defer cancel()
	a.options.Metrics.Calls.WithLabelValues(a.owner, "resume").Inc()
	response, err := a.client.Resume(ctx, connect.NewRequest(request))
	if err != nil {
		return nil, fmt.Errorf("ask %s for the missed events of %d connections: %w", a.owner, len(batch), err)
	}
	answers := response.Msg.Resumed
	if len(answers) == 0 || len(answers) > len(batch) {
		return nil, fmt.Errorf("ask %s for the missed events of %d connections: %d answers", a.owner, len(batch), len(answers))
	}
	missed := hub.NewMissedEvents(buffered, a.events(response.Msg.Records))
	for i, answer := range answers {
		n := batch[i]
		attached := true
		a.guard(n.conn, func() {
			resumed := a.attachmentOf(n, answer, response.Msg, missed)
			a.pace.charge(n.conn.User, len(resumed.Missed), len(resumed.Rooms), a.now())
			if attached = a.shard.Attach(n.conn, resumed); attached {
				for _, l := range n.subscriptions {
					if a.settled(l) {
						a.shard.Unsubscribe(n.conn, l.room)
					}
					l.answer(!slices.Contains(answer.Subscribed, l.room))
				}
				// Call attached after the loop, which ends the subscriptions that the client no longer wants. The client
				// may have subscribed to the same room again, and attached begins this new subscription.
				a.attached(n.conn)
			}
		})
		if !attached {
			retry = append(retry, n)
			continue
		}
		from := "log"
		if whole && n.point.Position >= bufferedAfter {
			from = "recent"
		}
		a.options.Metrics.Resumed.WithLabelValues(a.owner, from).Inc()
	}
	return append(retry, batch[len(answers):]...), nil
}

// maxFailures is the number of failed calls for one resuming connection alone after which the gateway gives up: no room
// of the connection is recovered.
const maxFailures = 2

// resumeFailed handles the failure of a call for one connection alone. It closes the connection if the call panicked,
// and otherwise repeats the call after a delay (see ownerCalls.later). After maxFailures failed calls, the connection
// is attached without missed events, and the client has to fetch the current state itself. So the client gets
// connected, and does not delay other users. The user becomes a suspect (see ownerCalls.suspects).
func (a *ownerCalls) resumeFailed(n attaching, err error) {
	if errors.Is(err, errPanic) {
		n.conn.Close(hub.Internal)
		return
	}
	if n.failures++; n.failures < maxFailures {
		a.later(n.failures, n.conn, func() { a.single().add(n) })
		return
	}
	a.options.Log.Warn("rooms: the missed events of a user cannot be read, so no room is recovered", "owner", a.owner,
		"user", n.conn.User, "error", err)
	a.mu.Lock()
	a.suspects[n.conn.User] = time.Now().Add(suspectFor)
	a.mu.Unlock()
	n.hasProgress, n.failures = false, 0
	a.beginning.add(n)
}

// single returns the last lane for resuming connections, whose calls are for one connection each.
func (a *ownerCalls) single() *lane[attaching] {
	l := a.resuming
	for l.next != nil {
		l = l.next
	}
	return l
}

// buffered finds, among the resume tokens of a batch, those to which the buffer reaches back, and returns the buffered
// events above the lowest position of these tokens. It returns false if the buffer reaches back to none of the tokens,
// or has dropped some of these events since the caller read bufferedAfter.
func (a *ownerCalls) buffered(batch []attaching, bufferedAfter catalog.Position) ([]*hub.Event, bool) {
	after := catalog.Position(-1)
	for _, n := range batch {
		if p := n.point.Position; p >= bufferedAfter && (after < 0 || p < after) {
			after = p
		}
	}
	if after < 0 {
		return nil, false
	}
	return a.shard.Buffered(after)
}

// attachmentOf returns the owner's answer for one connection, with its missed events.
func (a *ownerCalls) attachmentOf(n attaching, answer *meshv1.Resumed, response *meshv1.ResumeResponse,
	missed *hub.MissedEvents) hub.Attachment {
	r := hub.Attachment{Position: catalog.Position(response.Position), Subscribed: answer.Subscribed, Until: time.Now().Add(a.options.Lease)}
	absence := hub.Absence{After: n.point.Position, Until: catalog.Position(response.Position), Subscribed: answer.Subscribed, NotRecovered: answer.NotRecovered}
	for _, s := range answer.Intervals {
		absence.Intervals = append(absence.Intervals, interval.Interval{Room: s.Room, From: catalog.Position(s.Opened), Until: catalog.Position(s.Closed)})
		if s.Closed == 0 {
			r.Rooms = append(r.Rooms, s.Room)
		}
	}
	everything := hub.AllRooms(n.conn.User, slices.Concat(r.Rooms, answer.Subscribed))
	if n.point.Position > catalog.Position(response.Position) || !n.point.Holds(hub.IncarnationOf(response.Incarnation)) {
		// The log has lost events that the client has, or may have lost them (see hub.Point). So the position in the
		// resume token does not apply to this log any more.
		r.NotRecovered = everything
		return r
	}
	r.Missed, r.NotRecovered = missed.Of(n.conn.User, n.conn.Encoding(), absence, a.options.Missed)
	return r
}
