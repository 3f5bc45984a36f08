//go:build integration

package consistency_test

import (
	"context"
	"net/http"
	"testing"

	"connectrpc.com/connect"
	"github.com/jackc/pgx/v5/pgxpool"
	"github.com/stretchr/testify/require"

	"github.com/edumatrix/interlinked/proto/catalog"
	chatv1 "github.com/edumatrix/interlinked/proto/gen/edumatrix/chat/v1"
	"github.com/edumatrix/interlinked/proto/gen/edumatrix/chat/v1/chatv1connect"
	"github.com/edumatrix/interlinked/proto/refusal"
	"github.com/edumatrix/interlinked/shared/envelope"
	"github.com/edumatrix/interlinked/shared/eventlog/eventlogtest"
	"github.com/edumatrix/interlinked/shared/eventlog/projection"
	"github.com/edumatrix/interlinked/shared/owner/consistency"
	"github.com/edumatrix/interlinked/shared/rpc"
)

// messages is a projection that counts events. Before it applies a batch, it waits until it can receive from the
// channel pass.
type messages struct {
	pool *pgxpool.Pool
	pass chan struct{}
}

func (*messages) Name() string { return "messages" }

func (m *messages) Apply(ctx context.Context, tx projection.Tx, events []envelope.Event) error {
	select {
	case <-m.pass:
	case <-ctx.Done():
		return ctx.Err()
	}
	_, err := tx.Exec(ctx, "UPDATE counted SET n = n + $1", len(events))
	return err
}

// server answers queries with the number of events that the projection in the field m has counted. The method Members
// does not wait for earlier commits, so the interceptor has to.
type server struct {
	chatv1connect.UnimplementedChatServiceHandler
	m     *messages
	later catalog.Position // position for which History waits
}

func (s *server) count(ctx context.Context) (n int64, err error) {
	err = s.m.pool.QueryRow(ctx, "SELECT n FROM chat.counted").Scan(&n)
	return n, err
}

func (s *server) Members(ctx context.Context, _ *connect.Request[chatv1.MembersRequest]) (
	*connect.Response[chatv1.MembersResponse], error) {
	n, err := s.count(ctx)
	return connect.NewResponse(&chatv1.MembersResponse{Version: n}), err
}

func (s *server) History(ctx context.Context, _ *connect.Request[chatv1.HistoryRequest]) (
	*connect.Response[chatv1.HistoryResponse], error) {
	if err := consistency.WaitFor(ctx, s.later); err != nil {
		return nil, err
	}
	n, err := s.count(ctx)
	return connect.NewResponse(&chatv1.HistoryResponse{Version: n}), err
}

// Conversations waits for a position, although this query is not declared to read a projection. WaitFor must fail.
func (s *server) Conversations(ctx context.Context, _ *connect.Request[chatv1.ConversationsRequest]) (
	*connect.Response[chatv1.ConversationsResponse], error) {
	if err := consistency.WaitFor(ctx, 1); err != nil {
		return nil, err
	}
	return connect.NewResponse(&chatv1.ConversationsResponse{}), nil
}

type world struct {
	*eventlogtest.Log
	t      *testing.T
	m      *messages
	server *server
	client chatv1connect.ChatServiceClient
}

func newWorld(t *testing.T) *world {
	t.Helper()
	l := eventlogtest.Open(t, "chat", nil)
	_, err := l.Pool.Exec(t.Context(), "CREATE TABLE chat.counted AS SELECT 0::bigint AS n")
	require.NoError(t, err)
	m := &messages{pool: l.Pool, pass: make(chan struct{})}
	l.Follow(m)
	w := &world{Log: l, t: t, m: m, server: &server{m: m}}
	client, url := l.Serve(consistency.Projections{"chat.members": "messages", "chat.history": "messages"},
		func(o ...connect.HandlerOption) (string, http.Handler) {
			return chatv1connect.NewChatServiceHandler(w.server, o...)
		})
	w.client = chatv1connect.NewChatServiceClient(client, url)
	return w
}

// say commits an event and returns its position.
func (w *world) say() catalog.Position {
	w.t.Helper()
	w.Append("ann", &chatv1.MessageSent{ConversationId: "c"})
	return rpc.Position(w.As("ann"))
}

func (w *world) requireUnavailable(err error) {
	w.t.Helper()
	refused, ok := rpc.Refusal(err)
	require.True(w.t, ok, "%v", err)
	require.Equal(w.t, refusal.Unavailable, refused.Code)
	require.Equal(w.t, "the newest changes cannot be read yet; try again", refused.Text)
}

// A request names a position, and the handler of the query does not wait for the projection. The interceptor must wait,
// so that the answer contains all commits up to the position. If the projection does not reach the position in time,
// the query must be refused.
func TestInterceptor_AHandlerSeesEarlierCommits(t *testing.T) {
	t.Parallel()
	w := newWorld(t)
	at := func(position catalog.Position) context.Context { return rpc.WithPosition(t.Context(), position) }
	request := &chatv1.MembersRequest{ConversationId: "c"}
	first := w.say()
	got, err := w.client.Members(at(0), connect.NewRequest(request))
	require.NoError(t, err)
	require.Zero(t, got.Msg.GetVersion(), "a request without a position does not wait")
	for _, position := range []catalog.Position{first, rpc.Now} {
		_, err := w.client.Members(at(position), connect.NewRequest(request))
		w.requireUnavailable(err)
	}
	close(w.m.pass)
	for want := int64(1); want <= 20; want++ {
		position := first
		if want > 1 {
			position = w.say()
		}
		if want%2 == 0 {
			position = rpc.Now
		}
		got, err := eventlogtest.Ask(at(position), w.client.Members, request)
		require.NoError(t, err)
		require.Equal(t, want, got.GetVersion())
	}
}

// A query reads two projections, and one of them lags. The query must wait for both.
func TestInterceptor_WaitsForEveryProjectionOfAQuery(t *testing.T) {
	t.Parallel()
	w := newWorld(t)
	w.Follow(&other{})
	for _, names := range []string{consistency.All("messages", "other"), consistency.All("other", "messages")} {
		client, url := w.Serve(consistency.Projections{"chat.members": names},
			func(o ...connect.HandlerOption) (string, http.Handler) {
				return chatv1connect.NewChatServiceHandler(w.server, o...)
			})
		w.client = chatv1connect.NewChatServiceClient(client, url)
		position := w.say()
		require.NoError(t, projection.WaitFor(t.Context(), w.Log.Log, "other", position))
		_, err := w.client.Members(rpc.WithPosition(t.Context(), position), connect.NewRequest(&chatv1.MembersRequest{ConversationId: "c"}))
		w.requireUnavailable(err)
	}
	close(w.m.pass)
	got, err := eventlogtest.Ask(rpc.WithPosition(t.Context(), w.say()), w.client.Members, &chatv1.MembersRequest{ConversationId: "c"})
	require.NoError(t, err)
	require.EqualValues(t, 3, got.GetVersion())
}

// other is a projection without rows.
type other struct{}

func (*other) Name() string { return "other" }

func (*other) Apply(context.Context, projection.Tx, []envelope.Event) error { return nil }

// A request names no position, and the handler of the query calls WaitFor for a position. The answer must contain all
// commits up to that position.
func TestWaitFor_OfALaterPosition(t *testing.T) {
	t.Parallel()
	w := newWorld(t)
	w.server.later = w.say()
	request := &chatv1.HistoryRequest{ConversationId: "c"}
	_, err := w.client.History(t.Context(), connect.NewRequest(request))
	w.requireUnavailable(err)
	close(w.m.pass)
	got, err := eventlogtest.Ask(t.Context(), w.client.History, request)
	require.NoError(t, err)
	require.EqualValues(t, 1, got.GetVersion())
	_, err = w.client.Conversations(t.Context(), connect.NewRequest(&chatv1.ConversationsRequest{}))
	require.Equal(t, connect.CodeInternal, connect.CodeOf(err), "this query reads no projection")
}

func TestProjections_AreValidated(t *testing.T) {
	t.Parallel()
	c, err := catalog.Load()
	require.NoError(t, err)
	texts := func(problems []error) (all []string) {
		for _, p := range problems {
			all = append(all, p.Error())
		}
		return all
	}
	served := []string{"/edumatrix.chat.v1.MarkerService/"}
	good := consistency.Projections{"chat.markers": "a", "chat.unread": "b"}
	require.Empty(t, good.Validate(c, "chat", served, []string{"a", "b"}))
	require.Empty(t, consistency.Projections{"chat.history": consistency.All("a", "b")}.Validate(c, "chat", nil, []string{"a", "b"}))
	require.Equal(t, []string{`query chat.history: there is no projection "c"`}, texts(consistency.Projections{
		"chat.history": consistency.All("a", "c")}.Validate(c, "chat", nil, []string{"a", "b"})))
	require.Empty(t, consistency.Projections{}.Validate(c, "chat", []string{"/other/"}, nil), "no query is served")
	require.Equal(t, []string{
		"query chat.unread is not declared to read a projection",
		`query chat.markers: there is no projection "b"`,
		"a projection of query chat.nothing: chat has no such query",
		"a projection of query presence.sessions: chat has no such query",
	}, texts(consistency.Projections{"chat.markers": "b", "chat.nothing": "a",
		"presence.sessions": "a"}.Validate(c, "chat", served, []string{"a"})))
}
