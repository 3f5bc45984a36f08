//go:build integration

package eventlog

import (
	"testing"

	"github.com/stretchr/testify/require"
	"google.golang.org/protobuf/proto"

	"github.com/edumatrix/interlinked/proto/catalog"
	"github.com/edumatrix/interlinked/shared/eventlog/inbox"
)

// consuming begins the consumption of a topic with one partition. The function that it returns makes a write that moves
// the partition's checkpoint and appends two events.
func consuming(t *testing.T, l *Log) func(from, to inbox.Checkpoint, revision int64, id string) Write {
	t.Helper()
	_, err := l.Inbox().BeginConsumer(t.Context(), inbox.Consumer{Source: "feed", Topic: "feed-events", Epoch: 1, Partitions: 1})
	require.NoError(t, err)
	of := inbox.SourcePartition{Source: "feed", Topic: "feed-events"}
	_, err = l.Inbox().BeginPartition(t.Context(), of, inbox.Checkpoint{Epoch: 1, Partitions: 1})
	require.NoError(t, err)
	reacts := func(conversation, id string) Append {
		return Append{Stream: "conversation:" + conversation, Expected: AnyVersion, Actor: "feed", Cause: id,
			Events: []proto.Message{sent(conversation, id, "x")}}
	}
	return func(from, to inbox.Checkpoint, revision int64, id string) Write {
		return Write{Expected: AnyVersion, Advance: &inbox.Advance{Of: of, From: from, To: to, Revision: revision},
			Appends: []Append{reacts("1", id), reacts("2", id)}}
	}
}

func at(position catalog.Position, index int) inbox.Checkpoint {
	return inbox.Checkpoint{Position: position, Index: index, Incarnation: "i", Epoch: 1, Partitions: 1}
}

// A write expects a checkpoint at another place than the stored one, for example because another write has moved the
// checkpoint before. The write must fail as a whole. The test varies the position, the index within an event, the
// incarnation and the epoch.
func TestCommit_ACheckpointContinuesFromItsPosition(t *testing.T) {
	t.Parallel()
	url := database(t)
	l := running(t, url)
	move := consuming(t, l)
	begin := inbox.Checkpoint{Epoch: 1, Partitions: 1}
	committed, errs := together(t, url, move(begin, at(5, 2), 0, "a"), move(at(5, 2), at(9, 0), 0, "b"),
		move(at(5, 2), at(9, 0), 0, "b"), move(at(9, 1), at(12, 0), 0, "gap"))
	require.NoError(t, errs[0])
	require.NoError(t, errs[1])
	require.Equal(t, catalog.Position(4), committed[1].Position)
	for _, err := range errs[2:] {
		require.Equal(t, at(9, 0), failsAs[*inbox.StaleCheckpointError](t, err).Have)
	}
	another := at(9, 0)
	another.Incarnation = "restored"
	_, err := l.Commit(t.Context(), move(another, at(12, 0), 0, "incarnation"))
	failsAs[*inbox.StaleCheckpointError](t, err)
	another = at(9, 0)
	another.Epoch = 2
	_, err = l.Commit(t.Context(), move(another, at(12, 0), 0, "epoch"))
	failsAs[*inbox.StaleCheckpointError](t, err)

	saved, err := l.Inbox().Checkpoints(t.Context(), "feed", "feed-events")
	require.NoError(t, err)
	require.Equal(t, map[int32]inbox.Checkpoint{0: at(9, 0)}, saved)
	head, err := l.Head(t.Context())
	require.NoError(t, err)
	require.Equal(t, catalog.Position(4), head)
	saved[0], err = l.Inbox().BeginPartition(t.Context(), inbox.SourcePartition{Source: "feed", Topic: "feed-events"}, at(1, 0))
	require.NoError(t, err)
	require.Equal(t, at(9, 0), saved[0], "a partition that has begun keeps its checkpoint")
}
