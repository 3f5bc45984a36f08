package conversation

import (
	"google.golang.org/protobuf/proto"

	"github.com/edumatrix/interlinked/proto/catalog"
	chatv1 "github.com/edumatrix/interlinked/proto/gen/edumatrix/chat/v1"
	"github.com/edumatrix/interlinked/proto/refusal"
)

// maxPins is the maximum number of pinned messages of a conversation. All of them are part of the state.
const maxPins = 100

type message struct {
	author  string
	thread  string // the first message of the thread to which the message belongs; empty: none
	deleted bool
}

var errNoMessage = refusal.New(refusal.NotFound, "there is no such message in this conversation")

func (s *State) send(by catalog.Origin, c *chatv1.SendMessage) ([]proto.Message, error) {
	sent := &chatv1.MessageSent{ConversationId: s.id, MessageId: by.NewID(), Body: c.Body, ReplyTo: c.GetReplyTo()}
	switch answered := s.messages[c.GetReplyTo()]; {
	case c.ReplyTo == nil && c.InThread:
		return nil, refusal.NewField("reply_to", "is required if in_thread is true")
	case c.ReplyTo == nil:
	case answered == nil:
		return nil, errNoMessage
	case answered.deleted:
		return nil, refusal.New(codeDeleted, "the answered message is deleted")
	case c.InThread && answered.thread != "":
		sent.ThreadId = answered.thread
	case c.InThread:
		sent.ThreadId = c.GetReplyTo()
	}
	mentioned, err := s.mentioned(by, c.MentionedUserIds, c.MentionsAll)
	if err != nil {
		return nil, err
	}
	sent.MentionedUserIds, sent.MentionsAll = mentioned, c.MentionsAll
	return one(sent)
}

// mentioned returns the users of a list who are members, without repeats. It returns a refusal if the actor mentions
// all members, but may not.
func (s *State) mentioned(by catalog.Origin, users []string, all bool) (members []string, err error) {
	if all {
		if err := s.requireLeadInGroup(by, "mention all members"); err != nil {
			return nil, err
		}
	}
	for _, u := range distinct(users) {
		if s.has(u) {
			members = append(members, u)
		}
	}
	return members, nil
}

func (s *State) edit(by catalog.Origin, c *chatv1.EditMessage) ([]proto.Message, error) {
	m := s.messages[c.MessageId]
	switch {
	case m == nil:
		return nil, errNoMessage
	case m.author != by.Actor:
		return nil, refusal.New(refusal.NotAllowed, "only the author of a message can edit it")
	case m.deleted:
		return nil, refusal.New(codeDeleted, "the message is deleted")
	}
	mentioned, err := s.mentioned(by, c.MentionedUserIds, c.MentionsAll)
	if err != nil {
		return nil, err
	}
	return one(&chatv1.MessageEdited{ConversationId: s.id, MessageId: c.MessageId, Body: c.Body, MentionedUserIds: mentioned,
		MentionsAll: c.MentionsAll})
}

func (s *State) delete(by catalog.Origin, c *chatv1.DeleteMessage) (events []proto.Message, err error) {
	m := s.messages[c.MessageId]
	switch {
	case m == nil:
		return nil, errNoMessage
	case m.author != by.Actor && !s.leads(by.Actor):
		return nil, refusal.New(refusal.NotAllowed,
			"only the author of a message, and the owner and the admins of a group, can delete it")
	case m.deleted:
		return nil, nil
	}
	if s.pins[c.MessageId] {
		events = append(events, &chatv1.MessageUnpinned{ConversationId: s.id, MessageId: c.MessageId})
	}
	return append(events, &chatv1.MessageDeleted{ConversationId: s.id, MessageId: c.MessageId, ThreadId: m.thread}), nil
}

func (s *State) pin(by catalog.Origin, c *chatv1.PinMessage) ([]proto.Message, error) {
	if err := s.requireLeadInGroup(by, "pin messages"); err != nil {
		return nil, err
	}
	m := s.messages[c.MessageId]
	switch {
	case m == nil:
		return nil, errNoMessage
	case m.deleted:
		return nil, refusal.New(codeDeleted, "the message is deleted")
	case s.pins[c.MessageId]:
		return nil, nil
	case len(s.pins) >= maxPins:
		return nil, refusal.New(codePins, "a conversation has at most %d pinned messages; unpin one of them first", maxPins)
	}
	return one(&chatv1.MessagePinned{ConversationId: s.id, MessageId: c.MessageId})
}

func (s *State) unpin(by catalog.Origin, c *chatv1.UnpinMessage) ([]proto.Message, error) {
	if err := s.requireLeadInGroup(by, "unpin messages"); err != nil {
		return nil, err
	}
	if !s.pins[c.MessageId] {
		return nil, nil
	}
	return one(&chatv1.MessageUnpinned{ConversationId: s.id, MessageId: c.MessageId})
}
