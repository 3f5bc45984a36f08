package eventlog

import (
	"testing"

	"github.com/stretchr/testify/require"
	"google.golang.org/protobuf/proto"

	"github.com/edumatrix/interlinked/proto/catalog"
	chatv1 "github.com/edumatrix/interlinked/proto/gen/edumatrix/chat/v1"
	"github.com/edumatrix/interlinked/proto/refusal"
	"github.com/edumatrix/interlinked/shared/meshtest"
)

// requiring returns a write with one command, which sends a message to a conversation and requires a message of
// another.
func requiring(conversation, commandID, required string) Write {
	w := said(conversation, commandID)
	w.Commands[0].Requires = catalog.Part{Name: "message", Stream: "conversation:other", Subject: required, DeletedCode: "message_deleted"}
	return w
}

func removed(conversation, message string) Write {
	return Write{Appends: []Append{{Stream: "conversation:" + conversation, Expected: AnyVersion, Actor: "alice",
		Events: []proto.Message{&chatv1.MessageDeleted{ConversationId: conversation, MessageId: message}}}}}
}

// Writes that send, require and delete a message are committed in one transaction. Each must be checked against the
// writes before it.
func TestCommit_ARequiredPartMayChangeInTheSameTransaction(t *testing.T) {
	t.Parallel()
	l := fresh(t)
	conn, err := l.o.Pool.Acquire(t.Context())
	require.NoError(t, err)
	defer conn.Release()
	lock := func(f string) {
		_, err := conn.Exec(t.Context(), "SELECT "+f+"($1)", lockKey("chat", "append"))
		require.NoError(t, err)
	}
	var writes []*pendingWrite
	put := func(w Write) {
		p, err := l.prepare(t.Context(), w)
		require.NoError(t, err)
		pw := &pendingWrite{ctx: t.Context(), prepared: p, outcome: make(chan writeOutcome, 1)}
		writes = append(writes, pw)
		require.NoError(t, l.queue.put(pw))
	}
	lock("pg_advisory_lock")
	put(said("1", "first"))
	meshtest.Eventually(t, "the first transaction waits for the lock", func() bool {
		waiting := 0
		require.NoError(t, l.o.Pool.QueryRow(t.Context(), `SELECT count(*) FROM pg_locks
WHERE locktype = 'advisory' AND NOT granted AND database = (SELECT oid FROM pg_database WHERE datname = current_database())`).Scan(&waiting))
		return waiting > 0
	})
	put(requiring("1", "early", "m"))
	put(said("other", "m"))
	put(requiring("1", "existing", "m"))
	put(removed("other", "m"))
	put(requiring("1", "late", "m"))
	lock("pg_advisory_unlock")

	codes := make([]string, len(writes))
	for i, pw := range writes {
		outcome := <-pw.outcome
		if outcome.err != nil {
			codes[i] = failsAs[*RefusedError](t, outcome.err).Refusals[0].Code
		}
	}
	require.Equal(t, []string{"", refusal.NotFound, "", "", "", "message_deleted"}, codes)
}

// The commands of one write are checked in order too.
func TestCommit_ARequiredPartMayChangeInTheSameWrite(t *testing.T) {
	t.Parallel()
	l := fresh(t)
	w := said("other", "m")
	w.Commands = append(w.Commands, requiring("1", "existing", "m").Commands[0], requiring("1", "unknown", "none").Commands[0])
	for i := range w.Commands[1:] {
		w.Commands[i+1].Stream, w.Commands[i+1].Expected = "conversation:1", AnyVersion
	}
	_, err := l.Commit(t.Context(), w)
	refused := failsAs[*RefusedError](t, err).Refusals
	require.Len(t, refused, 1)
	require.Equal(t, "there is no such message in this conversation", refused[2].Text)
}
