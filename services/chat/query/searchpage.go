package query

import (
	"cmp"
	"context"
	"math"
	"slices"
	"time"

	"github.com/edumatrix/interlinked/proto/catalog"
	chatv1 "github.com/edumatrix/interlinked/proto/gen/edumatrix/chat/v1"
	"github.com/edumatrix/interlinked/services/chat/store"
	"github.com/edumatrix/interlinked/services/chat/store/words"
	"github.com/edumatrix/interlinked/shared/page"
)

// These bounds limit what a page reads, whatever is searched for. When a page reaches one of them, it ends, and the next
// page continues there. BenchmarkSearchSize measures how long pages take.
const (
	// maxBlocks is the maximum number of blocks whose words a page reads. A conversation of a million messages has
	// 1,954.
	maxBlocks = 2048
	// maxRead is the maximum number of messages that have the words of the search and whose texts a page reads. Most of
	// them match, unless the search has a phrase or an excluded word.
	maxRead = 400
	// maxReadBytes is the maximum size of these texts. The last text of a page may exceed it.
	maxReadBytes = 2 * store.MaxPageBytes
	// firstBlocks is the number of blocks that are read at first. Most searches have their page of messages in them.
	firstBlocks = 64
	// maxDated is the maximum number of messages whose times are read in one statement.
	maxDated = 256
)

// searchPlace is the place of a message in the order of a search.
type searchPlace struct {
	at, number, version int64 // the time in microseconds, the conversation's number, and the version
}

func placeOf(c store.Candidate) searchPlace {
	return searchPlace{c.SentAt.UnixMicro(), c.Number, int64(c.Version)}
}

// compare returns a negative number if a message at place a comes before a message at place b.
func (a searchPlace) compare(b searchPlace) int {
	return cmp.Or(cmp.Compare(b.at, a.at), cmp.Compare(b.number, a.number), cmp.Compare(b.version, a.version))
}

// searchPage is a page of a search under way.
type searchPage struct {
	search *store.Search
	of     []store.Searched
	query  words.Query
	words  store.Words
	limit  int
	// Messages are searched that were sent in this time, both ends included, and that come after a place.
	from, until time.Time
	after       searchPlace
	below       catalog.Position // see join

	blocks  []store.Block     // blocks whose words are not read yet, the newest first
	looked  int               // the number of blocks whose words are read
	more    bool              // there may be more blocks, which are not after the last one of these
	end     searchPlace       // the place at which the page ends because of maxBlocks; zero: it does not
	undated []store.Matched   // blocks with messages that have the words, and whose times are not read yet
	dated   []store.Candidate // messages with the words that are not read yet, the newest first
}

// read returns the page. The parameter next is the position before which the user has joined or left the conversations
// that are searched after those of p.of; 0: there are none.
func (p *searchPage) read(ctx context.Context, next catalog.Position) (*chatv1.SearchResponse, error) {
	if err := p.selectBlocks(ctx, firstBlocks); err != nil {
		return nil, err
	}
	answer, finished, err := p.fill(ctx)
	switch {
	case err != nil || !finished:
	case p.end != (searchPlace{}):
		answer.Next = p.cursor(p.end)
	default:
		answer.Next = page.Cursor(next, int64(0), int64(0), int64(0))
	}
	return answer, err
}

// selectBlocks selects blocks to read, up to n with those that are read already. If there are more blocks than
// maxBlocks, the page ends before the newest message of the others.
func (p *searchPage) selectBlocks(ctx context.Context, n int) error {
	all, err := p.search.Blocks(ctx, p.of, p.words, p.from, p.until, n+1)
	if err != nil {
		return err
	}
	p.more = len(all) > n && n < maxBlocks
	if len(all) > maxBlocks {
		newest := all[maxBlocks].NewestAt
		all, p.from = all[:maxBlocks], newest.Add(time.Microsecond)
		p.end = searchPlace{newest.UnixMicro(), math.MaxInt64, math.MaxInt64}
	}
	p.blocks = all[p.looked:]
	return nil
}

// fill reads messages until the page ends. It returns the page, with the cursor of the next one, and whether there is
// no message left.
func (p *searchPage) fill(ctx context.Context) (answer *chatv1.SearchResponse, finished bool, err error) {
	answer = &chatv1.SearchResponse{}
	found, texts, read := 0, 0, 0 // the bytes of the messages that match, the bytes and the number of all that are read
	for read < maxRead && texts < maxReadBytes {
		// If few of the texts match, twice as many are read each time.
		candidates, err := p.newest(ctx, min(max(p.limit+1-len(answer.Messages), read), maxRead-read))
		if err != nil {
			return nil, false, err
		}
		if len(candidates) == 0 {
			return answer, true, nil
		}
		messages, n, err := p.search.Messages(ctx, p.of, candidates)
		if err != nil {
			return nil, false, err
		}
		p.dated, read = slices.Insert(p.dated, 0, candidates[n:]...), read+n
		for i, m := range messages {
			if err := ctx.Err(); err != nil { // matching long texts takes time too
				return nil, false, err
			}
			texts += len(m.GetBody())
			if match := p.match(m, p.of[candidates[i].Of]); match != nil {
				found += len(m.Body)
				if len(answer.Messages) == p.limit || len(answer.Messages) > 0 && found > store.MaxPageBytes {
					return answer, false, nil
				}
				answer.Messages = append(answer.Messages, match)
			}
			answer.Next = p.cursor(placeOf(candidates[i]))
		}
	}
	return answer, false, nil
}

// match returns a message with an excerpt, or nil if the message does not match the search.
func (p *searchPage) match(m *chatv1.Message, of store.Searched) *chatv1.FoundMessage {
	mentioned := p.words.Mentions == "" || m.GetMentionsAll() || slices.Contains(m.GetMentionedUserIds(), p.words.Mentions)
	if m == nil || m.Deleted || !mentioned {
		return nil
	}
	matches, ok := p.query.Find(m.Body)
	if !ok {
		return nil
	}
	found := &chatv1.FoundMessage{ConversationId: of.ID, Message: m}
	for _, part := range words.Excerpt(m.Body, matches) {
		found.Excerpt = append(found.Excerpt, &chatv1.ExcerptPart{Text: part.Text, Match: part.Match})
	}
	return found
}

// newest removes the newest messages with the words of the search from those that are not read yet, at most n, and
// returns them. It returns none if there are none left.
func (p *searchPage) newest(ctx context.Context, n int) ([]store.Candidate, error) {
	for {
		bound, more := p.bound()
		more = more && !bound.Before(p.from)
		settled := 0 // the number of messages that are newer than all others
		for _, c := range p.dated {
			if more && !c.SentAt.After(bound) || c.SentAt.Before(p.from) {
				break
			}
			settled++
		}
		if settled >= n || !more {
			newest := p.dated[:min(n, settled)]
			p.dated = p.dated[len(newest):]
			return newest, nil
		}
		next := p.date
		if len(p.blocks) > 0 && !p.blocks[0].NewestAt.Before(bound) {
			next = p.lookUp
		}
		if err := next(ctx); err != nil {
			return nil, err
		}
	}
}

// bound returns a time after which none of the messages in p.blocks and p.undated was sent, and whether there are any.
func (p *searchPage) bound() (bound time.Time, more bool) {
	if len(p.blocks) > 0 {
		bound, more = p.blocks[0].NewestAt, true
	}
	if len(p.undated) > 0 && (!more || p.undated[0].NewestAt.After(bound)) {
		bound, more = p.undated[0].NewestAt, true
	}
	return bound, more
}

// lookUp looks the words up in the next blocks: in few at first, and in four times as many each time.
func (p *searchPage) lookUp(ctx context.Context) error {
	if p.more && len(p.blocks) == 1 { // the last block is only the bound of the others
		if err := p.selectBlocks(ctx, maxBlocks); err != nil {
			return err
		}
	}
	n := min(max(firstBlocks, 3*p.looked), len(p.blocks))
	if p.more {
		n = min(n, len(p.blocks)-1)
	}
	matched, err := p.search.Match(ctx, p.of, p.blocks[:n], p.words)
	p.blocks, p.looked = p.blocks[n:], p.looked+n
	p.undated = append(p.undated, matched...)
	p.sortUndated()
	return err
}

func (p *searchPage) sortUndated() {
	slices.SortStableFunc(p.undated, func(a, b store.Matched) int { return b.NewestAt.Compare(a.NewestAt) })
}

// date reads the times of the messages that may be the newest ones: those of the newest block, and of blocks whose
// messages were sent at the same time.
func (p *searchPage) date(ctx context.Context) error {
	overlapping := 1
	for overlapping < min(len(p.undated), maxDated) && !p.undated[overlapping].NewestAt.Before(p.undated[0].OldestAt) {
		overlapping++
	}
	dated := make([]store.Matched, overlapping)
	for i := range dated {
		m := &p.undated[i]
		n := min(len(m.Versions), maxDated/overlapping)
		dated[i] = *m
		dated[i].Versions, m.Versions = m.Versions[:n], m.Versions[n:]
	}
	found, err := p.search.Candidates(ctx, dated)
	if err != nil {
		return err
	}
	for i, candidates := range found {
		for _, c := range candidates {
			p.undated[i].NewestAt = c.SentAt // the block's other messages were sent before
			if !c.SentAt.Before(p.from) && (p.after == (searchPlace{}) || p.after.compare(placeOf(c)) < 0) {
				p.dated = append(p.dated, c)
			}
		}
	}
	p.undated = slices.DeleteFunc(p.undated, func(m store.Matched) bool { return len(m.Versions) == 0 })
	p.sortUndated()
	slices.SortFunc(p.dated, func(a, b store.Candidate) int { return placeOf(a).compare(placeOf(b)) })
	return nil
}
