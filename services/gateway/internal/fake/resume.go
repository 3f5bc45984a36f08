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

// Resume returns what users have missed. Events deleted since come as they were: gateways redact what they kept.
func (o *Owner) Resume(ctx context.Context, r *connect.Request[meshv1.ResumeRequest]) (
	*connect.Response[meshv1.ResumeResponse], error) {
	if err := o.hang(ctx, r.Msg); err != nil {
		return nil, err
	}
	o.mu.Lock()
	if err := o.here(); err != nil {
		o.mu.Unlock()
		return nil, err
	}
	o.resumed++
	o.bounds = fmt.Sprint(r.Msg.Limit, " ", r.Msg.Bytes)
	// The rest takes a while where somebody has many rooms, during which a database would answer others: events are only
	// ever appended.
	log, history, failing, looked := o.log, o.history, o.failing, maps.Clone(o.looked)
	o.mu.Unlock()
	answer := &meshv1.ResumeResponse{Incarnation: history, Position: int64(len(log))}
	wanted := map[int64]bool{}
	for _, one := range r.Msg.Resumers {
		if one.User == failing {
			return nil, connect.NewError(connect.CodeDeadlineExceeded, errors.New("it took too long"))
		}
		told := &meshv1.Resumed{}
		for _, s := range stays(log, one.User) {
			if s.Closed == 0 || s.Closed > one.After {
				told.Stays = append(told.Stays, s)
			}
		}
		for _, room := range one.Looks {
			if looked[one.User+" "+room] {
				told.Looked = append(told.Looked, room)
			}
		}
		counts := map[string]int32{}
		known := map[string][]*meshv1.Stay{}
		for _, s := range told.Stays {
			known[s.Room] = append(known[s.Room], s)
		}
		for _, e := range log[min(one.EventsAfter, int64(len(log))):] {
			for _, room := range e.Rooms {
				if within(known[room], one.User, room, e.Position) || slices.Contains(told.Looked, room) {
					wanted[e.Position] = true
					counts[room]++
				}
			}
		}
		for room, n := range counts {
			if n > r.Msg.Limit {
				told.TooFar = append(told.TooFar, room)
			}
		}
		answer.Resumed = append(answer.Resumed, told)
	}
	for _, e := range log {
		if declared, _ := o.Catalog.Event(e.Type); wanted[e.Position] {
			answer.Records = append(answer.Records, e.Record(declared.Topic))
		}
	}
	return connect.NewResponse(answer), nil
}

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

func within(stays []*meshv1.Stay, user, room string, position int64) bool {
	return room == catalog.UserRoom(user) || slices.ContainsFunc(stays, func(s *meshv1.Stay) bool {
		return s.Room == room && s.Opened <= position && (s.Closed == 0 || position <= s.Closed)
	})
}

// stays are all that a user ever had.
func stays(log []envelope.Event, user string) (all []*meshv1.Stay) {
	open := map[string]*meshv1.Stay{}
	in := func(m catalog.Membership) bool { return slices.Contains(m.Users, user) }
	for _, e := range log {
		turn(e, in, func(room string) {
			if open[room] == nil {
				open[room] = &meshv1.Stay{Room: room, Opened: e.Position}
				all = append(all, open[room])
			}
		}, func(room string) {
			if open[room] != nil {
				open[room].Closed = e.Position
				delete(open, room)
			}
		})
	}
	return all
}

func turn(e envelope.Event, in func(catalog.Membership) bool, opens, closes func(room string)) {
	for _, m := range e.Opens {
		if in(m) {
			opens(m.Room)
		}
	}
	for _, m := range e.Closes {
		if in(m) {
			closes(m.Room)
		}
	}
}
