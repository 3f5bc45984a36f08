//go:build integration

package owner_test

import (
	"context"
	"fmt"
	"strings"
	"sync/atomic"
	"testing"

	"connectrpc.com/connect"
	"github.com/stretchr/testify/require"

	meshv1 "github.com/edumatrix/interlinked/proto/gen/edumatrix/mesh/v1"
	"github.com/edumatrix/interlinked/proto/gen/edumatrix/mesh/v1/meshv1connect"
	"github.com/edumatrix/interlinked/shared/owner"
	"github.com/edumatrix/interlinked/shared/rpc"
)

// A query reads in a database session that was opened after the query's interceptor began. The query must be repeated,
// because PostgreSQL may have crashed in between and lost rows on which the interceptor relies.
func TestConnect_RepeatsAQueryThatReadInANewSession(t *testing.T) {
	t.Parallel()
	w := newWorld(t)
	var calls atomic.Int64
	const procedure = "/toy.Queries/Ask"
	w.start(func(s *owner.Service) {
		rooms(s)
		pool := w.env.Stores.Postgres
		s.Serve(procedure, connect.NewUnaryHandler(procedure, func(ctx context.Context, _ *connect.Request[meshv1.ReadLogRequest]) (
			*connect.Response[meshv1.ReadLogResponse], error) {
			call := calls.Add(1)
			if call == 1 {
				pool.Reset()
			}
			return connect.NewResponse(&meshv1.ReadLogResponse{Head: call}), pool.Ping(ctx)
		}, s.QueryOptions(nil)))
	})
	client := connect.NewClient[meshv1.ReadLogRequest, meshv1.ReadLogResponse](
		rpc.NewClient("of this test", w.env.Telemetry.Tracer()),
		fmt.Sprintf("http://127.0.0.1:%d%s", w.env.Config.Port, procedure))
	answer, err := client.CallUnary(t.Context(), connect.NewRequest(&meshv1.ReadLogRequest{}))
	require.NoError(t, err)
	require.Greater(t, answer.Msg.GetHead(), int64(1))
	require.Equal(t, calls.Load(), answer.Msg.GetHead(), "the last answer is returned")
}

// A request contains subscriptions of several users, or resumes several users with subscriptions. In both cases the
// authorizer must be called once for the whole request.
func TestAuthorize_ReadsAllUsersOfARequestTogether(t *testing.T) {
	t.Parallel()
	w := newWorld(t)
	var calls atomic.Int64
	w.start(func(s *owner.Service) {
		rooms(s)
		s.AuthorizeSubscribe(func(_ context.Context, subscriptions []*meshv1.Subscription) (authorizations []*meshv1.Authorization, _ error) {
			calls.Add(1)
			for _, l := range subscriptions {
				authorizations = append(authorizations, &meshv1.Authorization{Allowed: strings.HasSuffix(l.GetRoom(), l.GetUser())})
			}
			return authorizations, nil
		})
	})
	client := meshv1connect.NewOwnerServiceClient(rpc.NewClient("of this test", w.env.Telemetry.Tracer()),
		fmt.Sprintf("http://127.0.0.1:%d", w.env.Config.Port))
	look := &meshv1.AuthorizeSubscriptionsRequest{}
	resume := &meshv1.ResumeRequest{}
	for _, user := range []string{"ann", "bob", "cid"} {
		look.Subscriptions = append(look.Subscriptions, &meshv1.Subscription{User: user, Room: "post:ann"},
			&meshv1.Subscription{User: user, Room: "post:bob"})
		resume.Resumers = append(resume.Resumers, &meshv1.Resumer{User: user, Subscriptions: []string{"post:ann", "post:bob"}})
	}

	authorizations, err := client.AuthorizeSubscriptions(t.Context(), connect.NewRequest(look))
	require.NoError(t, err)
	var allowed []bool
	for _, l := range authorizations.Msg.GetAuthorizations() {
		allowed = append(allowed, l.GetAllowed())
	}
	require.Equal(t, []bool{true, false, false, true, false, false}, allowed)
	require.EqualValues(t, 1, calls.Load())

	resumed, err := client.Resume(t.Context(), connect.NewRequest(resume))
	require.NoError(t, err)
	var rooms [][]string
	for _, r := range resumed.Msg.GetResumed() {
		rooms = append(rooms, r.GetSubscribed())
	}
	require.Equal(t, [][]string{{"post:ann"}, {"post:bob"}, nil}, rooms)
	require.EqualValues(t, 2, calls.Load())
}
