package presence

import (
	"context"

	"connectrpc.com/connect"
	"google.golang.org/protobuf/types/known/timestamppb"

	presencev1 "github.com/edumatrix/interlinked/proto/gen/edumatrix/presence/v1"
	"github.com/edumatrix/interlinked/services/presence/store"
	"github.com/edumatrix/interlinked/shared/rpc"
)

// queries answers the queries of users about their own sessions.
type queries struct{ store *store.Store }

// Sessions returns the sessions of the user that sent the query.
func (q *queries) Sessions(ctx context.Context, _ *connect.Request[presencev1.SessionsRequest]) (
	*connect.Response[presencev1.SessionsResponse], error) {
	all, err := q.store.Sessions(ctx, rpc.Actor(ctx))
	if err != nil {
		return nil, unavailable(err)
	}
	answer := &presencev1.SessionsResponse{}
	for _, s := range all {
		answer.Sessions = append(answer.Sessions, &presencev1.Session{SessionId: s.ID, Device: s.Device, Gateway: s.Gateway,
			Since: timestamppb.New(s.Since), Connected: s.Connected, SeenAt: timestamppb.New(s.Seen), ResumeToken: s.ResumeToken})
	}
	return connect.NewResponse(answer), nil
}
