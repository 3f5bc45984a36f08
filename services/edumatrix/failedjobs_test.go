package edumatrix

import (
	"bytes"
	"context"
	"net/http"
	"net/http/httptest"
	"testing"
	"time"

	"connectrpc.com/connect"
	"github.com/stretchr/testify/require"
	"google.golang.org/protobuf/types/known/timestamppb"

	meshv1 "github.com/edumatrix/interlinked/proto/gen/edumatrix/mesh/v1"
	"github.com/edumatrix/interlinked/proto/gen/edumatrix/mesh/v1/meshv1connect"
)

// failing is a service with five jobs that have failed permanently. It lists at most two jobs per page.
type failing struct {
	meshv1connect.UnimplementedOperatorServiceHandler
	resolved []*meshv1.ResolveJobRequest
}

func (f *failing) ListFailedJobs(_ context.Context, r *connect.Request[meshv1.ListFailedJobsRequest]) (
	*connect.Response[meshv1.ListFailedJobsResponse], error) {
	answer := &meshv1.ListFailedJobsResponse{}
	for id := r.Msg.GetAfterId() + 1; id <= 5 && len(answer.Jobs) < 2; id++ {
		answer.Jobs = append(answer.Jobs, &meshv1.FailedJob{Id: id, Kind: "push.send", Key: "to ann", Attempts: 10,
			Error: "the push service says no", At: timestamppb.New(time.Unix(1_800_000_000, 0))})
	}
	return connect.NewResponse(answer), nil
}

func (f *failing) ResolveJob(_ context.Context, r *connect.Request[meshv1.ResolveJobRequest]) (
	*connect.Response[meshv1.ResolveJobResponse], error) {
	f.resolved = append(f.resolved, r.Msg)
	return connect.NewResponse(&meshv1.ResolveJobResponse{}), nil
}

func TestDeadLetters_OfJobs(t *testing.T) {
	t.Parallel()
	service := &failing{}
	_, handler := meshv1connect.NewOperatorServiceHandler(service)
	server := httptest.NewServer(handler)
	defer server.Close()
	_, nothing := meshv1connect.NewOperatorServiceHandler(meshv1connect.UnimplementedOperatorServiceHandler{})
	earlier := httptest.NewServer(nothing)
	defer earlier.Close()
	i := &installation{client: http.DefaultClient, peers: map[string]string{"chat": server.URL, "presence": earlier.URL}}
	none, err := i.failedJobs(t.Context(), "presence")
	require.NoError(t, err)
	require.Empty(t, none)
	all, err := i.failedJobs(t.Context(), "chat")
	require.NoError(t, err)
	require.Len(t, all, 5)
	var out bytes.Buffer
	terminal := Terminal{Out: &out, Err: &out, Getenv: func(string) string { return "" }}
	require.NoError(t, listDeadLetters(terminal, all, false))
	for _, part := range []string{"chat/job/4", "2027-01-15T08:00:00Z", "push.send", "to ann", "the push service says no"} {
		require.Contains(t, out.String(), part)
	}
	out.Reset()
	found, err := findDeadLetter(all, "chat/job/4", nil)
	require.NoError(t, err)
	require.NoError(t, showDeadLetter(terminal, found, false))
	require.Contains(t, out.String(), "it has failed 10 times")
	require.NoError(t, i.retry(t.Context(), terminal, found))
	require.NoError(t, i.drop(t.Context(), terminal, all[4]))
	require.Len(t, service.resolved, 2)
	require.EqualValues(t, 4, service.resolved[0].GetId())
	require.False(t, service.resolved[0].GetDrop())
	require.EqualValues(t, 5, service.resolved[1].GetId())
	require.True(t, service.resolved[1].GetDrop())
	require.Contains(t, out.String(), "chat/job/4 is tried once more")
	require.Contains(t, out.String(), "chat/job/5 is deleted")
}
