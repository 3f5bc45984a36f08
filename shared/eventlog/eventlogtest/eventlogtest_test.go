//go:build integration

package eventlogtest_test

import (
	"context"
	"fmt"
	"testing"
	"testing/fstest"

	"github.com/stretchr/testify/require"

	chatv1 "github.com/edumatrix/interlinked/proto/gen/edumatrix/chat/v1"
	"github.com/edumatrix/interlinked/shared/envelope"
	"github.com/edumatrix/interlinked/shared/eventlog"
	"github.com/edumatrix/interlinked/shared/eventlog/eventlogtest"
	"github.com/edumatrix/interlinked/shared/owner/decidetest"
	"github.com/edumatrix/interlinked/shared/rpc"
)

// authors is a projection of who caused how many events in a stream.
type authors struct{}

func (authors) Name() string { return "authors" }

func (authors) Apply(ctx context.Context, tx eventlog.Tx, events []envelope.Event) error {
	for _, e := range events {
		if _, err := tx.Exec(ctx, `INSERT INTO authors VALUES ($1, $2, 1)
			ON CONFLICT (stream, author) DO UPDATE SET events = authors.events + 1`, e.Stream, e.Actor); err != nil {
			return err
		}
	}
	return nil
}

var migrations = fstest.MapFS{"00001_authors.sql": {Data: []byte(`-- +goose Up
CREATE TABLE authors (stream text, author text, events bigint, PRIMARY KEY (stream, author));
CREATE TABLE nothing (n bigint);`)}}

// failing records how a test failed.
type failing struct {
	testing.TB
	text string
}

func (f *failing) Fatalf(format string, args ...any) { f.text = fmt.Sprintf(format, args...) }

func TestLog_AppendsFollowsAndRebuilds(t *testing.T) {
	t.Parallel()
	test := &failing{TB: t}
	l := eventlogtest.Open(test, "chat", migrations)
	require.Empty(t, l.Rows(), "the tables of the log are left out")
	l.Follow(authors{})
	sent := func(id string) *chatv1.MessageSent { return &chatv1.MessageSent{ConversationId: id, MessageId: "m"} }
	l.Append("ann", sent("a"), sent("b"), sent("a"))
	require.EqualValues(t, 3, rpc.Position(l.As("bob")))
	require.Equal(t, "bob", rpc.Actor(l.As("bob")))
	l.AppendAll(decidetest.By("bob", sent("b")), decidetest.By("ann", sent("b")))
	require.Equal(t, []string{"authors (conversation:a,ann,2)", "authors (conversation:b,ann,2)",
		"authors (conversation:b,bob,1)"}, l.Rows())
	l.RequireRebuild()
	require.Empty(t, test.text)

	_, err := l.Pool.Exec(t.Context(), "UPDATE chat.authors SET events = 7 WHERE author = 'bob'")
	require.NoError(t, err)
	l.RequireRebuild()
	require.Contains(t, test.text, "1 rows differ")
	require.Contains(t, test.text, "authors (conversation:b,bob,7)")
	_, err = l.Pool.Exec(t.Context(), "INSERT INTO chat.nothing VALUES (1)")
	require.NoError(t, err)
	test.text = ""
	l.RequireRebuild()
	require.Contains(t, test.text, "nothing (1)", "every table of the migrations is compared")
}
