package reaction_test

import (
	"fmt"
	"slices"
	"testing"

	"github.com/stretchr/testify/require"
	"google.golang.org/protobuf/proto"
	"pgregory.net/rapid"

	"github.com/edumatrix/interlinked/proto/catalog"
	chatv1 "github.com/edumatrix/interlinked/proto/gen/edumatrix/chat/v1"
	"github.com/edumatrix/interlinked/proto/refusal"
	"github.com/edumatrix/interlinked/services/chat/reaction"
	"github.com/edumatrix/interlinked/shared/owner/decidetest"
)

const stream = "reactions:7:8"

func add(emoji string) proto.Message {
	return &chatv1.AddReaction{ConversationId: "7", MessageId: "8", Emoji: emoji}
}

func remove(emoji string) proto.Message {
	return &chatv1.RemoveReaction{ConversationId: "7", MessageId: "8", Emoji: emoji}
}

// changed returns the event of an added reaction. The parameter counts has each emoji as often as it is counted.
func changed(emoji string, own, counts []string) *chatv1.ReactionsChanged {
	e := &chatv1.ReactionsChanged{ConversationId: "7", MessageId: "8", Emoji: emoji, Added: true, ActorEmojis: own}
	for _, c := range counts {
		if n := len(e.Counts); n > 0 && e.Counts[n-1].Emoji == c {
			e.Counts[n-1].Count++
		} else {
			e.Counts = append(e.Counts, &chatv1.ReactionCount{Emoji: c, Count: 1})
		}
	}
	return e
}

// removed is like changed, for a removed reaction.
func removed(emoji string, own, counts []string) *chatv1.ReactionsChanged {
	e := changed(emoji, own, counts)
	e.Added = false
	return e
}

// many returns n different reactions.
func many(n int) (all []string) {
	for i := range n {
		all = append(all, fmt.Sprintf(":e%d:", i))
	}
	return all
}

func TestDecide(t *testing.T) {
	t.Parallel()
	annLikes := decidetest.By("ann", changed("👍", []string{"👍"}, []string{"👍"}))
	bobLikes := decidetest.By("bob", changed("👍", []string{"👍"}, []string{"👍", "👍"}))
	annLovesToo := decidetest.By("ann", changed("❤️", []string{"👍", "❤️"}, []string{"👍", "👍", "❤️"}))
	annHas20 := decidetest.By("ann", changed(":e19:", many(20), many(20)))
	has50 := decidetest.By("bob", changed(":e49:", nil, many(50)))

	given := decidetest.Given
	decidetest.Test(t, stream, reaction.New, map[string]decidetest.Case{
		"the first":       given().When("ann", add("👍")).Then(annLikes.Message),
		"the same again":  given(annLikes).When("ann", add("👍")).Unchanged(),
		"another user":    given(annLikes).When("bob", add("👍")).Then(bobLikes.Message),
		"another emoji":   given(annLikes, bobLikes).When("ann", add("❤️")).Then(annLovesToo.Message),
		"an earlier one":  given(annLikes, bobLikes, annLovesToo).When("bob", add("👍")).Unchanged(),
		"another form":    given(annLikes, bobLikes, annLovesToo).When("bob", add("❤")).Then(changed("❤️", []string{"👍", "❤️"}, []string{"👍", "👍", "❤️", "❤️"})),
		"an own form":     given(annLikes, bobLikes, annLovesToo).When("ann", add("❤")).Unchanged(),
		"another skin":    given(annLikes).When("ann", add("👍🏽")).Then(changed("👍🏽", []string{"👍", "👍🏽"}, []string{"👍", "👍🏽"})),
		"remove":          given(annLikes, bobLikes).When("ann", remove("👍")).Then(removed("👍", nil, []string{"👍"})),
		"remove the last": given(annLikes).When("ann", remove("👍")).Then(removed("👍", nil, nil)),
		"remove one of two": given(annLikes, bobLikes, annLovesToo).When("ann", remove("👍")).
			Then(removed("👍", []string{"❤️"}, []string{"👍", "❤️"})),
		"remove another form":                given(annLikes, bobLikes, annLovesToo).When("ann", remove("❤")).Then(removed("❤️", []string{"👍"}, []string{"👍", "👍"})),
		"remove nothing":                     given().When("ann", remove("👍")).Unchanged(),
		"remove another's":                   given(annLikes).When("bob", remove("👍")).Unchanged(),
		"remove what cannot be added":        given(annLikes).When("ann", remove("x")).Unchanged(),
		"add after removing":                 given(annLikes, decidetest.By("ann", removed("👍", nil, nil))).When("ann", add("👍")).Then(annLikes.Message),
		"not an emoji":                       given().When("ann", add("thumbs up")).Refused(refusal.InvalidField),
		"the 21st of one user":               given(annHas20).When("ann", add("👍")).Refused("too_many_reactions"),
		"the 21st of one user, given by all": given(annHas20).When("ann", add(":e3:")).Unchanged(),
		"the 51st":                           given(has50).When("ann", add("👍")).Refused("too_many_reactions"),
		"one of 50":                          given(has50).When("ann", add(":e7:")).Then(one(has50, ":e7:")),
		"another command":                    given().When("ann", &chatv1.Leave{ConversationId: "7"}).Refused(refusal.UnknownType),
	})
}

// one returns the event with which a user without reactions adds a reaction that the message has already.
func one(to decidetest.Event, emoji string) *chatv1.ReactionsChanged {
	e := proto.Clone(to.Message).(*chatv1.ReactionsChanged)
	e.Emoji, e.ActorEmojis = emoji, []string{emoji}
	for _, c := range e.Counts {
		if c.Emoji == emoji {
			c.Count++
		}
	}
	return e
}

// Users add and remove reactions at random. The counts must always be the numbers of users who have the reaction, and a
// state that is loaded as counters are, from the newest event and the newest one of the user, must decide the same.
func TestDecide_CountsAreTheNumbersOfUsers(t *testing.T) {
	t.Parallel()
	rapid.Check(t, func(t *rapid.T) {
		kept := reaction.New(stream)
		var log []decidetest.Event
		users := map[string]map[string]bool{} // by emoji
		for range rapid.IntRange(1, 60).Draw(t, "commands") {
			by := decidetest.Origin(rapid.SampledFrom([]string{"ann", "bob", "cid"}).Draw(t, "actor"))
			text := rapid.SampledFrom([]string{"👍", "🎉", "🚀"}).Draw(t, "emoji")
			command := rapid.SampledFrom([]proto.Message{add(text), remove(text)}).Draw(t, "command")
			outcome := decidetest.Decide(t, kept, by, command)
			require.True(t, decidetest.Decide(t, loaded(log, by.Actor), by, command).Equal(outcome))
			_, adding := command.(*chatv1.AddReaction)
			require.Equal(t, users[text][by.Actor] == adding, len(outcome.Events) == 0)
			if len(outcome.Events) == 0 {
				continue
			}
			e := decidetest.By(by.Actor, outcome.Events[0])
			log = append(log, e)
			kept.Evolve(catalog.NewFact(by.Actor, catalog.Version(len(log)), by.At, nil), e.Message)
			if users[text] == nil {
				users[text] = map[string]bool{}
			}
			if users[text][by.Actor] = adding; !adding {
				delete(users[text], by.Actor)
			}
			requireCounts(t, users, e)
		}
	})
}

// loaded returns a state as it is loaded for a command of a user: the newest event about the user is applied after the
// newest event of all.
func loaded(log []decidetest.Event, user string) *reaction.State {
	s := reaction.New(stream)
	evolve := func(i int) {
		s.Evolve(catalog.NewFact(log[i].Actor, catalog.Version(i+1), decidetest.Origin(user).At, nil), log[i].Message)
	}
	if len(log) > 0 {
		evolve(len(log) - 1)
	}
	s.Forget()
	for i, e := range slices.Backward(log) {
		if e.Actor == user {
			evolve(i)
			break
		}
	}
	return s
}

func requireCounts(t *rapid.T, users map[string]map[string]bool, e decidetest.Event) {
	m := e.Message.(*chatv1.ReactionsChanged)
	counted := map[string]bool{}
	for _, c := range m.Counts {
		require.EqualValues(t, len(users[c.Emoji]), c.Count)
		require.False(t, counted[c.Emoji])
		counted[c.Emoji] = true
	}
	for emoji, by := range users {
		require.Equal(t, len(by) > 0, counted[emoji])
		require.Equal(t, by[e.Actor], slices.Contains(m.ActorEmojis, emoji))
	}
}
