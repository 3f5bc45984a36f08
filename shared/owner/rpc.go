package owner

import (
	"context"
	"fmt"

	"connectrpc.com/connect"

	"github.com/edumatrix/interlinked/proto/catalog"
	meshv1 "github.com/edumatrix/interlinked/proto/gen/edumatrix/mesh/v1"
	"github.com/edumatrix/interlinked/shared/eventlog"
	"github.com/edumatrix/interlinked/shared/eventlog/membership"
)

// SubscribeAuthorizer decides which users may subscribe to which rooms. If a subscription requests a snapshot, the
// function also returns the newest values of the room. A decision is valid for a minute. The function is called once
// for all subscriptions of an RPC, so that one query suffices. The results have the order of the subscriptions.
type SubscribeAuthorizer func(ctx context.Context, subscriptions []*meshv1.Subscription) ([]*meshv1.Authorization, error)

// ownerServer serves the calls of other services to the owner of a log. It is on the inner listener only.
type ownerServer struct {
	log        *eventlog.Log
	authorizer SubscribeAuthorizer // nil: no room can be subscribed to
}

// ReadLog returns a page of the log.
func (s *ownerServer) ReadLog(ctx context.Context, r *connect.Request[meshv1.ReadLogRequest]) (*connect.Response[meshv1.ReadLogResponse], error) {
	page, err := s.log.Read(ctx, eventlog.Query{After: catalog.Position(r.Msg.GetAfter()), Until: catalog.Position(r.Msg.GetUntil()),
		Limit: int(r.Msg.GetLimit()), Topic: r.Msg.GetTopic(), Stream: r.Msg.GetStream(),
		AfterVersion: catalog.Version(r.Msg.GetAfterVersion()), Partition: r.Msg.GetPartition(), Partitions: r.Msg.GetPartitions()})
	if err != nil {
		return nil, err
	}
	return connect.NewResponse(&meshv1.ReadLogResponse{Records: page.Records(), Complete: int64(page.Complete), Head: int64(page.Head),
		Incarnation: page.Incarnation}), nil
}

// Rooms returns the rooms that users are in, as of one position.
func (s *ownerServer) Rooms(ctx context.Context, r *connect.Request[meshv1.RoomsRequest]) (*connect.Response[meshv1.RoomsResponse], error) {
	rooms, asOf, err := membership.Rooms(ctx, s.log, r.Msg.GetUsers())
	if err != nil {
		return nil, err
	}
	response := &meshv1.RoomsResponse{Position: int64(asOf.Position), Incarnation: asOf.Incarnation}
	for _, user := range r.Msg.GetUsers() {
		response.Users = append(response.Users, &meshv1.UserRooms{User: user, Rooms: rooms[user]})
	}
	return connect.NewResponse(response), nil
}

// Resume returns, for each user that resumes, the membership intervals since the user's position, the events that the
// user has missed in these intervals and in the subscribed rooms, and the subscriptions that are still allowed.
func (s *ownerServer) Resume(ctx context.Context, r *connect.Request[meshv1.ResumeRequest]) (*connect.Response[meshv1.ResumeResponse], error) {
	resumers := make([]membership.Resumer, len(r.Msg.GetResumers()))
	var subscriptions []*meshv1.Subscription
	var of []int // of[n] is the index of the resumer to which subscriptions[n] belongs
	for i, one := range r.Msg.GetResumers() {
		resumers[i] = membership.Resumer{User: one.GetUser(), After: catalog.Position(one.GetAfter()), EventsAfter: catalog.Position(one.GetEventsAfter())}
		for _, room := range one.GetSubscriptions() {
			subscriptions, of = append(subscriptions, &meshv1.Subscription{User: one.GetUser(), Room: room}), append(of, i)
		}
	}
	authorizations, err := s.authorize(ctx, subscriptions)
	if err != nil {
		return nil, err
	}
	for n, l := range authorizations {
		if l.GetAllowed() {
			resumers[of[n]].Subscribed = append(resumers[of[n]].Subscribed, subscriptions[n].GetRoom())
		}
	}
	missed, err := membership.Resume(ctx, s.log, resumers,
		membership.Bounds{Events: int(r.Msg.GetLimit()), Bytes: int(r.Msg.GetBytes())})
	if err != nil {
		return nil, err
	}
	response := missed.Message()
	for i, resumed := range response.GetResumed() {
		resumed.Subscribed = resumers[i].Subscribed
	}
	return connect.NewResponse(response), nil
}

// authorize reports which users may subscribe to their rooms, in the order of the subscriptions.
func (s *ownerServer) authorize(ctx context.Context, subscriptions []*meshv1.Subscription) ([]*meshv1.Authorization, error) {
	if len(subscriptions) == 0 {
		return nil, nil
	}
	if s.authorizer == nil {
		authorizations := make([]*meshv1.Authorization, len(subscriptions))
		for i := range authorizations {
			authorizations[i] = &meshv1.Authorization{}
		}
		return authorizations, nil
	}
	authorizations, err := s.authorizer(ctx, subscriptions)
	if err == nil && len(authorizations) != len(subscriptions) {
		return nil, fmt.Errorf("authorize %d subscriptions: got %d results", len(subscriptions), len(authorizations))
	}
	return authorizations, err
}

// AuthorizeSubscriptions reports which users may subscribe to which rooms. It reads the log's position first: events
// above that position reach the caller through the topic.
func (s *ownerServer) AuthorizeSubscriptions(ctx context.Context, r *connect.Request[meshv1.AuthorizeSubscriptionsRequest]) (*connect.Response[meshv1.AuthorizeSubscriptionsResponse], error) {
	head, err := s.log.Newest(ctx)
	if err != nil {
		return nil, err
	}
	authorizations, err := s.authorize(ctx, r.Msg.GetSubscriptions())
	if err != nil {
		return nil, err
	}
	return connect.NewResponse(&meshv1.AuthorizeSubscriptionsResponse{Position: int64(head.Position), Incarnation: head.Incarnation,
		Authorizations: authorizations}), nil
}
