package rooms

import (
	"cmp"
	"context"
	"fmt"
	"slices"
	"time"

	"connectrpc.com/connect"

	meshv1 "github.com/edumatrix/interlinked/proto/gen/edumatrix/mesh/v1"
	"github.com/edumatrix/interlinked/services/gateway/hub"
)

// mostResumed is how many who come back are asked for in one call.
const mostResumed = 200

// resume attaches those who come back. The owner tells when they were in which rooms. What happened there comes from the
// recent events where they reach back to the mark, and what those lack from the owner, in the same call.
//
// An answer may fail, or take too long, because of one of them. Whoever was in such a call goes behind all others, and
// is asked for among half as many: what one of them needs costs the rest a few calls, and then nothing.
func (a *asker) resume(ctx context.Context, batch []newcomer) (again []newcomer, err error) {
	slices.SortStableFunc(batch, func(a, b newcomer) int { return cmp.Compare(b.most(), a.most()) })
	for len(batch) > 0 {
		n := together(batch)
		answered, late, err := a.resumeSome(ctx, batch[:n])
		again = append(again, late...)
		if err != nil {
			a.want(func() { a.attaching = append(a.attaching, halved(batch[:n])...) })
			return append(again, batch[n:]...), err
		}
		batch = batch[answered:]
	}
	return again, nil
}

func (n newcomer) most() int { return cmp.Or(n.among, mostResumed) }

// together is how many of a batch, from its beginning, are asked for in one call.
func together(batch []newcomer) (n int) {
	for n < len(batch) && n < batch[n].most() {
		n++
	}
	return n
}

func halved(batch []newcomer) []newcomer {
	batch = slices.Clone(batch)
	for i := range batch {
		batch[i].among = max(1, len(batch)/2)
	}
	return batch
}

// resumeSome says how many of a batch were answered, and who of those has to be asked for again.
func (a *asker) resumeSome(ctx context.Context, batch []newcomer) (answered int, again []newcomer, err error) {
	// First the number, then the events: all up to it are among them.
	complete := a.options.Complete(a.owner)
	reach := a.view.Reach()
	recent, whole := a.recent(batch, reach)
	request := &meshv1.ResumeRequest{Limit: int32(a.options.Missed.Events), Bytes: int64(a.options.Missed.Bytes)}
	for _, n := range batch {
		r := &meshv1.Resumer{User: n.conn.User, After: n.after, EventsAfter: n.after, Looks: n.looks}
		if whole && n.after >= reach {
			r.EventsAfter = max(n.after, complete)
		}
		request.Resumers = append(request.Resumers, r)
	}
	ctx, cancel := context.WithTimeout(ctx, deadline)
	defer cancel()
	a.options.Metrics.Calls.WithLabelValues(a.owner, "resume").Inc()
	response, err := a.client.Resume(ctx, connect.NewRequest(request))
	if err != nil {
		return 0, nil, fmt.Errorf("ask %s what %d connections missed: %w", a.owner, len(batch), err)
	}
	answers, position := response.Msg.Resumed, response.Msg.Position
	if len(answers) == 0 || len(answers) > len(batch) {
		return 0, nil, fmt.Errorf("ask %s what %d connections missed: %d answers", a.owner, len(batch), len(answers))
	}
	past := hub.NewPast(recent, a.events(response.Msg.Records))
	for i, answer := range answers {
		n := batch[i]
		if !a.view.Resume(n.conn, a.back(n, answer, position, past)) {
			again = append(again, n)
			continue
		}
		for _, room := range n.looks {
			n.answer(room, !slices.Contains(answer.Looked, room))
		}
		from := "log"
		if whole && n.after >= reach {
			from = "recent"
		}
		a.options.Metrics.Resumed.WithLabelValues(a.owner, from).Inc()
	}
	return len(answers), again, nil
}

// recent lists the recent events that those need to whose mark they reach back to.
func (a *asker) recent(batch []newcomer, reach int64) ([]*hub.Event, bool) {
	after := int64(-1)
	for _, n := range batch {
		if n.after >= reach && (after < 0 || n.after < after) {
			after = n.after
		}
	}
	if after < 0 {
		return nil, false
	}
	return a.view.Recent(after)
}

// back is what one connection comes back to.
func (a *asker) back(n newcomer, answer *meshv1.Resumed, position int64, past *hub.Past) hub.Return {
	r := hub.Return{Position: position, Looked: answer.Looked, Until: time.Now().Add(a.options.Lease)}
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
	if n.after > position {
		// The log has lost what this client has: it is not the one that the mark was made of.
		r.TooFar = append(everything(n.conn.User, r.Rooms), answer.Looked...)
		return r
	}
	r.Missed, r.TooFar = past.Missed(n.conn.User, n.after, position, stays, answer.TooFar, a.options.Missed)
	return r
}
