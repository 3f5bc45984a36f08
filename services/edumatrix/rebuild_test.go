package edumatrix

import (
	"bytes"
	"context"
	"net/http/httptest"
	"strings"
	"testing"

	"connectrpc.com/connect"
	"github.com/stretchr/testify/require"

	meshv1 "github.com/edumatrix/interlinked/proto/gen/edumatrix/mesh/v1"
	"github.com/edumatrix/interlinked/proto/gen/edumatrix/mesh/v1/meshv1connect"
)

// rebuilding is a service that rebuilds its projections and then its timers.
type rebuilding struct {
	meshv1connect.UnimplementedOperatorServiceHandler
	asked  []string
	differ int64 // the number of timers that differed from the log
}

func (r *rebuilding) Rebuild(_ context.Context, q *connect.Request[meshv1.RebuildRequest],
	out *connect.ServerStream[meshv1.RebuildResponse]) error {
	r.asked = append(r.asked, q.Msg.GetProjection())
	for _, rebuilt := range []*meshv1.Rebuilt{
		{Projections: []string{"lists"}, Tables: []*meshv1.TableDifference{{Table: "lists", OldRows: 2, NewRows: 2}}},
		{Projections: []string{"timers"}, Tables: []*meshv1.TableDifference{{Table: "timers", OldRows: 7, NewRows: 7, Differ: r.differ}}},
	} {
		if err := out.Send(&meshv1.RebuildResponse{Step: "done", Rebuilt: rebuilt}); err != nil {
			return err
		}
	}
	return nil
}

func TestRebuild_ShowsProjectionsAndTimers(t *testing.T) {
	t.Parallel()
	service := &rebuilding{}
	_, handler := meshv1connect.NewOperatorServiceHandler(service)
	server := httptest.NewServer(handler)
	defer server.Close()
	env := map[string]string{"DATA_DIR": t.TempDir(), "JWT_SECRET": "shared by all and long enough, too", "CHAT_URL": server.URL}
	run := func(args ...string) (int, string) {
		var out, complaints bytes.Buffer
		status := Main(append([]string{"rebuild"}, args...), Terminal{In: strings.NewReader(""), Out: &out, Err: &complaints,
			Getenv: func(name string) string { return env[name] }})
		return status, out.String() + complaints.String()
	}
	status, printed := run("chat")
	require.Zero(t, status, printed)
	require.Contains(t, printed, "lists of chat rebuilt")
	require.Contains(t, printed, "timers of chat rebuilt")
	require.Equal(t, 2, strings.Count(printed, "equal, row for row"))
	service.differ = 3
	status, printed = run("chat", "timers")
	require.Equal(t, statusDiffers, status)
	require.Contains(t, printed, "3 rows differed from the log")
	require.Equal(t, []string{"", "timers"}, service.asked)
}
