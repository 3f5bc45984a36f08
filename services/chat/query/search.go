package query

import (
	"context"
	"errors"
	"time"

	"connectrpc.com/connect"
	"google.golang.org/protobuf/types/known/timestamppb"

	"github.com/edumatrix/interlinked/proto/catalog"
	chatv1 "github.com/edumatrix/interlinked/proto/gen/edumatrix/chat/v1"
	"github.com/edumatrix/interlinked/proto/refusal"
	"github.com/edumatrix/interlinked/services/chat/store"
	"github.com/edumatrix/interlinked/services/chat/store/words"
	"github.com/edumatrix/interlinked/shared/eventlog"
	"github.com/edumatrix/interlinked/shared/page"
	"github.com/edumatrix/interlinked/shared/rpc"
)

// codeTooBroad is the code of a search that the database server has ended.
const codeTooBroad = "search_too_broad"

// maxConversations is the maximum number of conversations that one page searches, because each of them costs a lookup of
// its newest parts.
const maxConversations = 500

// maxPhrases is the maximum number of different words and phrases of a search. Each of them is looked for in each text
// that a page reads.
const maxPhrases = 16

// endOfTime is after every time at which a message was sent.
var endOfTime = time.Date(9999, time.December, 31, 0, 0, 0, 0, time.UTC)

// Search returns a page of the readable messages that have some words.
func (s *Server) Search(ctx context.Context, r *connect.Request[chatv1.SearchRequest]) (
	*connect.Response[chatv1.SearchResponse], error) {
	p, err := newSearchPage(rpc.Actor(ctx), r.Msg)
	if err != nil {
		return nil, err
	}
	id := r.Msg.GetConversationId()
	if id != "" {
		readable, err := s.readableBy(ctx, id, rpc.Actor(ctx), false)
		if err != nil {
			return nil, err
		}
		p.of = []store.Searched{{ID: id, Ranges: readable.ranges, Member: readable.member}}
	}
	var answer *chatv1.SearchResponse
	err = s.store.Search(ctx, func(search *store.Search) (err error) {
		p.search = search
		var below catalog.Position // of the next conversations
		if id == "" {
			if below, err = p.join(ctx, rpc.Actor(ctx)); err != nil {
				return err
			}
		}
		answer, err = p.read(ctx, below)
		return err
	})
	switch {
	case errors.Is(err, store.ErrTooBroad):
		return nil, refusal.New(codeTooBroad, "the search took too long; add a word or a filter")
	case err != nil:
		return nil, eventlog.Unavailable(err)
	}
	return connect.NewResponse(answer), nil
}

// newSearchPage returns the page that a user has requested, without the conversations to search. It refuses invalid
// requests.
func newSearchPage(user string, r *chatv1.SearchRequest) (*searchPage, error) {
	p := &searchPage{query: words.Parse(r.GetText()), from: time.Unix(0, 0), until: endOfTime}
	var err error
	if p.limit, err = limits.Read(r.Limit, r.GetAfter(), &p.below, &p.after.at, &p.after.number, &p.after.version); err != nil {
		return nil, err
	}
	switch {
	case p.query.Phrases() > maxPhrases:
		return nil, refusal.NewField("text", "has more than %d different words and phrases; leave some out", maxPhrases)
	case p.query.Wants():
	case p.query.Excludes():
		return nil, refusal.NewField("text", "has only excluded words; add a word to find")
	default:
		return nil, refusal.NewField("text", "has no word; add a letter or a digit")
	}
	// Times are stored in microseconds, and the bounds of a page are included.
	if err := readTime("sent_after", r.GetSentAfter(), time.Microsecond, &p.from); err != nil {
		return nil, err
	}
	if err := readTime("sent_before", r.GetSentBefore(), -time.Microsecond, &p.until); err != nil {
		return nil, err
	}
	if r.GetSentAfter() != nil && r.GetSentBefore() != nil && !r.GetSentAfter().AsTime().Before(r.GetSentBefore().AsTime()) {
		return nil, refusal.NewField("sent_before", "has to be later than sent_after")
	}
	if p.after != (searchPlace{}) {
		p.until = earlier(p.until, time.UnixMicro(p.after.at))
	}
	p.words = store.Words{From: r.GetAuthor()}
	p.words.All, p.words.Prefix = p.query.Terms()
	if r.GetMentionsMe() {
		p.words.Mentions = user
	}
	return p, nil
}

// readTime reads a time of a request, and moves it by a step. If the time is absent, it leaves the value as it is.
func readTime(field string, given *timestamppb.Timestamp, step time.Duration, into *time.Time) error {
	if given == nil {
		return nil
	}
	if !given.IsValid() {
		return refusal.NewField(field, "is not a valid time; it has to be from the year 1 to the year 9999")
	}
	*into = given.AsTime().Truncate(time.Microsecond)
	if given.AsTime().Equal(*into) || step > 0 {
		*into = into.Add(step)
	}
	return nil
}

func earlier(a, b time.Time) time.Time {
	if a.Before(b) {
		return a
	}
	return b
}

// join selects the conversations to search: those that the user has joined or left last, or before the position in
// p.below. It returns the position before which the user has joined or left the next ones, or 0 if there are none.
func (p *searchPage) join(ctx context.Context, user string) (next catalog.Position, err error) {
	joined, next, err := p.search.Joined(ctx, user, p.below, maxConversations)
	if err != nil {
		return 0, err
	}
	for _, j := range joined {
		readable := readableRanges(j.Intervals, j.FromJoining, j.Version)
		p.of = append(p.of, store.Searched{ID: j.ID, Ranges: readable.ranges, Member: readable.member})
	}
	if p.below == 0 && len(joined) > 0 {
		// The following pages search the same conversations, even if the user joins others meanwhile.
		p.below = joined[0].Changed + 1
	}
	return next, nil
}

// cursor returns the cursor of the page that begins after a place among the same conversations.
func (p *searchPage) cursor(after searchPlace) string {
	return page.Cursor(p.below, after.at, after.number, after.version)
}
