//go:build integration

package owner

import (
	"fmt"
	"sync"
	"sync/atomic"
	"testing"

	"github.com/stretchr/testify/require"
	"google.golang.org/protobuf/proto"

	"github.com/edumatrix/interlinked/proto/catalog"
	toyv1 "github.com/edumatrix/interlinked/proto/gen/edumatrix/toy/v1"
	"github.com/edumatrix/interlinked/proto/refusal"
	"github.com/edumatrix/interlinked/shared/envelope"
	"github.com/edumatrix/interlinked/shared/meshtest"
)

// votes is an aggregate that counts the votes for a page. Its events are counters, and each is about one voter.
type votes struct {
	version catalog.Version // of the newest event
	count   int64
	voted   map[string]bool
	evolved *atomic.Int64
}

func (v *votes) Decide(by catalog.Origin, command proto.Message) ([]proto.Message, error) {
	c := command.(*toyv1.Vote)
	if v.voted[by.Actor] {
		return nil, nil
	}
	return []proto.Message{&toyv1.Voted{StoryId: c.StoryId, PageId: c.PageId, Votes: v.count + 1}}, nil
}

func (v *votes) Evolve(f catalog.Fact, event proto.Message) {
	v.evolved.Add(1)
	v.voted[f.Actor] = true
	if f.Version > v.version {
		v.version, v.count = f.Version, event.(*toyv1.Voted).Votes
	}
}

func (v *votes) Forget() { clear(v.voted) }

func TestDecide_RequiresAPartOfAnotherStream(t *testing.T) {
	t.Parallel()
	y := newToy(t, meshtest.Postgres(t), nil)
	vote := &toyv1.Vote{StoryId: "s", PageId: "p"}
	early := y.do("ann", vote)
	require.Equal(t, refusal.NotFound, early.Code)
	require.Equal(t, "there is no such page in this story", early.Text)
	y.do("ann", &toyv1.WritePage{StoryId: "s", PageId: "p"})
	require.Equal(t, refusal.NotFound, y.do("ann", &toyv1.Vote{StoryId: "s", PageId: "other"}).Code)
	require.Equal(t, refusal.NotFound, y.do("ann", &toyv1.Vote{StoryId: "other", PageId: "p"}).Code)
	require.Equal(t, envelope.Committed, y.do("ann", vote).Kind)
	y.do("ann", &toyv1.TearPage{StoryId: "s", PageId: "p"})
	for _, user := range []string{"ann", "bob"} { // ann has voted, so her second vote would change nothing
		late := y.do(user, vote)
		require.Equal(t, "page_torn", late.Code)
		require.Equal(t, "the page is deleted", late.Text)
	}
	y.do("ann", &toyv1.WritePage{StoryId: "s", PageId: "p"})
	require.Equal(t, envelope.Committed, y.do("bob", vote).Kind, "the page exists again")
}

// A page is torn out while users vote for it on two instances. No vote may be committed after the page was torn out.
func TestDecide_CommitsNothingAfterADeletion(t *testing.T) {
	t.Parallel()
	url := meshtest.Postgres(t)
	one, two := newToy(t, url, nil), newToy(t, url, nil)
	for round := range 20 {
		page := fmt.Sprint(round)
		one.do("ann", &toyv1.WritePage{StoryId: "s", PageId: page})
		var all sync.WaitGroup
		for i := range 8 {
			y := []*toy{one, two}[i%2]
			all.Go(func() { y.do(fmt.Sprint("user", i), &toyv1.Vote{StoryId: "s", PageId: page}) })
		}
		all.Go(func() { two.do("ann", &toyv1.TearPage{StoryId: "s", PageId: page}) })
		all.Wait()
	}
	require.Zero(t, one.count(`SELECT count(*) FROM toy.events v JOIN toy.events d
ON d.type = 'toy.page_torn' AND d.subject = split_part(v.stream, ':', 3)
WHERE v.type = 'toy.voted' AND v.position > d.position`))
}

// Many users vote twice, concurrently on two instances. Each has to be counted once, and a decision must load only the
// newest event of the counter and the newest event about its user.
func TestDecide_ACounterKnowsTheSubjectsOfItsCommands(t *testing.T) {
	t.Parallel()
	url := meshtest.Postgres(t)
	one, two := newToy(t, url, nil), newToy(t, url, nil)
	one.do("ann", &toyv1.WritePage{StoryId: "s", PageId: "p"})
	vote := &toyv1.Vote{StoryId: "s", PageId: "p"}
	const users = 600
	var all []*pendingCommand
	for i := range 2 * users {
		y := []*toy{one, two}[i%3%2]
		pc := y.pending(fmt.Sprint("user", i%users), vote)
		all = append(all, pc)
		y.d.enqueue(pc)
	}
	kinds := map[envelope.Kind]int{}
	for _, pc := range all {
		outcome := <-pc.outcome
		require.NoError(t, outcome.err)
		kinds[outcome.Kind]++
	}
	require.Equal(t, map[envelope.Kind]int{envelope.Committed: users, envelope.Unchanged: users}, kinds)

	two.d.states.take("votes:s:p")
	two.evolved.Store(0)
	require.Equal(t, envelope.Unchanged, two.do("user7", vote).Kind)
	require.EqualValues(t, 2, two.evolved.Load(), "the newest event, and the newest one about user7")
	last := two.do("eve", vote)
	require.EqualValues(t, users+1, last.Version)
	voted := &toyv1.Voted{}
	require.NoError(t, proto.Unmarshal(two.events("votes:s:p")[users].Body, voted))
	require.EqualValues(t, users+1, voted.Votes)
}
