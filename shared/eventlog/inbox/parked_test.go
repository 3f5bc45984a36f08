//go:build integration

package inbox_test

import (
	"testing"
	"time"

	"github.com/stretchr/testify/require"
	"google.golang.org/protobuf/proto"

	"github.com/edumatrix/interlinked/proto/catalog"
	meshv1 "github.com/edumatrix/interlinked/proto/gen/edumatrix/mesh/v1"
	"github.com/edumatrix/interlinked/shared/eventlog"
	"github.com/edumatrix/interlinked/shared/eventlog/inbox"
	"github.com/edumatrix/interlinked/shared/eventlog/internal/logtest"
	"github.com/edumatrix/interlinked/shared/eventlog/internal/pgtest"
)

func TestMain(m *testing.M) { pgtest.Main(m) }

func at(position catalog.Position) inbox.Checkpoint {
	return inbox.Checkpoint{Position: position, Incarnation: "i", Epoch: 1, Partitions: 1}
}

// consuming begins the consumption of a topic with one partition. The function that it returns makes a write that moves
// the partition's checkpoint.
func consuming(t *testing.T, l *eventlog.Log, begin inbox.Checkpoint) func(from, to inbox.Checkpoint, revision int64) eventlog.Write {
	t.Helper()
	_, err := l.Inbox().BeginConsumer(t.Context(), inbox.Consumer{Source: "feed", Topic: "feed-events", Epoch: 1, Partitions: 1})
	require.NoError(t, err)
	of := inbox.SourcePartition{Source: "feed", Topic: "feed-events"}
	_, err = l.Inbox().BeginPartition(t.Context(), of, begin)
	require.NoError(t, err)
	return func(from, to inbox.Checkpoint, revision int64) eventlog.Write {
		return eventlog.Write{Expected: eventlog.AnyVersion, Advance: &inbox.Advance{Of: of, From: from, To: to, Revision: revision}}
	}
}

// The parked streams have changed since a write was decided. The write must fail. If two writes resolve the same parked
// stream, the second must fail as well.
func TestCommit_ComparesParkedStreams(t *testing.T) {
	t.Parallel()
	l := logtest.Fresh(t)
	begin := inbox.Checkpoint{Epoch: 1, Partitions: 1}
	move := consuming(t, l, begin)
	parks := move(begin, at(5), 0)
	bad := inbox.Parked{Source: "feed", Topic: "feed-events", Stream: "post:1", Position: 4, Index: 1, Version: 2,
		Record: &meshv1.Record{Key: "post:1"}, Error: "as \x00 asked", At: time.Now().UTC().Truncate(time.Microsecond)}
	parks.Advance.Park = []inbox.Parked{bad}
	logtest.Commit(t, l, parks)
	next := move(at(5), at(9), 0)
	_, err := l.Commit(t.Context(), next)
	require.ErrorAs(t, err, new(*inbox.ParkedChangedError))

	all, revision, err := l.Inbox().ParkedOf(t.Context(), "feed", "feed-events")
	require.NoError(t, err)
	require.Equal(t, int64(1), revision)
	require.Len(t, all, 1)
	bad.Error = "as \uFFFD asked"
	require.True(t, proto.Equal(bad.Record, all[0].Record))
	bad.Record = all[0].Record
	require.Equal(t, bad, all[0])

	next.Advance.Revision, next.Advance.Passed = revision, []inbox.Passed{{Stream: "post:1", Events: 3}}
	logtest.Commit(t, l, next)
	resolves := eventlog.Write{Expected: eventlog.AnyVersion, Resolution: &inbox.Resolution{Of: bad}}
	_, err = l.Commit(t.Context(), resolves)
	require.ErrorAs(t, err, new(*inbox.ParkedChangedError)) // the consumer has passed three more events meanwhile
	found, err := l.Inbox().ParkedStream(t.Context(), "feed", "post:1")
	require.NoError(t, err)
	require.Equal(t, int64(3), found[0].Waiting)
	resolves.Resolution.Of = found[0]
	left := found[0]
	left.Position, left.Index, left.Version, left.Waiting = 7, 0, 4, 1
	resolves.Resolution.Left = &left
	logtest.Commit(t, l, resolves)
	_, err = l.Commit(t.Context(), resolves)
	require.ErrorAs(t, err, new(*inbox.ParkedChangedError))
	logtest.Commit(t, l, eventlog.Write{Expected: eventlog.AnyVersion, Resolution: &inbox.Resolution{Of: left}})
	all, revision, err = l.Inbox().ParkedOf(t.Context(), "feed", "feed-events")
	require.NoError(t, err)
	require.Empty(t, all)
	require.Equal(t, int64(3), revision)
}
