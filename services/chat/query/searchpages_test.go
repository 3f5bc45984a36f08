//go:build integration

package query_test

import (
	"fmt"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"connectrpc.com/connect"
	"github.com/jackc/pgx/v5"
	"github.com/stretchr/testify/require"
	"google.golang.org/protobuf/types/known/timestamppb"

	chatv1 "github.com/edumatrix/interlinked/proto/gen/edumatrix/chat/v1"
	"github.com/edumatrix/interlinked/proto/refusal"
	"github.com/edumatrix/interlinked/services/chat/store"
	"github.com/edumatrix/interlinked/shared/owner/decidetest"
	"github.com/edumatrix/interlinked/shared/rpc"
)

// Pages must contain each message once, although messages arrive, are deleted and are sent at the same time.
func TestSearch_PagesStayStable(t *testing.T) {
	t.Parallel()
	f := newSearchFixture(t)
	f.follow()
	var all []decidetest.Event
	for c := range 5 {
		all = append(all, started(fmt.Sprint("c", c), false, "ann", "bob"))
	}
	for n := range 60 { // in one commit, so many messages have the same time
		all = append(all, sent(fmt.Sprint("c", n%5), "bob", fmt.Sprint("m", n), fmt.Sprint("word ", n)))
	}
	f.AppendAll(all...)
	for n := 60; n < 120; n++ {
		f.AppendAll(sent(fmt.Sprint("c", n%5), "bob", fmt.Sprint("m", n), fmt.Sprint("word ", n)))
	}
	want := f.find("ann", text("word"))
	require.Len(t, want, 120)
	require.Len(t, slices.Compact(slices.Sorted(slices.Values(want))), 120)
	require.Equal(t, "word 119", want[0])
	require.Equal(t, "word 60", want[59])
	for _, limit := range []int32{1, 7, 59, 60, 119, 120, 200} {
		require.Equal(t, want, f.find("ann", &chatv1.SearchRequest{Text: "word", Limit: &limit}), "limit %d", limit)
	}
	r := &chatv1.SearchRequest{Text: "word", Limit: new(int32(10))}
	var got []string
	for pages := 0; ; pages++ {
		require.Less(t, pages, 14)
		answer, err := f.search("ann", r)
		require.NoError(t, err)
		for _, m := range answer.GetMessages() {
			got = append(got, m.GetMessage().GetBody())
		}
		if r.After = answer.GetNext(); r.After == "" {
			break
		}
		f.AppendAll(sent("c1", "bob", fmt.Sprint("new", pages), "word that is new"),
			started(fmt.Sprint("new", pages), false, "ann", "bob"),
			sent(fmt.Sprint("new", pages), "bob", "m", "word in a new conversation"))
		if pages == 0 {
			f.AppendAll(deleted("c0", "bob", "m0"), deleted("c3", "bob", "m118"))
		}
	}
	require.Equal(t, slices.DeleteFunc(want, func(body string) bool { return body == "word 0" }), got)
}

func TestSearch_FiltersByTime(t *testing.T) {
	t.Parallel()
	f := newSearchFixture(t)
	f.follow()
	f.AppendAll(started("c", false, "ann", "bob"), started("d", false, "ann", "bob"))
	for n := range 6 {
		f.AppendAll(sent([]string{"c", "d"}[n%2], "bob", fmt.Sprint("m", n), fmt.Sprint("word ", n)))
	}
	got, err := f.search("ann", text("word"))
	require.NoError(t, err)
	at := func(n int) *timestamppb.Timestamp { return got.GetMessages()[5-n].GetMessage().GetSentAt() }
	later := func(t *timestamppb.Timestamp, by time.Duration) *timestamppb.Timestamp {
		return timestamppb.New(t.AsTime().Add(by))
	}
	for _, test := range []struct {
		after, before *timestamppb.Timestamp
		want          string
	}{
		{nil, nil, "5 4 3 2 1 0"}, {at(2), nil, "5 4 3"}, {nil, at(2), "1 0"}, {at(1), at(4), "3 2"},
		{later(at(2), -1), nil, "5 4 3 2"}, {later(at(2), 1), nil, "5 4 3"}, {nil, later(at(2), 1), "2 1 0"},
		{nil, later(at(2), -1), "1 0"}, {at(5), nil, ""}, {nil, at(0), ""},
		{timestamppb.New(time.Date(1, 1, 1, 0, 0, 0, 0, time.UTC)), timestamppb.New(time.Date(9999, 1, 1, 0, 0, 0, 0, time.UTC)), "5 4 3 2 1 0"},
	} {
		for _, limit := range []int32{1, 2, 50} {
			found := f.find("ann", &chatv1.SearchRequest{Text: "word", SentAfter: test.after, SentBefore: test.before, Limit: &limit})
			require.Equal(t, test.want, strings.ReplaceAll(strings.Join(found, " "), "word ", ""), "%v", test)
		}
	}
}

// A page reads a bounded number of texts. If none of them matches, it is empty, and the next page continues.
func TestSearch_APageReadsABoundedNumberOfTexts(t *testing.T) {
	t.Parallel()
	f := newSearchFixture(t)
	f.follow()
	all := []decidetest.Event{started("c", false, "ann", "bob"), sent("c", "bob", "first", "final exam")}
	for n := range 1500 {
		all = append(all, sent("c", "bob", fmt.Sprint("m", n), "the exam is not final"))
	}
	f.AppendAll(all...)
	for _, words := range []string{`"final exam"`, "exam -not"} {
		pages, found := 0, []string(nil)
		for r := text(words); pages == 0 || r.After != ""; pages++ {
			got, err := f.search("ann", r)
			require.NoError(t, err)
			for _, m := range got.GetMessages() {
				found = append(found, m.GetMessage().GetBody())
			}
			r.After = got.GetNext()
		}
		require.Equal(t, []string{"final exam"}, found)
		require.Equal(t, 4, pages, "400 texts for each page")
	}
}

// A page reads the words of a bounded number of blocks. The pages are sorted by time nevertheless, and have each
// message once.
func TestSearch_APageReadsABoundedNumberOfBlocks(t *testing.T) {
	t.Parallel()
	f := newSearchFixture(t)
	f.follow()
	f.AppendAll(started("big", false, "ann", "bob"), started("other", false, "ann", "bob"))
	f.AppendAll(sent("other", "bob", "m", "word 1"))
	f.AppendAll(sent("big", "bob", "m", "word 2"))
	f.AppendAll(sent("other", "bob", "n", "word 3"))
	f.CatchUp()
	// Let the conversation big have 5,000 more blocks of later messages without the word, and let the block of the
	// other conversation have a message that is later than all of them.
	_, err := f.Pool.Exec(t.Context(), `WITH numbered AS (SELECT conversation_id AS id, number FROM chat.search_conversations),
		long AS (UPDATE chat.conversations SET version = 3000000 WHERE conversation_id = 'big'),
		late AS (UPDATE chat.search_blocks SET newest_at = newest_at + interval '1 day'
			FROM numbered WHERE id = 'other' AND conversation = number)
		INSERT INTO chat.search_blocks
		SELECT number, n, now() + n * interval '1 second', now() + n * interval '1 second'
		FROM numbered, generate_series(1, 5000) n WHERE id = 'big'`)
	require.NoError(t, err)
	for _, limit := range []int32{1, 50} {
		found, pages := []string(nil), 0
		for r := (&chatv1.SearchRequest{Text: "word", Limit: &limit}); pages == 0 || r.After != ""; pages++ {
			got, err := f.search("ann", r)
			require.NoError(t, err)
			for _, m := range got.GetMessages() {
				found = append(found, m.GetMessage().GetBody())
			}
			r.After = got.GetNext()
		}
		require.Equal(t, []string{"word 3", "word 2", "word 1"}, found)
		require.Equal(t, map[int32]int{1: 5, 50: 3}[limit], pages)
	}
}

// A page is bounded by the size of its texts, as a page of chat.history.
func TestSearch_PagesAreBoundedByBytes(t *testing.T) {
	t.Parallel()
	f := newSearchFixture(t)
	f.follow()
	long := strings.Repeat("long ", 20_000)
	all := []decidetest.Event{started("c", false, "ann", "bob")}
	for n := range 14 {
		all = append(all, sent("c", "bob", fmt.Sprint("m", n), fmt.Sprint(long, n)))
	}
	f.AppendAll(append(all, sent("c", "bob", "huge", strings.Repeat(long, 6)))...)
	count, pages := 0, 0
	for r := text("long"); pages == 0 || r.After != ""; pages++ {
		got, err := f.search("ann", r)
		require.NoError(t, err)
		bytes := 0
		for _, m := range got.GetMessages() {
			bytes += len(m.GetMessage().GetBody())
		}
		require.True(t, len(got.GetMessages()) == 1 || bytes <= store.MaxPageBytes, "%d bytes", bytes)
		count, r.After = count+len(got.GetMessages()), got.GetNext()
	}
	require.Equal(t, 15, count)
	require.Equal(t, 4, pages)
}

// A page ends when it has read many long texts, even if none of them matches.
func TestSearch_TextsThatDoNotMatchAreBoundedByBytes(t *testing.T) {
	t.Parallel()
	f := newSearchFixture(t)
	f.follow()
	all := []decidetest.Event{started("c", false, "ann", "bob"), sent("c", "bob", "first", "final exam")}
	for n := range 40 {
		all = append(all, sent("c", "bob", fmt.Sprint("m", n), "exam "+strings.Repeat("long ", 20_000)+"final"))
	}
	f.AppendAll(all...)
	pages := 0
	for r := text(`"final exam"`); pages == 0 || r.After != ""; pages++ {
		got, err := f.search("ann", r)
		require.NoError(t, err)
		require.Equal(t, pages == 2, len(got.GetMessages()) == 1)
		r.After = got.GetNext()
	}
	require.Equal(t, 3, pages, "1 MiB of texts for each page")
}

// A user of more conversations than one page searches finds the messages of all of them.
func TestSearch_OfManyConversations(t *testing.T) {
	t.Parallel()
	f := newSearchFixture(t)
	f.follow()
	const conversations = 1100
	var all []decidetest.Event
	for c := range conversations {
		id := fmt.Sprint("c", c)
		all = append(all, started(id, false, "ann", "bob"), sent(id, "bob", "m", fmt.Sprint("word ", c)))
		if c < 300 {
			all = append(all, left(id, "ann"))
		}
	}
	f.AppendAll(all...)
	const border = conversations - 500 // the last conversation that the first pages search
	for c := border; c < border+5; c++ {
		f.AppendAll(sent(fmt.Sprint("c", c), "bob", "late", fmt.Sprint("word late ", c)))
	}
	got := f.find("ann", text("word"))
	require.Len(t, got, conversations+5)
	require.Len(t, slices.Compact(slices.Sorted(slices.Values(got))), conversations+5)
	require.Equal(t, []string{"word 7"}, f.find("ann", text("word 7 ")))
	// The pages have each message once, although ann joins other conversations meanwhile.
	got = nil
	for r, pages := (&chatv1.SearchRequest{Text: "word", Limit: asked(200)}), 0; pages == 0 || r.After != ""; pages++ {
		answer, err := f.search("ann", r)
		require.NoError(t, err)
		for _, m := range answer.GetMessages() {
			got = append(got, m.GetMessage().GetBody())
		}
		r.After = answer.GetNext()
		id := fmt.Sprint("new", pages)
		f.AppendAll(started(id, false, "ann", "bob"), sent(id, "bob", "m", "word in a new conversation"))
	}
	require.Len(t, got, conversations+5)
	require.Len(t, slices.Compact(slices.Sorted(slices.Values(got))), conversations+5)
	require.Equal(t, []string{"word 1050"}, f.find("ann", text("1050")))
}

// While the server ends the statements of one search, the queries of other users must be answered.
func TestSearch_TakesTooLong(t *testing.T) {
	t.Parallel()
	f := newSearchFixture(t)
	f.follow()
	f.AppendAll(started("c", false, "ann", "bob"), sent("c", "ann", "m", "word"))
	f.CatchUp()
	tx, err := f.Pool.Begin(t.Context())
	require.NoError(t, err)
	_, err = tx.Exec(t.Context(), "LOCK TABLE chat.search_words") // statements that read the table wait
	require.NoError(t, err)
	refused := make(chan error)
	go func() {
		_, err := f.search("ann", text("word"))
		refused <- err
	}()
	for answered := false; !answered; {
		_, err := f.history("bob", &chatv1.HistoryRequest{ConversationId: "c"})
		require.NoError(t, err)
		select {
		case err = <-refused:
			answered = true
			require.Equal(t, "search_too_broad", codeOf(err))
			require.ErrorContains(t, err, "add a word or a filter")
		default:
		}
	}
	require.NoError(t, tx.Rollback(t.Context()))
	require.Equal(t, []string{"word"}, f.find("ann", text("word")))
}

// A user searches for what they have just written. The search waits for both projections that it reads.
func TestSearch_WaitsForEarlierWrites(t *testing.T) {
	t.Parallel()
	f := newSearchFixture(t)
	f.AppendAll(started("c", false, "ann", "bob"), sent("c", "ann", "m", "word"))
	f.Follow(store.DeclareConversations())
	_, err := f.client.Search(f.As("ann"), connect.NewRequest(text("word")))
	require.Equal(t, refusal.Unavailable, codeOf(err))
	f.Follow(store.DeclareSearch())
	for n := range 20 {
		require.Len(t, f.find("ann", text("word")), n+1)
		f.AppendAll(sent("c", "ann", fmt.Sprint("m", n), "word"))
	}
}

// A user searches in a loop while they are removed and added again. They must never find a text that was written while
// they were not a member, even while the projections lag behind the log.
func TestSearch_WhileMembershipChanges(t *testing.T) {
	t.Parallel()
	f := newSearchFixture(t)
	f.follow()
	f.AppendAll(started("c", true, "ann", "bob"), sent("c", "ann", "m", "word in"))
	done := make(chan struct{})
	var reads sync.WaitGroup
	count := make([]int, 2)
	for i, id := range []string{"", "c"} {
		reads.Go(func() {
			for {
				select {
				case <-done:
					return
				default:
				}
				// Without a position, the query does not wait for the projections.
				got, err := f.client.Search(rpc.WithActor(f.t.Context(), "bob"),
					connect.NewRequest(&chatv1.SearchRequest{Text: "word", ConversationId: id}))
				if err != nil {
					t.Error(err)
					return
				}
				for _, m := range got.Msg.GetMessages() {
					if count[i]++; m.GetMessage().GetBody() != "word in" {
						t.Errorf("bob found %q", m.GetMessage().GetBody())
					}
				}
			}
		})
	}
	for n := range 25 {
		f.AppendAll(left("c", "bob"))
		f.AppendAll(sent("c", "ann", fmt.Sprint("out", n), "word out"), edited("c", "ann", "m", "word out"))
		f.AppendAll(edited("c", "ann", "m", "word in"), added("c", "bob"))
		f.AppendAll(edited("c", "ann", "m", "word in"), sent("c", "ann", fmt.Sprint("in", n), "word in"))
	}
	close(done)
	reads.Wait()
	require.NotZero(t, count[0])
	require.NotZero(t, count[1])
}

// The words of a message must not be stored after its deletion, and a deleted message must not be found in the
// meantime.
func TestSearch_DeletionRemovesTheWords(t *testing.T) {
	t.Parallel()
	f := newSearchFixture(t)
	f.follow()
	f.AppendAll(started("c", false, "ann", "bob"), sent("c", "ann", "m1", "secret plan"), edited("c", "ann", "m1", "hidden plan"),
		sent("c", "ann", "m2", "the plan"), sent("c", "ann", "m3", "hidden secret"))
	require.Len(t, f.find("bob", text("plan")), 2)
	stored := func() (all []string) {
		f.CatchUp()
		rows, err := f.Pool.Query(t.Context(), "SELECT word FROM chat.search_words ORDER BY word")
		require.NoError(t, err)
		all, err = pgx.CollectRows(rows, pgx.RowTo[string])
		require.NoError(t, err)
		return all
	}
	require.Equal(t, []string{"from:ann", "hidden", "plan", "secret", "the"}, stored())
	f.AppendAll(deleted("c", "ann", "m1"))
	require.Equal(t, []string{"the plan"}, f.find("bob", text("plan")))
	require.Equal(t, []string{"hidden secret"}, f.find("bob", text("secret")))
	f.AppendAll(deleted("c", "ann", "m3"))
	require.Empty(t, f.find("bob", text("secret")))
	require.Equal(t, []string{"from:ann", "plan", "the"}, stored())
	f.RequireRebuild() // the rebuild reads redacted events
	require.Equal(t, []string{"from:ann", "plan", "the"}, stored())
}
