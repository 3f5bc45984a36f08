//go:build integration

package query_test

import (
	"fmt"
	"math/rand/v2"
	"net/http"
	"slices"
	"strconv"
	"strings"
	"testing"
	"time"

	"connectrpc.com/connect"
	"github.com/stretchr/testify/require"
	"google.golang.org/protobuf/types/known/timestamppb"

	chatv1 "github.com/edumatrix/interlinked/proto/gen/edumatrix/chat/v1"
	"github.com/edumatrix/interlinked/proto/gen/edumatrix/chat/v1/chatv1connect"
	"github.com/edumatrix/interlinked/proto/refusal"
	"github.com/edumatrix/interlinked/services/chat/query"
	"github.com/edumatrix/interlinked/services/chat/store"
	"github.com/edumatrix/interlinked/shared/eventlog/eventlogtest"
	"github.com/edumatrix/interlinked/shared/owner/decidetest"
	"github.com/edumatrix/interlinked/shared/page"
)

// searchFixture is a fixture with a client for searches.
type searchFixture struct {
	*fixture
	client chatv1connect.SearchServiceClient
}

func newSearchFixture(t *testing.T) *searchFixture {
	t.Helper()
	f := newFixture(t)
	client, url := f.Serve(query.Projections, func(o ...connect.HandlerOption) (string, http.Handler) {
		return chatv1connect.NewSearchServiceHandler(query.New(f.Log.Log, store.New(f.Pool)), o...)
	})
	return &searchFixture{f, chatv1connect.NewSearchServiceClient(client, url)}
}

// follow applies the log to both projections that a search reads.
func (f *searchFixture) follow() { f.Follow(store.DeclareConversations(), store.DeclareSearch()) }

func (f *searchFixture) search(user string, r *chatv1.SearchRequest) (*chatv1.SearchResponse, error) {
	return eventlogtest.Ask(f.As(user), f.client.Search, r)
}

// find returns the texts of all pages of a search, the newest message first.
func (f *searchFixture) find(user string, r *chatv1.SearchRequest) (all []string) {
	f.t.Helper()
	for r.After = ""; ; {
		got, err := f.search(user, r)
		require.NoError(f.t, err)
		for _, m := range got.GetMessages() {
			all = append(all, m.GetMessage().GetBody())
		}
		if r.After = got.GetNext(); r.After == "" {
			return all
		}
	}
}

// text returns the request for a search in all conversations.
func text(words string) *chatv1.SearchRequest { return &chatv1.SearchRequest{Text: words} }

func TestSearch_FindsTheMessagesThatUsersExpect(t *testing.T) {
	t.Parallel()
	f := newSearchFixture(t)
	f.follow()
	f.AppendAll(started("c1", false, "ann", "bob"), started("c2", false, "ann", "cid"), started("c3", false, "bob", "cid"),
		sent("c1", "ann", "m1", "Homework for Monday: read chapter 3"),
		sent("c2", "cid", "m2", "The homework is done"),
		sent("c3", "bob", "m3", "No homework for us"),
		decidetest.By("bob", &chatv1.MessageSent{ConversationId: "c1", MessageId: "m4", Body: "I have read the chapter",
			ReplyTo: "m1", ThreadId: "m1", MentionedUserIds: []string{"ann"}}),
		decidetest.By("bob", &chatv1.MessageSent{ConversationId: "c1", MessageId: "m5", Body: "école, Monday", MentionsAll: true}),
		decidetest.By("ann", &chatv1.MessageSent{ConversationId: "c1", MessageId: "m6", Body: "日本語の宿題", MentionedUserIds: []string{"bob"}}),
		decidetest.By("bob", &chatv1.MessageSent{ConversationId: "c1", MessageId: "m7", Body: "a chapel", MentionedUserIds: []string{"ann"}}),
		edited("c1", "bob", "m7", "the chapel")) // the new text mentions nobody
	for _, test := range []struct {
		user string
		r    *chatv1.SearchRequest
		want string
	}{
		{"ann", text("homework"), "m2 m1"}, {"bob", text("homework"), "m3 m1"}, {"cid", text("homework"), "m3 m2"},
		{"eve", text("homework"), ""}, // eve is in no conversation
		{"ann", text("read chapter"), "m4 m1"}, {"ann", text("chapter read mon"), "m1"},
		{"ann", text(`"read chapter"`), "m1"}, {"ann", text("chapter -homework"), "m4"}, {"ann", text("hom"), "m2 m1"},
		{"ann", text("hom "), ""}, {"ann", text("ECOLE"), "m5"}, {"ann", text("本語"), "m6"}, {"ann", text("宿"), "m6"},
		{"ann", text("homework chapter done"), ""}, {"ann", text("nothing"), ""},
		{"ann", &chatv1.SearchRequest{Text: "homework", ConversationId: "c2"}, "m2"},
		{"ann", &chatv1.SearchRequest{Text: "chapter", Author: "bob"}, "m4"},
		{"ann", &chatv1.SearchRequest{Text: "chapter", Author: "cid"}, ""},
		{"ann", &chatv1.SearchRequest{Text: "monday", MentionsMe: true}, "m5"},
		{"ann", &chatv1.SearchRequest{Text: "chap", MentionsMe: true}, "m4"},
		{"bob", &chatv1.SearchRequest{Text: "chap", MentionsMe: true}, ""},
		{"bob", &chatv1.SearchRequest{Text: "日本", MentionsMe: true}, "m6"},
		{"ann", text("from:ann"), ""}, {"ann", text("mentions:*"), ""}, // the words of properties are not found as texts
	} {
		got, err := f.search(test.user, test.r)
		require.NoError(t, err)
		var ids []string
		for _, m := range got.GetMessages() {
			ids = append(ids, m.GetMessage().GetMessageId())
		}
		require.Equal(t, test.want, strings.Join(ids, " "), "%s searches %v", test.user, test.r)
		require.Empty(t, got.GetNext())
	}
	// A found message is the one of chat.history, with its conversation and an excerpt.
	got, err := f.search("ann", text("monday"))
	require.NoError(t, err)
	history, err := f.history("ann", &chatv1.HistoryRequest{ConversationId: "c1"})
	require.NoError(t, err)
	first := got.GetMessages()[1]
	require.Equal(t, history.GetMessages()[0].String(), first.GetMessage().String())
	require.EqualValues(t, 1, first.GetMessage().GetReplyCount())
	require.Equal(t, "c1", first.GetConversationId())
	require.Equal(t, []string{"Homework for ", "[Monday]", ": read chapter 3"}, excerpt(first))
}

// excerpt returns the parts of an excerpt, with brackets around those that match.
func excerpt(m *chatv1.FoundMessage) (all []string) {
	for _, p := range m.GetExcerpt() {
		if p.GetMatch() {
			all = append(all, "["+p.GetText()+"]")
		} else {
			all = append(all, p.GetText())
		}
	}
	return all
}

// A search finds the texts that chat.history shows to the user, and no others: neither texts from the time when the
// user was not a member, nor texts that an edit has replaced, nor deleted ones.
func TestSearch_FindsOnlyReadableTexts(t *testing.T) {
	t.Parallel()
	f := newSearchFixture(t)
	f.follow()
	for _, fromJoining := range []bool{false, true} {
		id := fmt.Sprint("c-", fromJoining)
		f.AppendAll(started(id, fromJoining, "ann", "bob"), sent(id, "ann", "m1", "one word"), sent(id, "ann", "m2", "two word"),
			added(id, "cid"), left(id, "bob"), sent(id, "ann", "m3", "three word"), edited(id, "ann", "m1", "uno word"),
			deleted(id, "ann", "m2"), left(id, "cid"), sent(id, "ann", "m4", "four word"), edited(id, "ann", "m3", "tre word"),
			added(id, "cid"), sent(id, "ann", "m5", "five word"))
	}
	for _, test := range []struct {
		user, id, words string
		want            []string
	}{
		{"ann", "c-false", "word", []string{"five word", "four word", "tre word", "uno word"}},
		{"ann", "c-true", "word", []string{"five word", "four word", "tre word", "uno word"}},
		{"ann", "c-true", "one", nil}, {"ann", "c-true", "uno", []string{"uno word"}}, {"ann", "c-true", "two", nil},
		// Bob reads and finds the text as it was when he left.
		{"bob", "c-false", "word", []string{"one word"}}, {"bob", "c-true", "word", []string{"one word"}},
		{"bob", "c-true", "uno", nil}, {"bob", "c-true", "one", []string{"one word"}}, {"bob", "c-false", "three", nil},
		{"cid", "c-false", "word", []string{"five word", "four word", "tre word", "uno word"}},
		// Cid was not a member when m1 and m4 were sent, nor when m3 was edited.
		{"cid", "c-true", "word", []string{"five word", "three word"}},
		{"cid", "c-true", "tre", nil}, {"cid", "c-true", "three", []string{"three word"}}, {"cid", "c-true", "four", nil},
	} {
		require.Equal(t, test.want, f.find(test.user, &chatv1.SearchRequest{Text: test.words, ConversationId: test.id}),
			"%s searches %s for %s", test.user, test.id, test.words)
	}
	require.Equal(t, []string{"one word", "one word"}, f.find("bob", text("word")), "in all conversations")
	// A member sees the properties of this moment, and a user who has left does not.
	f.AppendAll(decidetest.By("ann", &chatv1.MessagePinned{ConversationId: "c-true", MessageId: "m1"}))
	for user, pinned := range map[string]bool{"ann": true, "bob": false} {
		got, err := f.search(user, &chatv1.SearchRequest{Text: "word", ConversationId: "c-true"})
		require.NoError(t, err)
		require.Equal(t, pinned, got.GetMessages()[len(got.GetMessages())-1].GetMessage().GetPinned(), user)
	}
	// A stranger gets the same refusal as from chat.history, whether the conversation exists or not.
	for _, id := range []string{"c-true", "c-none"} {
		_, err := f.search("eve", &chatv1.SearchRequest{Text: "word", ConversationId: id})
		_, want := f.history("eve", &chatv1.HistoryRequest{ConversationId: id})
		require.Equal(t, want.Error(), err.Error())
		require.Equal(t, refusal.NotAMember, codeOf(err))
	}
	f.RequireRebuild()
}

// In random conversations, a search must find the messages of chat.history whose texts have the words, in each
// conversation and in all of them, in pages of any size.
func TestSearch_AgreesWithHistory(t *testing.T) {
	t.Parallel()
	f := newSearchFixture(t)
	f.follow()
	seed := rand.Uint64()
	r := rand.New(rand.NewPCG(seed, 0))
	var ids []string
	for c := range 12 {
		id := fmt.Sprint("c", c)
		ids = append(ids, id)
		all := made(r, id, c%2 == 0, 10+r.IntN(60))
		for i, e := range all { // the text is the version; let it have a few digits as words
			switch m := e.Message.(type) {
			case *chatv1.MessageSent:
				m.Body = strings.Join(strings.Split(m.Body, ""), " ")
			case *chatv1.MessageEdited:
				m.Body = strings.Join(strings.Split(m.Body, ""), " ")
			}
			f.AppendAll(all[i])
		}
	}
	limit := int32(1 + r.IntN(7))
	for _, user := range people {
		type at struct {
			sent time.Time
			text string
		}
		var everywhere []at
		for _, digit := range []string{"1", "2", "3 4"} {
			everywhere = nil
			for _, id := range ids {
				got, err := f.history(user, &chatv1.HistoryRequest{ConversationId: id, Limit: asked(200)})
				if codeOf(err) == refusal.NotAMember {
					continue
				}
				require.NoError(t, err)
				var want []string
				for _, m := range slices.Backward(got.GetMessages()) {
					has := strings.Fields(m.GetBody())
					if !slices.ContainsFunc(strings.Fields(digit), func(d string) bool { return !slices.Contains(has, d) }) {
						want = append(want, m.GetBody())
						everywhere = append(everywhere, at{m.GetSentAt().AsTime(), m.GetBody()})
					}
				}
				require.Equal(t, want, f.find(user, &chatv1.SearchRequest{Text: digit, ConversationId: id, Limit: &limit}),
					"seed %d: %s searches %s for %s", seed, user, id, digit)
			}
			slices.SortStableFunc(everywhere, func(a, b at) int { return b.sent.Compare(a.sent) })
			var want []string
			for _, m := range everywhere {
				want = append(want, m.text)
			}
			require.Equal(t, want, f.find(user, &chatv1.SearchRequest{Text: digit, Limit: &limit}), "seed %d: %s", seed, user)
		}
	}
	f.RequireRebuild()
}

func TestSearch_RefusesWhatCannotBeSearched(t *testing.T) {
	t.Parallel()
	f := newSearchFixture(t)
	f.follow()
	now := timestamppb.Now()
	for field, r := range map[string]*chatv1.SearchRequest{
		"text has more than 16 different words and phrases; leave some out":        text(strings.Join(numbers(17), " ")),
		"text has only excluded words; add a word to find":                         text(`-exam -"old news"`),
		"text has no word; add a letter or a digit":                                text("?!"),
		"limit has to be from 1 to 200":                                            {Text: "a", Limit: new(int32(201))},
		"after is not a valid cursor; use the one that the previous page returned": {Text: "a", After: page.Cursor(int64(1))},
		"sent_before has to be later than sent_after":                              {Text: "a", SentAfter: now, SentBefore: now},
		"sent_after is not a valid time; it has to be from the year 1 to the year 9999": {Text: "a",
			SentAfter: &timestamppb.Timestamp{Nanos: -1}},
	} {
		_, err := f.search("ann", r)
		require.Equal(t, refusal.InvalidField, codeOf(err), field)
		require.ErrorContains(t, err, field)
	}
	// The declared shapes refuse texts without a visible character or that are too long, and ids that are not valid.
	declared, ok := f.Catalog.Query("chat.search")
	require.True(t, ok)
	for _, r := range []*chatv1.SearchRequest{text(" "), text(strings.Repeat("é", 201)), {Text: "a", Author: "a b"},
		{Text: "a", ConversationId: "a b"}} {
		require.Error(t, declared.Check(r), "%v", r)
	}
	require.NoError(t, declared.Check(text(strings.Repeat("é", 200))))
}

// numbers returns the numbers below n as texts.
func numbers(n int) (all []string) {
	for i := range n {
		all = append(all, strconv.Itoa(i))
	}
	return all
}
