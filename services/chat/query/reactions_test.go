//go:build integration

package query_test

import (
	"fmt"
	"net/http"
	"testing"
	"time"

	"connectrpc.com/connect"
	"github.com/stretchr/testify/require"
	"google.golang.org/protobuf/proto"

	chatv1 "github.com/edumatrix/interlinked/proto/gen/edumatrix/chat/v1"
	"github.com/edumatrix/interlinked/proto/gen/edumatrix/chat/v1/chatv1connect"
	"github.com/edumatrix/interlinked/proto/refusal"
	"github.com/edumatrix/interlinked/services/chat/query"
	"github.com/edumatrix/interlinked/services/chat/reaction"
	"github.com/edumatrix/interlinked/services/chat/store"
	"github.com/edumatrix/interlinked/shared/eventlog/eventlogtest"
	"github.com/edumatrix/interlinked/shared/owner/decidetest"
	"github.com/edumatrix/interlinked/shared/page"
)

// reactions is a fixture with a client for the queries about reactions.
type reactions struct {
	*fixture
	client chatv1connect.ReactionServiceClient
}

func newReactions(t *testing.T) *reactions {
	t.Helper()
	f := newFixture(t)
	f.follow()
	client, url := f.Serve(query.Projections, func(o ...connect.HandlerOption) (string, http.Handler) {
		return chatv1connect.NewReactionServiceHandler(query.New(f.Log.Log, store.New(f.Pool)), o...)
	})
	return &reactions{f, chatv1connect.NewReactionServiceClient(client, url)}
}

// send sends a command of a user, and returns the code with which it is refused, or "unchanged", or "".
func (r *reactions) send(user string, command proto.Message) string {
	r.t.Helper()
	outcome := eventlogtest.Decide(r.Log, reaction.New, user, command)
	if outcome.Code == "" && len(outcome.Events) == 0 {
		return "unchanged"
	}
	return outcome.Code
}

func (r *reactions) add(user, message, emoji string) string {
	r.t.Helper()
	return r.send(user, &chatv1.AddReaction{ConversationId: "c", MessageId: message, Emoji: emoji})
}

func (r *reactions) remove(user, message, emoji string) string {
	r.t.Helper()
	return r.send(user, &chatv1.RemoveReaction{ConversationId: "c", MessageId: message, Emoji: emoji})
}

// shown returns the reactions to a message as texts: "2 👍 own".
func shown(m *chatv1.Message) (all []string) {
	for _, r := range m.GetReactions() {
		text := fmt.Sprint(r.GetCount(), " ", r.GetEmoji())
		if r.GetOwn() {
			text += " own"
		}
		all = append(all, text)
	}
	return all
}

// inHistory returns the reactions to the messages that a user reads, by the id of the message.
func (r *reactions) inHistory(user, thread string) map[string][]string {
	r.t.Helper()
	got, err := r.history(user, &chatv1.HistoryRequest{ConversationId: "c", ThreadId: thread})
	require.NoError(r.t, err)
	all := map[string][]string{}
	for _, m := range got.GetMessages() {
		all[m.GetMessageId()] = shown(m)
	}
	return all
}

// list returns the reactions to a message as texts, "ann 👍", and the cursor of the next page.
func (r *reactions) list(user string, q *chatv1.ReactionsRequest) (all []string, next string, err error) {
	r.t.Helper()
	q.ConversationId = "c"
	got, err := eventlogtest.Ask(r.As(user), r.client.Reactions, q)
	for _, one := range got.GetReactions() {
		require.Less(r.t, time.Since(one.GetReactedAt().AsTime()).Abs(), time.Minute)
		all = append(all, one.GetUserId()+" "+one.GetEmoji())
	}
	return all, got.GetNext(), err
}

func TestReactions_AreShownWithMessages(t *testing.T) {
	t.Parallel()
	r := newReactions(t)
	r.AppendAll(started("c", false, "ann", "bob", "cid"), sent("c", "ann", "m1", "one"), sent("c", "ann", "m2", "two"),
		decidetest.By("bob", &chatv1.MessageSent{ConversationId: "c", MessageId: "m3", ReplyTo: "m1", ThreadId: "m1", Body: "three"}),
		decidetest.By("ann", &chatv1.MessagePinned{ConversationId: "c", MessageId: "m1"}))
	require.Empty(t, r.add("bob", "m1", "👍"))
	require.Equal(t, "unchanged", r.add("bob", "m1", "👍"), "a second time")
	require.Empty(t, r.add("ann", "m1", "🎉"))
	require.Empty(t, r.add("cid", "m1", "👍"))
	require.Empty(t, r.add("cid", "m3", ":party-parrot:"))
	require.Equal(t, "unchanged", r.remove("ann", "m1", "👍"))
	require.Empty(t, r.add("cid", "m2", "👍"))
	require.Empty(t, r.remove("cid", "m2", "👍"))

	require.Equal(t, map[string][]string{"m1": {"2 👍 own", "1 🎉"}, "m2": nil}, r.inHistory("bob", ""))
	require.Equal(t, map[string][]string{"m1": {"2 👍", "1 🎉 own"}, "m2": nil}, r.inHistory("ann", ""))
	require.Equal(t, map[string][]string{"m3": {"1 :party-parrot: own"}}, r.inHistory("cid", "m1"))
	history, err := r.history("ann", &chatv1.HistoryRequest{ConversationId: "c"})
	require.NoError(t, err)
	require.EqualValues(t, 3, history.GetMessages()[0].GetReactionsVersion())
	require.EqualValues(t, 2, history.GetMessages()[1].GetReactionsVersion(), "of a message whose reactions are removed")
	pins, err := eventlogtest.Ask(r.As("bob"), r.chat.Pins, &chatv1.PinsRequest{ConversationId: "c"})
	require.NoError(t, err)
	require.Equal(t, []string{"2 👍 own", "1 🎉"}, shown(pins.GetPins()[0].GetMessage()))

	r.AppendAll(left("c", "cid"))
	require.Equal(t, map[string][]string{"m1": {"2 👍", "1 🎉 own"}, "m2": nil}, r.inHistory("ann", ""), "the reactions of cid remain")
	require.Equal(t, map[string][]string{"m1": nil, "m2": nil}, r.inHistory("cid", ""), "cid cannot see them any more")
	require.Equal(t, refusal.NotAMember, r.remove("cid", "m1", "👍"))
	r.RequireRebuild()
}

func TestReactions_OnlyMembersReactToMessagesThatExist(t *testing.T) {
	t.Parallel()
	r := newReactions(t)
	r.AppendAll(started("c", false, "ann", "bob"), sent("c", "ann", "m", "hi"), sent("c", "ann", "gone", "no"),
		started("other", false, "ann"), sent("other", "ann", "elsewhere", "hi"))
	require.Empty(t, r.add("bob", "gone", "👍"))
	r.AppendAll(deleted("c", "ann", "gone"))
	for name, test := range map[string]struct{ user, message, emoji, code string }{
		"a stranger":                     {"eve", "m", "👍", refusal.NotAMember},
		"a stranger, an unknown message": {"eve", "none", "👍", refusal.NotAMember},
		"an unknown message":             {"ann", "none", "👍", refusal.NotFound},
		"another conversation's message": {"ann", "elsewhere", "👍", refusal.NotFound},
		"a deleted message":              {"ann", "gone", "👍", "message_deleted"},
		"no emoji":                       {"ann", "m", "", refusal.InvalidField},
		"a word":                         {"ann", "m", "good", refusal.InvalidField},
		"a text that is too long":        {"ann", "m", ":0123456789012345678901234567890123:", refusal.InvalidField},
		"no message":                     {"ann", "", "👍", refusal.InvalidField},
	} {
		require.Equal(t, test.code, r.add(test.user, test.message, test.emoji), name)
	}
	require.Equal(t, "message_deleted", r.remove("bob", "gone", "👍"))
	require.Equal(t, "message_deleted", r.add("bob", "gone", "👍"), "bob has added it before the message was deleted")
	require.Equal(t, map[string][]string{"m": nil, "gone": nil}, r.inHistory("bob", ""))
	all, _, err := r.list("bob", &chatv1.ReactionsRequest{MessageId: "gone"})
	require.NoError(t, err)
	require.Empty(t, all)
	r.RequireRebuild()
}

func TestReactions_ListsUsersInPages(t *testing.T) {
	t.Parallel()
	r := newReactions(t)
	r.AppendAll(started("c", true, "ann", "bob", "cid"), sent("c", "ann", "m", "hi"), added("c", "dan"), left("c", "cid"))
	for _, reaction := range [][2]string{{"bob", "👍"}, {"ann", "🎉"}, {"ann", "👍"}, {"bob", "❤️"}, {"dan", "👍"}} {
		require.Empty(t, r.add(reaction[0], "m", reaction[1]))
	}
	require.Empty(t, r.remove("bob", "m", "👍"))
	require.Empty(t, r.add("bob", "m", "👍"), "now the last one")
	for emoji, want := range map[string][]string{"": {"ann 🎉", "ann 👍", "bob ❤️", "dan 👍", "bob 👍"},
		"👍": {"ann 👍", "dan 👍", "bob 👍"}, "🚀": nil} {
		for _, limit := range []int32{1, 2, 4, 5, 0} {
			var got []string
			for next, pages := "", 0; ; pages++ {
				require.LessOrEqual(t, pages, len(want))
				page, following, err := r.list("ann", &chatv1.ReactionsRequest{MessageId: "m", Emoji: emoji, Limit: asked(limit), After: next})
				require.NoError(t, err)
				if got, next = append(got, page...), following; next == "" {
					break
				}
			}
			require.Equal(t, want, got)
		}
	}
	got, err := eventlogtest.Ask(r.As("ann"), r.client.Reactions, &chatv1.ReactionsRequest{ConversationId: "c", MessageId: "m"})
	require.NoError(t, err)
	require.EqualValues(t, 7, got.GetVersion())

	for name, test := range map[string]struct {
		user string
		q    *chatv1.ReactionsRequest
		code string
	}{
		"a user who has left":                 {"cid", &chatv1.ReactionsRequest{MessageId: "m"}, refusal.NotAMember},
		"a stranger":                          {"eve", &chatv1.ReactionsRequest{MessageId: "m"}, refusal.NotAMember},
		"a message from before dan joined":    {"dan", &chatv1.ReactionsRequest{MessageId: "m"}, refusal.NotFound},
		"an unknown message":                  {"ann", &chatv1.ReactionsRequest{MessageId: "none"}, refusal.NotFound},
		"a stranger, about an unknown one":    {"eve", &chatv1.ReactionsRequest{MessageId: "none"}, refusal.NotAMember},
		"a limit above 200":                   {"ann", &chatv1.ReactionsRequest{MessageId: "m", Limit: new(int32(201))}, refusal.InvalidField},
		"a cursor that no page has returned":  {"ann", &chatv1.ReactionsRequest{MessageId: "m", After: "c!"}, refusal.InvalidField},
		"the cursor of a list with two parts": {"ann", &chatv1.ReactionsRequest{MessageId: "m", After: page.Cursor(int64(1), int32(1))}, refusal.InvalidField},
	} {
		_, _, err := r.list(test.user, test.q)
		require.Equal(t, test.code, codeOf(err), name)
	}
}
