package fake

import (
	"context"
	"errors"
	"fmt"
	"maps"
	"slices"

	"connectrpc.com/connect"

	"github.com/edumatrix/interlinked/proto/catalog"
	meshv1 "github.com/edumatrix/interlinked/proto/gen/edumatrix/mesh/v1"
	"github.com/edumatrix/interlinked/shared/envelope"
)

// Resume returns the events that users have missed. It does not redact events, because gateways do so themselves
// (hub.NewMissedEvents).
func (o *Owner) Resume(ctx context.Context, r *connect.Request[meshv1.ResumeRequest]) (
	*connect.Response[meshv1.ResumeResponse], error) {
	if err := o.hang(ctx, r.Msg); err != nil {
		return nil, err
	}
	o.mu.Lock()
	defer o.mu.Unlock()
	if err := o.here(); err != nil {
		return nil, err
	}
	o.resumed++
	o.bounds = fmt.Sprint(r.Msg.Limit, " ", r.Msg.Bytes)
	answer := &meshv1.ResumeResponse{Incarnation: o.history, Position: int64(len(o.log))}
	wanted := map[catalog.Position]bool{}
	for _, one := range r.Msg.Resumers {
		if one.User == o.failing {
			return nil, connect.NewError(connect.CodeDeadlineExceeded, errors.New("it took too long"))
		}
		answer.Resumed = append(answer.Resumed, o.missed(one, r.Msg.Limit, wanted))
	}
	for _, position := range slices.Sorted(maps.Keys(wanted)) {
		answer.Records = append(answer.Records, o.record(position))
	}
	return connect.NewResponse(answer), nil
}

// missed returns the answer for one resuming user, and adds the positions of the missed events to the map wanted.
func (o *Owner) missed(one *meshv1.Resumer, limit int32, wanted map[catalog.Position]bool) *meshv1.Resumed {
	answer := &meshv1.Resumed{}
	during := map[string][]*meshv1.MembershipInterval{catalog.UserRoom(one.User): {{}}}
	for _, s := range o.stays[one.User] {
		if s.Closed == 0 || s.Closed > one.After {
			s := &meshv1.MembershipInterval{Room: s.Room, Opened: s.Opened, Closed: s.Closed}
			answer.Intervals = append(answer.Intervals, s)
			during[s.Room] = append(during[s.Room], s)
		}
	}
	for _, room := range one.Subscriptions {
		if o.allowed[one.User+" "+room] {
			answer.Subscribed = append(answer.Subscribed, room)
			during[room] = []*meshv1.MembershipInterval{{}}
		}
	}
	for room, stays := range during {
		n := int32(0)
		for _, s := range stays {
			all := o.inRoom[room]
			from, _ := slices.BinarySearch(all, catalog.Position(max(one.EventsAfter+1, s.Opened)))
			for _, position := range all[from:] {
				if s.Closed > 0 && position > catalog.Position(s.Closed) {
					break
				}
				wanted[position] = true
				n++
			}
		}
		if n > limit {
			answer.NotRecovered = append(answer.NotRecovered, room)
		}
	}
	return answer
}

// record returns the event at a position as a record of its topic.
func (o *Owner) record(position catalog.Position) *meshv1.Record {
	r := o.records[position]
	if r == nil {
		e := o.log[position-1]
		declared, _ := o.Catalog.Event(e.Type)
		r = e.Record(declared.Topic)
		o.records[position] = r
	}
	return r
}

// index adds a new event to the fields inRoom, open and stays, for Resume.
func (o *Owner) index(e envelope.Event) {
	rooms := slices.Clone(e.Rooms)
	slices.Sort(rooms)
	for _, room := range slices.Compact(rooms) {
		o.inRoom[room] = append(o.inRoom[room], e.Position)
	}
	for _, m := range e.Opens {
		for _, user := range m.Users {
			if o.open[user+" "+m.Room] == nil {
				s := &meshv1.MembershipInterval{Room: m.Room, Opened: int64(e.Position)}
				o.open[user+" "+m.Room] = s
				o.stays[user] = append(o.stays[user], s)
			}
		}
	}
	for _, m := range e.Closes {
		for _, user := range m.Users {
			if s := o.open[user+" "+m.Room]; s != nil {
				s.Closed = int64(e.Position)
				delete(o.open, user+" "+m.Room)
			}
		}
	}
}

// hang waits if the request includes the user that was passed to HangFor. The wait ends when the test calls
// the function that it got from HangFor, or when ctx ends.
func (o *Owner) hang(ctx context.Context, r *meshv1.ResumeRequest) error {
	o.mu.Lock()
	user := o.hanging
	o.mu.Unlock()
	if user == "" || !slices.ContainsFunc(r.Resumers, func(one *meshv1.Resumer) bool { return one.User == user }) {
		return nil
	}
	o.held <- struct{}{}
	select {
	case <-o.release:
		return nil
	case <-ctx.Done():
		return connect.NewError(connect.CodeDeadlineExceeded, ctx.Err())
	}
}
