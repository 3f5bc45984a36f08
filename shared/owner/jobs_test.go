//go:build integration

package owner_test

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"connectrpc.com/connect"
	"github.com/stretchr/testify/require"
	"google.golang.org/protobuf/proto"

	"github.com/edumatrix/interlinked/proto/catalog"
	chatv1 "github.com/edumatrix/interlinked/proto/gen/edumatrix/chat/v1"
	meshv1 "github.com/edumatrix/interlinked/proto/gen/edumatrix/mesh/v1"
	"github.com/edumatrix/interlinked/proto/gen/edumatrix/mesh/v1/meshv1connect"
	"github.com/edumatrix/interlinked/shared/envelope"
	"github.com/edumatrix/interlinked/shared/jobs"
	"github.com/edumatrix/interlinked/shared/meshtest"
	"github.com/edumatrix/interlinked/shared/owner"
	"github.com/edumatrix/interlinked/shared/rpc"
)

// push contains the arguments of a job: the event for which the job was inserted, and whether the job fails.
type push struct {
	Stream  string          `json:"stream"`
	Version catalog.Version `json:"version"`
	Fails   bool            `json:"fails"`
}

func (push) Kind() string { return "push" }

// pushes registers one job for every message, and counts how often each job has run. At a message with the text
// "no effect", it panics instead. The job for a message with the text "fails" fails while the field mended is false.
type pushes struct {
	mu     sync.Mutex
	done   map[string]int
	mended atomic.Bool
}

func (p *pushes) on(s *owner.Service) {
	rooms(s)
	s.Jobs("chat.message_sent", func(e envelope.Event, m proto.Message) []jobs.Job {
		body := m.(*chatv1.MessageSent).Body
		if body == "no effect" {
			panic("requested by the test")
		}
		return []jobs.Job{{Args: push{e.Stream, e.Version, body == "fails"}, Key: fmt.Sprint(e.Stream, "/", e.Version)}}
	})
	jobs.Add(s.Workers(), jobs.Work[push]{Do: func(_ context.Context, j jobs.Attempt[push]) error {
		if j.Args.Fails && !p.mended.Load() {
			return jobs.Final(errors.New("the push service rejected the message"))
		}
		p.mu.Lock()
		defer p.mu.Unlock()
		p.done[fmt.Sprint(j.Args.Stream, "/", j.Args.Version)]++
		return nil
	}})
}

func (w *world) number(sql string) (n int) {
	w.t.Helper()
	require.NoError(w.t, w.env.Stores.Postgres.QueryRow(w.t.Context(), sql).Scan(&n))
	return n
}

// Commands are sent to a service with two instances, which registers a job for every message. Each committed event must
// have one job, and the job must run once. Commands that are refused, fail or are repeated must not add a job.
func TestJobs_EachCommittedEventHasOneJob(t *testing.T) {
	t.Parallel()
	w := newWorld(t)
	p := &pushes{done: map[string]int{}}
	other := w.env
	other.Config.Port = meshtest.FreePort(t)
	w.start(p.on)
	w.startIn(other, p.on)
	var commands []envelope.Command
	for i := range 60 {
		commands = append(commands, say("alice", fmt.Sprint("c", i), fmt.Sprint(i%3), "hi"))
	}
	bad := map[string]envelope.Kind{"refused": envelope.Refused, "harm": envelope.Failed, "panic": envelope.Failed}
	commands = append(commands, commands[0], say("stranger", "refused", "0", "hi"), say("alice", "harm", "1", "unstorable"),
		say("alice", "panic", "2", "no effect"))
	w.send(commands...)
	for id, kind := range bad {
		require.Equal(t, kind, w.outcome(id, 1).Kind, id)
	}
	for i := range 60 {
		require.Equal(t, envelope.Committed, w.outcome(fmt.Sprint("c", i), 1).Kind)
	}
	w.eventually("all are done", func() bool { return w.number(`SELECT count(*) FROM chat.river_job WHERE state = 'completed'`) == 60 })
	require.Equal(t, 60, w.number(`SELECT count(*) FROM chat.events`))
	require.Equal(t, 60, w.number(`SELECT count(*) FROM chat.river_job`))
	p.mu.Lock()
	defer p.mu.Unlock()
	require.Len(t, p.done, 60)
	for i := range 3 {
		for version := 1; version <= 20; version++ {
			require.Equal(t, 1, p.done[fmt.Sprint("conversation:", i, "/", version)])
		}
	}
}

func TestJobs_AnOperatorListsAndRetriesFailedJobs(t *testing.T) {
	t.Parallel()
	w := newWorld(t)
	p := &pushes{done: map[string]int{}}
	w.start(p.on)
	o := meshv1connect.NewOperatorServiceClient(rpc.NewClient(rpc.Credential(w.env.Config.ServiceSecret), w.env.Telemetry.Tracer()),
		fmt.Sprint("http://127.0.0.1:", w.env.Config.Port))
	list := func() []*meshv1.FailedJob {
		t.Helper()
		r, err := o.ListFailedJobs(t.Context(), connect.NewRequest(&meshv1.ListFailedJobsRequest{}))
		require.NoError(t, err)
		return r.Msg.GetJobs()
	}
	resolve := func(id int64, drop bool) error {
		_, err := o.ResolveJob(t.Context(), connect.NewRequest(&meshv1.ResolveJobRequest{Id: id, Drop: drop}))
		return err
	}
	w.send(say("alice", "1", "7", "fails"), say("alice", "2", "7", "fails"))
	w.eventually("two have failed", func() bool { return len(list()) == 2 })
	failed := list()
	require.Equal(t, "push", failed[0].GetKind())
	require.Equal(t, "conversation:7/1", failed[0].GetKey())
	require.Equal(t, "the push service rejected the message", failed[0].GetError())
	require.NoError(t, resolve(failed[1].GetId(), true))
	p.mended.Store(true)
	require.NoError(t, resolve(failed[0].GetId(), false))
	w.eventually("it is done", func() bool { p.mu.Lock(); defer p.mu.Unlock(); return p.done["conversation:7/1"] == 1 })
	require.Empty(t, list())
	refused, ok := rpc.Refusal(resolve(failed[1].GetId(), false))
	require.True(t, ok)
	require.Contains(t, refused.Text, "has no job")
}

// A service stops while a job is running. It must wait until the job has ended.
func TestJobs_ARunningJobEndsBeforeTheServiceStops(t *testing.T) {
	t.Parallel()
	w := newWorld(t)
	begun, end := make(chan struct{}), make(chan struct{})
	var done atomic.Bool
	stop := w.start(func(s *owner.Service) {
		rooms(s)
		s.Jobs("chat.message_sent", func(e envelope.Event, _ proto.Message) []jobs.Job { return []jobs.Job{{Args: push{}}} })
		jobs.Add(s.Workers(), jobs.Work[push]{Do: func(ctx context.Context, _ jobs.Attempt[push]) error {
			close(begun)
			select {
			case <-end:
				done.Store(true)
			case <-ctx.Done():
			}
			return ctx.Err()
		}})
	})
	w.send(say("alice", "1", "7", "hi"))
	<-begun
	time.AfterFunc(100*time.Millisecond, func() { close(end) }) // the job ends while stop waits
	stop()
	require.True(t, done.Load())
	require.Equal(t, 1, w.number(`SELECT count(*) FROM chat.river_job WHERE state = 'completed'`))
}

// A service has no workers. It must neither create tables for jobs nor poll for jobs. If it registers jobs for its
// events nevertheless, it must not start.
func TestJobs_AServiceWithoutWorkersHasNoQueue(t *testing.T) {
	t.Parallel()
	w := newWorld(t)
	w.start(rooms)
	w.send(say("alice", "1", "7", "hi"))
	w.outcome("1", 1)
	require.Zero(t, w.number(`SELECT count(*) FROM pg_stat_activity WHERE query LIKE '%river%' AND pid <> pg_backend_pid()
AND datname = current_database()`))
	require.Zero(t, w.number(`SELECT count(*) FROM pg_tables WHERE tablename LIKE 'river%'`))
	env := w.env
	env.Config.Port = meshtest.FreePort(t)
	s, err := owner.Open(t.Context(), env, fs.FS(nil))
	require.NoError(t, err)
	rooms(s)
	s.Jobs("chat.message_sent", func(envelope.Event, proto.Message) []jobs.Job { return nil })
	s.Jobs("feed.post_created", func(envelope.Event, proto.Message) []jobs.Job { return nil })
	err = s.Run(t.Context())
	require.ErrorContains(t, err, "no workers are registered")
	require.ErrorContains(t, err, "chat has no such event")
}
