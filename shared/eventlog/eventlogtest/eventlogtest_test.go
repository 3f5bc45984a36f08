//go:build integration

package eventlogtest_test

import (
	"context"
	"fmt"
	"testing"
	"testing/fstest"

	"github.com/stretchr/testify/require"

	"google.golang.org/protobuf/proto"

	"github.com/edumatrix/interlinked/proto/catalog"
	chatv1 "github.com/edumatrix/interlinked/proto/gen/edumatrix/chat/v1"
	toyv1 "github.com/edumatrix/interlinked/proto/gen/edumatrix/toy/v1"
	"github.com/edumatrix/interlinked/proto/refusal"
	"github.com/edumatrix/interlinked/shared/envelope"
	"github.com/edumatrix/interlinked/shared/eventlog/eventlogtest"
	"github.com/edumatrix/interlinked/shared/eventlog/projection"
	"github.com/edumatrix/interlinked/shared/owner/decidetest"
	"github.com/edumatrix/interlinked/shared/rpc"
)

// authors is a projection that counts, for each stream and each user, the user's events in the stream.
type authors struct{}

func (authors) Name() string { return "authors" }

func (authors) Apply(ctx context.Context, tx projection.Tx, events []envelope.Event) error {
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

// failing is a testing.TB whose Fatalf only records its text, so that the test goes on.
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

// editing is an aggregate in which the author of a message may edit it.
type editing struct {
	stream  string
	authors map[string]string
}

func newEditing(stream string) *editing { return &editing{stream, map[string]string{}} }

func (s *editing) Decide(by catalog.Origin, command proto.Message) ([]proto.Message, error) {
	c := command.(*chatv1.EditMessage)
	if s.stream != "conversation:c" || by.Version != 3 || s.authors[c.MessageId] != by.Actor {
		return nil, refusal.New(refusal.NotAllowed, "%s at version %d belongs to %q", s.stream, by.Version, s.authors[c.MessageId])
	}
	return []proto.Message{&chatv1.MessageEdited{ConversationId: "c", MessageId: c.MessageId, Body: c.Body}}, nil
}

func (s *editing) Evolve(f catalog.Fact, event proto.Message) {
	if m, ok := event.(*chatv1.MessageSent); ok {
		s.authors[m.MessageId] = f.Actor
	}
}

func TestDecide_CommitsTheEventsOfTheDecision(t *testing.T) {
	t.Parallel()
	l := eventlogtest.Open(t, "chat", migrations)
	l.Follow(authors{})
	l.AppendAll(decidetest.By("ann", &chatv1.ConversationStarted{ConversationId: "c"}),
		decidetest.By("ann", &chatv1.MessageSent{ConversationId: "c", MessageId: "m1"}),
		decidetest.By("bob", &chatv1.MessageSent{ConversationId: "c", MessageId: "m2"}))
	edit := func(user, message, body string) decidetest.Outcome {
		return eventlogtest.Decide(l, newEditing, user,
			&chatv1.EditMessage{ConversationId: "c", MessageId: message, Body: body})
	}
	require.Equal(t, decidetest.Outcome{Code: "not_allowed"}, edit("ann", "m2", "x"))
	require.Equal(t, decidetest.Outcome{Code: refusal.InvalidField}, edit("bob", "m2", ""), "a text is required")
	require.Equal(t, []string{"authors (conversation:c,ann,2)", "authors (conversation:c,bob,1)"}, l.Rows())
	require.Len(t, edit("bob", "m2", "x").Events, 1)
	require.Equal(t, []string{"authors (conversation:c,ann,2)", "authors (conversation:c,bob,2)"}, l.Rows())
}

// voting is an aggregate that counts votes. Each event is about its voter, and contains the number of all votes.
type voting struct{ newest *toyv1.Voted }

func (v *voting) Decide(_ catalog.Origin, command proto.Message) ([]proto.Message, error) {
	c := command.(*toyv1.Vote)
	return []proto.Message{&toyv1.Voted{StoryId: c.StoryId, PageId: c.PageId, Votes: v.newest.GetVotes() + 1}}, nil
}

func (v *voting) Evolve(_ catalog.Fact, event proto.Message) { v.newest = event.(*toyv1.Voted) }

// marking is an aggregate that changes nothing.
type marking struct{}

func (marking) Decide(catalog.Origin, proto.Message) ([]proto.Message, error) { return nil, nil }
func (marking) Evolve(catalog.Fact, proto.Message)                            {}

func TestDecide_ChecksOtherStreamsAsTheServiceDoes(t *testing.T) {
	t.Parallel()
	l := eventlogtest.Open(t, "toy", nil)
	vote := func(user string) decidetest.Outcome {
		return eventlogtest.Decide(l, func(string) *voting { return &voting{} }, user, &toyv1.Vote{StoryId: "s", PageId: "p"})
	}
	require.Equal(t, refusal.NotFound, vote("ann").Code)
	l.Append("ann", &toyv1.PageWritten{StoryId: "s", PageId: "p"})
	for n, user := range []string{"ann", "bob", "ann"} {
		require.EqualValues(t, n+1, vote(user).Events[0].(*toyv1.Voted).Votes, "the newest event is loaded, whomever it is about")
	}
	l.Append("ann", &toyv1.PageTorn{StoryId: "s", PageId: "p"})
	require.Equal(t, "page_torn", vote("ann").Code)

	mark := func(user string) decidetest.Outcome {
		return eventlogtest.Decide(l, func(string) marking { return marking{} }, user, &toyv1.MarkRead{CircleId: "c"})
	}
	require.Equal(t, refusal.NotAMember, mark("ann").Code)
	l.Append("ann", &toyv1.CircleOpened{CircleId: "c", UserIds: []string{"ann"}})
	require.Equal(t, decidetest.Outcome{}, mark("ann"))
}
