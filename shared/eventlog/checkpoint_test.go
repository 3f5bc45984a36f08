//go:build integration

package eventlog

import (
	"testing"
	"time"

	"github.com/stretchr/testify/require"
	"google.golang.org/protobuf/proto"

	meshv1 "github.com/edumatrix/interlinked/proto/gen/edumatrix/mesh/v1"
)

// consuming begins the consumption of a topic with one partition, and returns what moves its checkpoint, with two events.
func consuming(t *testing.T, l *Log) func(from, to Checkpoint, revision int64, id string) Write {
	t.Helper()
	_, err := l.BeginConsumer(t.Context(), Consumer{Source: "feed", Topic: "feed-events", Epoch: 1, Partitions: 1})
	require.NoError(t, err)
	of := SourcePartition{Source: "feed", Topic: "feed-events"}
	_, err = l.BeginPartition(t.Context(), of, Checkpoint{Epoch: 1, Partitions: 1})
	require.NoError(t, err)
	reacts := func(conversation, id string) Append {
		return Append{Stream: "conversation:" + conversation, Expected: AnyVersion, Actor: "feed", Cause: id,
			Events: []proto.Message{sent(conversation, id, "x")}}
	}
	return func(from, to Checkpoint, revision int64, id string) Write {
		return Write{Expected: AnyVersion, Advance: &Advance{Of: of, From: from, To: to, Revision: revision},
			Appends: []Append{reacts("1", id), reacts("2", id)}}
	}
}

func at(position int64, index int) Checkpoint {
	return Checkpoint{Position: position, Index: index, Incarnation: "i", Epoch: 1, Partitions: 1}
}

// Of two that move a checkpoint from the same place one is refused, with nothing written: position, index within an
// event, incarnation and epoch are all compared.
func TestCommit_ACheckpointGoesOnWhereItWas(t *testing.T) {
	t.Parallel()
	url := database(t)
	l := running(t, url)
	move := consuming(t, l)
	begin := Checkpoint{Epoch: 1, Partitions: 1}
	committed, errs := together(t, url, move(begin, at(5, 2), 0, "a"), move(at(5, 2), at(9, 0), 0, "b"),
		move(at(5, 2), at(9, 0), 0, "b"), move(at(9, 1), at(12, 0), 0, "gap"))
	require.NoError(t, errs[0])
	require.NoError(t, errs[1])
	require.Equal(t, int64(4), committed[1].Position)
	for _, err := range errs[2:] {
		require.Equal(t, at(9, 0), failsAs[*StaleCheckpointError](t, err).Have)
	}
	another := at(9, 0)
	another.Incarnation = "restored"
	_, err := l.Commit(t.Context(), move(another, at(12, 0), 0, "incarnation"))
	failsAs[*StaleCheckpointError](t, err)
	another = at(9, 0)
	another.Epoch = 2
	_, err = l.Commit(t.Context(), move(another, at(12, 0), 0, "epoch"))
	failsAs[*StaleCheckpointError](t, err)

	saved, err := l.Checkpoints(t.Context(), "feed", "feed-events")
	require.NoError(t, err)
	require.Equal(t, map[int32]Checkpoint{0: at(9, 0)}, saved)
	head, err := l.Head(t.Context())
	require.NoError(t, err)
	require.Equal(t, int64(4), head)
	saved[0], err = l.BeginPartition(t.Context(), SourcePartition{Source: "feed", Topic: "feed-events"}, at(1, 0))
	require.NoError(t, err)
	require.Equal(t, at(9, 0), saved[0], "a partition that has begun begins again")
}

// A write that was decided before something was parked, or resolved, is refused; so is a second resolution.
func TestCommit_WhatIsParkedIsPartOfTheComparison(t *testing.T) {
	t.Parallel()
	l := fresh(t)
	move := consuming(t, l)
	parks := move(Checkpoint{Epoch: 1, Partitions: 1}, at(5, 0), 0, "a")
	bad := Parked{Source: "feed", Topic: "feed-events", Stream: "post:1", Position: 4, Index: 1, Version: 2,
		Record: &meshv1.Record{Key: "post:1"}, Error: "as \x00 asked", At: time.Now().UTC().Truncate(time.Microsecond)}
	parks.Advance.Park = []Parked{bad}
	commit(t, l, parks)
	next := move(at(5, 0), at(9, 0), 0, "b")
	_, err := l.Commit(t.Context(), next)
	failsAs[*ParkedChangedError](t, err)

	all, revision, err := l.ParkedOf(t.Context(), "feed", "feed-events")
	require.NoError(t, err)
	require.Equal(t, int64(1), revision)
	require.Len(t, all, 1)
	bad.Error = "as \uFFFD asked"
	require.True(t, proto.Equal(bad.Record, all[0].Record))
	bad.Record = all[0].Record
	require.Equal(t, bad, all[0])

	next.Advance.Revision, next.Advance.Passed = revision, []Passed{{Stream: "post:1", Events: 3}}
	commit(t, l, next)
	resolves := Write{Expected: AnyVersion, Resolution: &Resolution{Of: bad}}
	_, err = l.Commit(t.Context(), resolves)
	failsAs[*ParkedChangedError](t, err) // three more events were passed over meanwhile
	found, err := l.ParkedStream(t.Context(), "feed", "post:1")
	require.NoError(t, err)
	require.Equal(t, int64(3), found[0].Waiting)
	resolves.Resolution.Of = found[0]
	left := found[0]
	left.Position, left.Index, left.Version, left.Waiting = 7, 0, 4, 1
	resolves.Resolution.Left = &left
	commit(t, l, resolves)
	_, err = l.Commit(t.Context(), resolves)
	failsAs[*ParkedChangedError](t, err)
	commit(t, l, Write{Expected: AnyVersion, Resolution: &Resolution{Of: left}})
	all, revision, err = l.ParkedOf(t.Context(), "feed", "feed-events")
	require.NoError(t, err)
	require.Empty(t, all)
	require.Equal(t, int64(3), revision)
}
