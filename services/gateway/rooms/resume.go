package rooms

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"time"

	"connectrpc.com/connect"

	meshv1 "github.com/edumatrix/interlinked/proto/gen/edumatrix/mesh/v1"
	"github.com/edumatrix/interlinked/services/gateway/hub"
)

// maxResumed is how many who come back are asked for in one call.
const maxResumed = 200

// resume attaches those who come back. The owner answers when they were in which rooms. The missed events come from the
// recent ones where these reach back to the mark, and otherwise from the owner, in the same call.
func (a *asker) resume(ctx context.Context, batch []newcomer) (again []newcomer, err error) {
	// First the number, then the events: all up to it are among them.
	complete := a.view.Complete()
	reach := a.view.Reach()
	recent, whole := a.recent(batch, reach)
	request := &meshv1.ResumeRequest{Limit: int32(a.options.Missed.Events), Bytes: int64(a.options.Missed.Bytes)}
	for _, n := range batch {
		after := n.had.Position
		r := &meshv1.Resumer{User: n.conn.User, After: after, EventsAfter: after, Looks: n.rooms()}
		if whole && after >= reach {
			r.EventsAfter = max(after, complete)
		}
		request.Resumers = append(request.Resumers, r)
	}
	ctx, cancel := context.WithTimeout(ctx, deadline)
	defer cancel()
	a.options.Metrics.Calls.WithLabelValues(a.owner, "resume").Inc()
	response, err := a.client.Resume(ctx, connect.NewRequest(request))
	if err != nil {
		return nil, fmt.Errorf("ask %s what %d connections missed: %w", a.owner, len(batch), err)
	}
	answers := response.Msg.Resumed
	if len(answers) == 0 || len(answers) > len(batch) {
		return nil, fmt.Errorf("ask %s what %d connections missed: %d answers", a.owner, len(batch), len(answers))
	}
	past := hub.NewPast(recent, a.events(response.Msg.Records))
	for i, answer := range answers {
		n := batch[i]
		attached := true
		a.guard(n.conn, func() {
			back := a.back(n, answer, response.Msg, past)
			a.pace.gave(n.conn.User, len(back.Missed), len(back.Rooms), a.now())
			if attached = a.view.Resume(n.conn, back); attached {
				for _, l := range n.looks {
					if a.settled(l) {
						a.view.Unlook(n.conn, l.room)
					}
					l.answer(!slices.Contains(answer.Looked, l.room))
				}
				a.attached(n.conn) // last: a client may subscribe again to what it has unsubscribed
			}
		})
		if !attached {
			again = append(again, n)
			continue
		}
		from := "log"
		if whole && n.had.Position >= reach {
			from = "recent"
		}
		a.options.Metrics.Resumed.WithLabelValues(a.owner, from).Inc()
	}
	return append(again, batch[len(answers):]...), nil
}

// maxFailures is how often one who comes back is asked for alone, before everything is too far for it.
const maxFailures = 2

// resumeFailed lets one whose return failed, alone, wait before it is asked for once more. After that it begins again, and
// fetches what it shows: so it gets on, and its user costs nobody else anything.
func (a *asker) resumeFailed(n newcomer, err error) {
	if errors.Is(err, errPanic) {
		n.conn.Close(hub.Internal)
		return
	}
	if n.failures++; n.failures < maxFailures {
		a.later(n.failures, n.conn, func() { a.alone().add(n) })
		return
	}
	a.options.Log.Warn("rooms: what a user has missed cannot be read, everything is too far", "owner", a.owner,
		"user", n.conn.User, "error", err)
	a.mu.Lock()
	a.suspects[n.conn.User] = time.Now().Add(suspectFor)
	a.mu.Unlock()
	n.marked, n.failures = false, 0
	a.beginning.add(n)
}

// alone is the lane in which those who come back are asked for each alone.
func (a *asker) alone() *lane[newcomer] {
	l := a.resuming
	for l.next != nil {
		l = l.next
	}
	return l
}

// recent lists the recent events that those need to whose mark they reach back to.
func (a *asker) recent(batch []newcomer, reach int64) ([]*hub.Event, bool) {
	after := int64(-1)
	for _, n := range batch {
		if p := n.had.Position; p >= reach && (after < 0 || p < after) {
			after = p
		}
	}
	if after < 0 {
		return nil, false
	}
	return a.view.Recent(after)
}

// back is what one connection comes back to.
func (a *asker) back(n newcomer, answer *meshv1.Resumed, response *meshv1.ResumeResponse, past *hub.Past) hub.Return {
	r := hub.Return{Position: response.Position, Looked: answer.Looked, Until: time.Now().Add(a.options.Lease)}
	var stays []hub.Stay
	for _, room := range answer.Looked {
		stays = append(stays, hub.Stay{Room: room})
	}
	for _, s := range answer.Stays {
		stays = append(stays, hub.Stay{Room: s.Room, Opened: s.Opened, Closed: s.Closed})
		if s.Closed == 0 {
			r.Rooms = append(r.Rooms, s.Room)
		}
	}
	everything := hub.Everything(n.conn.User, slices.Concat(r.Rooms, answer.Looked))
	if n.had.Position > response.Position || !n.had.Holds(hub.IncarnationOf(response.Incarnation)) {
		// The log has lost what this client has: it is not the one that the mark was made of.
		r.TooFar = everything
		return r
	}
	r.Missed, r.TooFar = past.Missed(n.conn.User, n.conn.Encoding(), n.had.Position, response.Position, stays, answer.TooFar,
		a.options.Missed)
	return r
}
