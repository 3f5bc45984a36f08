package view

import (
	"slices"

	"google.golang.org/protobuf/proto"

	chatv1 "github.com/edumatrix/interlinked/proto/gen/edumatrix/chat/v1"
)

// maxEarly is the maximum number of events about reactions that are kept until their messages arrive.
const maxEarly = 100

// react applies an event about the reactions to a message, and reports whether the answer contains this message.
// Messages and reactions are in different streams, so a reaction may arrive before its message.
func (all messages) react(user string, e Event, b *chatv1.ReactionsChanged) (found bool) {
	m := all.find(b.MessageId)
	if m == nil || m.Deleted || e.Version <= m.ReactionsVersion {
		return m != nil
	}
	own := b.ActorEmojis
	if e.Actor != user {
		own = nil
		for _, r := range m.Reactions {
			if r.Own {
				own = append(own, r.Emoji)
			}
		}
	}
	m.Reactions, m.ReactionsVersion = nil, e.Version
	for _, c := range b.Counts {
		m.Reactions = append(m.Reactions, &chatv1.Reaction{Emoji: c.Emoji, Count: c.Count, Own: slices.Contains(own, c.Emoji)})
	}
	return true
}

// Reactions is the only page of chat.reactions for a message.
type Reactions struct {
	ConversationID, MessageID string
	Response                  chatv1.ReactionsResponse
}

// Query returns the query chat.reactions.
func (v *Reactions) Query() (string, proto.Message) {
	return "chat.reactions", &chatv1.ReactionsRequest{ConversationId: v.ConversationID, MessageId: v.MessageID}
}

// Answer returns the response of the query.
func (v *Reactions) Answer() proto.Message { return &v.Response }

// Apply applies an event about the reactions to the message, or the event that the message was deleted. If an event
// between the answer and this event was left out under load, Apply returns ErrReload.
func (v *Reactions) Apply(e Event) error {
	r := &v.Response
	switch b := e.Body.(type) {
	case *chatv1.MessageDeleted:
		if b.MessageId == v.MessageID {
			return ErrReload
		}
	case *chatv1.ReactionsChanged:
		switch {
		case b.MessageId != v.MessageID || b.ConversationId != v.ConversationID || e.Version <= r.Version:
			return nil
		case e.Version > r.Version+1:
			return ErrReload
		}
		r.Version = e.Version
		if b.Added {
			r.Reactions = append(r.Reactions, &chatv1.UserReaction{UserId: e.Actor, Emoji: b.Emoji, ReactedAt: e.at()})
			return nil
		}
		r.Reactions = slices.DeleteFunc(r.Reactions, func(u *chatv1.UserReaction) bool {
			return u.UserId == e.Actor && u.Emoji == b.Emoji
		})
	}
	return nil
}
