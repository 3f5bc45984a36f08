package owner

import (
	"context"

	"connectrpc.com/connect"

	meshv1 "github.com/edumatrix/interlinked/proto/gen/edumatrix/mesh/v1"
	"github.com/edumatrix/interlinked/shared/eventlog"
)

// Look decides whether somebody may look at a room, for a minute, and gives the newest value of what it shows where that
// is wanted.
type Look func(ctx context.Context, user, room string, snapshot bool) (*meshv1.Looked, error)

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
	for i, one := range r.Msg.GetResumers() {
		resumers[i] = eventlog.Resumer{User: one.GetUser(), After: one.GetAfter(), EventsAfter: one.GetEventsAfter()}
		for _, room := range one.GetLooks() {
			looked, err := s.leave(ctx, one.GetUser(), room, false)
			if err != nil {
				return nil, err
			}
			if looked.GetAllowed() {
				resumers[i].Looks = append(resumers[i].Looks, room)
			}
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

// leave says whether somebody may look at a room.
func (s *server) leave(ctx context.Context, user, room string, snapshot bool) (*meshv1.Looked, error) {
	if s.look == nil {
		return &meshv1.Looked{}, nil
	}
	return s.look(ctx, user, room, snapshot)
}

// Look says whether users may look at rooms. The position is read first: what is newer than it comes by the topic.
func (s *server) Look(ctx context.Context, r *connect.Request[meshv1.LookRequest]) (*connect.Response[meshv1.LookResponse], error) {
	head, err := s.log.Newest(ctx)
	if err != nil {
		return nil, err
	}
	answer := &meshv1.LookResponse{Position: head.Position, Incarnation: head.Incarnation}
	for _, l := range r.Msg.GetLookers() {
		looked, err := s.leave(ctx, l.GetUser(), l.GetRoom(), l.GetSnapshot())
		if err != nil {
			return nil, err
		}
		answer.Looked = append(answer.Looked, looked)
	}
	return connect.NewResponse(answer), nil
}
