package owner

import (
	"context"
	"fmt"

	"connectrpc.com/connect"

	meshv1 "github.com/edumatrix/interlinked/proto/gen/edumatrix/mesh/v1"
	"github.com/edumatrix/interlinked/shared/eventlog"
)

// Look authorizes lookers to look at rooms, for a minute, and returns the newest value of what a room shows where that is
// wanted. It is called once for all lookers of a request, so that it needs one query and not one each. Its answers have
// the order of the lookers.
type Look func(ctx context.Context, lookers []*meshv1.Looker) ([]*meshv1.Looked, error)

// server is what other services ask of a log's owner. It stands on the inner listener alone.
type server struct {
	log  *eventlog.Log
	look Look // nil: nothing may be looked at
}

// ReadLog serves the log in pages.
func (s *server) ReadLog(ctx context.Context, r *connect.Request[meshv1.ReadLogRequest]) (*connect.Response[meshv1.ReadLogResponse], error) {
	page, err := s.log.Read(ctx, eventlog.Query{After: r.Msg.GetAfter(), Until: r.Msg.GetUntil(),
		Limit: int(r.Msg.GetLimit()), Topic: r.Msg.GetTopic(), Stream: r.Msg.GetStream(),
		AfterVersion: r.Msg.GetAfterVersion(), Partition: r.Msg.GetPartition(), Partitions: r.Msg.GetPartitions()})
	if err != nil {
		return nil, err
	}
	return connect.NewResponse(&meshv1.ReadLogResponse{Records: page.Records(), Complete: page.Complete, Head: page.Head,
		Incarnation: page.Incarnation}), nil
}

// Rooms says which rooms users are in, as of one position.
func (s *server) Rooms(ctx context.Context, r *connect.Request[meshv1.RoomsRequest]) (*connect.Response[meshv1.RoomsResponse], error) {
	rooms, asOf, err := s.log.Rooms(ctx, r.Msg.GetUsers())
	if err != nil {
		return nil, err
	}
	answer := &meshv1.RoomsResponse{Position: asOf.Position, Incarnation: asOf.Incarnation}
	for _, user := range r.Msg.GetUsers() {
		answer.Users = append(answer.Users, &meshv1.UserRooms{User: user, Rooms: rooms[user]})
	}
	return connect.NewResponse(answer), nil
}

// Resume says where users were since a position, and what was logged there.
func (s *server) Resume(ctx context.Context, r *connect.Request[meshv1.ResumeRequest]) (*connect.Response[meshv1.ResumeResponse], error) {
	resumers := make([]eventlog.Resumer, len(r.Msg.GetResumers()))
	var lookers []*meshv1.Looker
	var of []int // the resumer of each
	for i, one := range r.Msg.GetResumers() {
		resumers[i] = eventlog.Resumer{User: one.GetUser(), After: one.GetAfter(), EventsAfter: one.GetEventsAfter()}
		for _, room := range one.GetLooks() {
			lookers, of = append(lookers, &meshv1.Looker{User: one.GetUser(), Room: room}), append(of, i)
		}
	}
	looked, err := s.authorize(ctx, lookers)
	if err != nil {
		return nil, err
	}
	for n, l := range looked {
		if l.GetAllowed() {
			resumers[of[n]].Looks = append(resumers[of[n]].Looks, lookers[n].GetRoom())
		}
	}
	missed, err := s.log.Resume(ctx, resumers,
		eventlog.Bounds{Events: int(r.Msg.GetLimit()), Bytes: int(r.Msg.GetBytes())})
	if err != nil {
		return nil, err
	}
	answer := missed.Message()
	for i, told := range answer.GetResumed() {
		told.Looked = resumers[i].Looks
	}
	return connect.NewResponse(answer), nil
}

// authorize reports which lookers may look at their rooms, in their order.
func (s *server) authorize(ctx context.Context, lookers []*meshv1.Looker) ([]*meshv1.Looked, error) {
	if len(lookers) == 0 {
		return nil, nil
	}
	if s.look == nil {
		looked := make([]*meshv1.Looked, len(lookers))
		for i := range looked {
			looked[i] = &meshv1.Looked{}
		}
		return looked, nil
	}
	looked, err := s.look(ctx, lookers)
	if err == nil && len(looked) != len(lookers) {
		return nil, fmt.Errorf("authorize %d lookers: got %d answers", len(lookers), len(looked))
	}
	return looked, err
}

// Look reports which users may look at which rooms. It reads the position first, since newer events come by the topic.
func (s *server) Look(ctx context.Context, r *connect.Request[meshv1.LookRequest]) (*connect.Response[meshv1.LookResponse], error) {
	head, err := s.log.Newest(ctx)
	if err != nil {
		return nil, err
	}
	looked, err := s.authorize(ctx, r.Msg.GetLookers())
	if err != nil {
		return nil, err
	}
	return connect.NewResponse(&meshv1.LookResponse{Position: head.Position, Incarnation: head.Incarnation,
		Looked: looked}), nil
}
