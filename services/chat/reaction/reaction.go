// Package reaction decides the commands about the reactions to one message. The package does no I/O. Each event
// contains the counts of all reactions to the message, and all reactions of the user who caused it. So a decision needs
// two events, however many users have reacted: the newest one, and the newest one of the command's user. The log checks
// that the user is a member of the conversation, and that the message exists (see the declarations of the commands).
package reaction

import (
	"slices"

	"google.golang.org/protobuf/proto"

	"github.com/edumatrix/interlinked/proto/catalog"
	chatv1 "github.com/edumatrix/interlinked/proto/gen/edumatrix/chat/v1"
	"github.com/edumatrix/interlinked/proto/refusal"
)

// codeTooMany is the code of refusals that belong to this domain.
const codeTooMany = "too_many_reactions"

const (
	// maxDifferent is the maximum number of different reactions to a message. Each event contains all of them.
	maxDifferent = 50
	// maxOfUser is the maximum number of reactions of one user to a message.
	maxOfUser = 20
)

// State is the part of the reactions to a message that is needed to decide commands.
type State struct {
	version catalog.Version         // of the event with the counts
	counts  []*chatv1.ReactionCount // in the order in which each reaction was first added; must not be changed
	own     map[string][]string     // by user: the user's reactions
}

// New returns the state of a stream ("reactions:7:8") without events.
func New(string) *State { return &State{own: map[string][]string{}} }

// Decide returns the events to which a command leads, or a refusal.
func (s *State) Decide(by catalog.Origin, command proto.Message) ([]proto.Message, error) {
	own := s.own[by.Actor]
	switch c := command.(type) {
	case *chatv1.AddReaction:
		if err := check(c.Emoji); err != nil {
			return nil, err
		}
		emoji := s.counted(c.Emoji)
		if slices.Contains(own, emoji) {
			return nil, nil
		}
		counts := s.changed(emoji, 1)
		switch {
		case len(own) >= maxOfUser:
			return nil, refusal.New(codeTooMany, "you can add at most %d reactions to a message; remove one of them first", maxOfUser)
		case len(counts) > maxDifferent:
			return nil, refusal.New(codeTooMany, "a message has at most %d different reactions; add one that it has already", maxDifferent)
		}
		return []proto.Message{&chatv1.ReactionsChanged{ConversationId: c.ConversationId, MessageId: c.MessageId, Emoji: emoji,
			Added: true, Counts: counts, ActorEmojis: append(slices.Clone(own), emoji)}}, nil
	case *chatv1.RemoveReaction:
		emoji := s.counted(c.Emoji)
		i := slices.Index(own, emoji)
		if i < 0 {
			return nil, nil
		}
		return []proto.Message{&chatv1.ReactionsChanged{ConversationId: c.ConversationId, MessageId: c.MessageId, Emoji: emoji,
			Counts: s.changed(emoji, -1), ActorEmojis: slices.Delete(slices.Clone(own), i, i+1)}}, nil
	}
	return nil, refusal.New(refusal.UnknownType, "reactions do not handle %s", command.ProtoReflect().Descriptor().Name())
}

// counted returns the form in which an emoji is counted: the form that was used first, or the given one if the message
// does not have this reaction.
func (s *State) counted(emoji string) string {
	for _, c := range s.counts {
		if plain(c.Emoji) == plain(emoji) {
			return c.Emoji
		}
	}
	return emoji
}

// changed returns the counts after a change of one of them by 1 or -1.
func (s *State) changed(emoji string, by int32) (counts []*chatv1.ReactionCount) {
	found := false
	for _, c := range s.counts {
		if c.Emoji == emoji {
			found = true
			c = &chatv1.ReactionCount{Emoji: emoji, Count: c.Count + by}
		}
		if c.Count > 0 {
			counts = append(counts, c)
		}
	}
	if !found {
		counts = append(counts, &chatv1.ReactionCount{Emoji: emoji, Count: by})
	}
	return counts
}

// Evolve applies one event. An event about the user of a command may be older than the newest event, whose counts are
// those of the message.
func (s *State) Evolve(f catalog.Fact, event proto.Message) {
	e, ok := event.(*chatv1.ReactionsChanged)
	if !ok {
		return
	}
	s.own[f.Actor] = e.ActorEmojis
	if f.Version > s.version {
		s.version, s.counts = f.Version, e.Counts
	}
}

// Forget drops the reactions of all users, to keep a cached State small.
func (s *State) Forget() { clear(s.own) }
