// Package conversation decides about one conversation: who is in it and what is said. It is pure: a state is folded from
// the events of its stream, commands lead to events or are refused, and no text is ever looked at.
package conversation

import (
	"slices"
	"strings"

	"google.golang.org/protobuf/proto"

	"github.com/edumatrix/interlinked/proto/catalog"
	chatv1 "github.com/edumatrix/interlinked/proto/gen/edumatrix/chat/v1"
	"github.com/edumatrix/interlinked/proto/refusal"
)

// most is how many people a conversation may have.
const most = 500

// Codes of refusals beside those that are not of one domain.
const (
	codeDirect     = "direct_conversation" // a direct conversation has its two people, for good
	codeNotAllowed = "not_allowed"         // somebody else may
	codeDeleted    = "message_deleted"
	codeFull       = "conversation_full"
)

// State is what deciding needs to know of a conversation.
type State struct {
	id       string
	kind     chatv1.Kind // unspecified: it was never begun
	members  []string    // in the order in which they joined; the first is the owner of a group
	messages map[string]*message
}

type message struct {
	author  string
	deleted bool
}

// New makes the state of a stream ("conversation:7") without events.
func New(stream string) *State {
	return &State{id: strings.TrimPrefix(stream, "conversation:"), messages: map[string]*message{}}
}

// begun stays true also when everybody has left.
func (s *State) begun() bool { return s.kind != chatv1.Kind_KIND_UNSPECIFIED }

func (s *State) has(user string) bool { return slices.Contains(s.members, user) }

func (s *State) owner() string {
	if s.kind != chatv1.Kind_KIND_GROUP || len(s.members) == 0 {
		return ""
	}
	return s.members[0]
}

// Decide says what a command leads to.
func (s *State) Decide(by catalog.Origin, command proto.Message) ([]proto.Message, error) {
	switch c := command.(type) {
	case *chatv1.StartDirect:
		return s.startDirect(by, c)
	case *chatv1.StartGroup:
		return s.startGroup(by, c)
	}
	// Whether a conversation exists is not told to those who are no member of it.
	if !s.has(by.Actor) {
		return nil, refusal.New(refusal.NotAMember, "you are no member of this conversation")
	}
	switch c := command.(type) {
	case *chatv1.AddMember:
		return s.addMember(c)
	case *chatv1.RemoveMember:
		return s.removeMember(by, c)
	case *chatv1.Leave:
		return s.leave(by)
	case *chatv1.SendMessage:
		return one(&chatv1.MessageSent{ConversationId: s.id, MessageId: by.NewID(), Body: c.Body})
	case *chatv1.EditMessage:
		return s.edit(by, c)
	case *chatv1.DeleteMessage:
		return s.delete(by, c)
	}
	return nil, refusal.New(refusal.UnknownType, "%s asks nothing of a conversation", command.ProtoReflect().Descriptor().Name())
}

func one(e proto.Message) ([]proto.Message, error) { return []proto.Message{e}, nil }

func (s *State) startDirect(by catalog.Origin, c *chatv1.StartDirect) ([]proto.Message, error) {
	if c.UserId == by.Actor {
		return nil, refusal.New(refusal.InvalidField, "user_id names yourself: a direct conversation is with somebody else")
	}
	if s.begun() {
		return nil, nil
	}
	return one(&chatv1.ConversationStarted{ConversationId: s.id, Kind: chatv1.Kind_KIND_DIRECT,
		UserIds: []string{by.Actor, c.UserId}})
}

func (s *State) startGroup(by catalog.Origin, c *chatv1.StartGroup) ([]proto.Message, error) {
	if s.begun() {
		return nil, nil
	}
	users := []string{by.Actor}
	for _, u := range c.UserIds {
		if !slices.Contains(users, u) {
			users = append(users, u)
		}
	}
	if len(users) > most {
		return nil, refusal.New(codeFull, "a conversation has %d people at most", most)
	}
	return one(&chatv1.ConversationStarted{ConversationId: s.id, Kind: chatv1.Kind_KIND_GROUP, Title: c.Title,
		UserIds: users, HistoryFromJoining: c.HistoryFromJoining})
}

func (s *State) group() error {
	if s.kind != chatv1.Kind_KIND_GROUP {
		return refusal.New(codeDirect, "a direct conversation keeps its two people")
	}
	return nil
}

func (s *State) addMember(c *chatv1.AddMember) ([]proto.Message, error) {
	if err := s.group(); err != nil {
		return nil, err
	}
	if s.has(c.UserId) {
		return nil, nil
	}
	if len(s.members) >= most {
		return nil, refusal.New(codeFull, "a conversation has %d people at most", most)
	}
	return one(&chatv1.MemberAdded{ConversationId: s.id, UserId: c.UserId})
}

func (s *State) removeMember(by catalog.Origin, c *chatv1.RemoveMember) ([]proto.Message, error) {
	if err := s.group(); err != nil {
		return nil, err
	}
	switch {
	case by.Actor != s.owner():
		return nil, refusal.New(codeNotAllowed, "only who owns the conversation removes others from it")
	case c.UserId == by.Actor:
		return nil, refusal.New(codeNotAllowed, "nobody removes themselves: leave instead")
	case !s.has(c.UserId):
		return nil, nil
	}
	return one(&chatv1.MemberLeft{ConversationId: s.id, UserId: c.UserId})
}

func (s *State) leave(by catalog.Origin) ([]proto.Message, error) {
	if err := s.group(); err != nil {
		return nil, err
	}
	return one(&chatv1.MemberLeft{ConversationId: s.id, UserId: by.Actor})
}

func (s *State) edit(by catalog.Origin, c *chatv1.EditMessage) ([]proto.Message, error) {
	m := s.messages[c.MessageId]
	switch {
	case m == nil:
		return nil, refusal.New(refusal.NotFound, "there is no such message in this conversation")
	case m.author != by.Actor:
		return nil, refusal.New(codeNotAllowed, "only its author edits a message")
	case m.deleted:
		return nil, refusal.New(codeDeleted, "the message is deleted")
	}
	return one(&chatv1.MessageEdited{ConversationId: s.id, MessageId: c.MessageId, Body: c.Body})
}

func (s *State) delete(by catalog.Origin, c *chatv1.DeleteMessage) ([]proto.Message, error) {
	m := s.messages[c.MessageId]
	switch {
	case m == nil:
		return nil, refusal.New(refusal.NotFound, "there is no such message in this conversation")
	case m.author != by.Actor && by.Actor != s.owner():
		return nil, refusal.New(codeNotAllowed, "only its author, or who owns the group, deletes a message")
	case m.deleted:
		return nil, nil
	}
	return one(&chatv1.MessageDeleted{ConversationId: s.id, MessageId: c.MessageId})
}

// Evolve applies one event.
func (s *State) Evolve(actor string, event proto.Message) {
	switch e := event.(type) {
	case *chatv1.ConversationStarted:
		s.kind, s.members = e.Kind, slices.Clone(e.UserIds)
	case *chatv1.MemberAdded:
		s.members = append(s.members, e.UserId)
	case *chatv1.MemberLeft:
		s.members = slices.DeleteFunc(s.members, func(u string) bool { return u == e.UserId })
	case *chatv1.MessageSent:
		s.messages[e.MessageId] = &message{author: actor}
	case *chatv1.MessageDeleted:
		if m := s.messages[e.MessageId]; m != nil {
			m.deleted = true
		}
	}
}

// Forget drops what is known of single messages.
func (s *State) Forget() { clear(s.messages) }
