// Package conversation decides the commands about one conversation: its members and its messages. The package does no
// I/O. A State is built from the events of its stream, and Decide turns a command into events or refuses it. The texts
// of messages are not part of the state.
package conversation

import (
	"google.golang.org/protobuf/proto"

	"github.com/edumatrix/interlinked/proto/catalog"
	chatv1 "github.com/edumatrix/interlinked/proto/gen/edumatrix/chat/v1"
	"github.com/edumatrix/interlinked/proto/refusal"
)

// maxMembers is the maximum number of members of a conversation. StartGroup names at most 500 of them, so that the
// command fits into a frame; further members are added one by one.
const maxMembers = 2000

// Codes of refusals that belong to this domain.
const (
	codeDirect  = "direct_conversation" // a direct conversation always has its two members
	codeDeleted = "message_deleted"
	codeFull    = "conversation_full"
)

var errFull = refusal.New(codeFull, "a conversation has at most %d members", maxMembers)

// State is the part of a conversation that is needed to decide commands.
type State struct {
	id       string
	kind     chatv1.Kind    // unspecified while the conversation does not exist
	members  map[string]int // each member's number in the order of joining, from 1
	joined   int            // how often users have joined; a user who joins gets the next number
	owner    string         // in a group, the current member who joined first; otherwise empty
	messages map[string]*message
}

type message struct {
	author  string
	deleted bool
}

// New returns the state of a stream ("conversation:7") without events.
func New(stream string) *State {
	_, id, _ := catalog.SplitAddress(stream)
	return &State{id: id, members: map[string]int{}, messages: map[string]*message{}}
}

// begun reports whether the conversation was started. It remains true after all members have left.
func (s *State) begun() bool { return s.kind != chatv1.Kind_KIND_UNSPECIFIED }

func (s *State) has(user string) bool { return s.members[user] > 0 }

// Decide returns the events to which a command leads, or a refusal.
func (s *State) Decide(by catalog.Origin, command proto.Message) ([]proto.Message, error) {
	switch c := command.(type) {
	case *chatv1.StartDirect:
		return s.startDirect(by, c)
	case *chatv1.StartGroup:
		return s.startGroup(by, c)
	}
	// A user who is not a member must not learn whether the conversation exists.
	if !s.has(by.Actor) {
		return nil, refusal.New(refusal.NotAMember, "you are not a member of this conversation")
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
	return nil, refusal.New(refusal.UnknownType, "a conversation does not handle %s", command.ProtoReflect().Descriptor().Name())
}

func one(e proto.Message) ([]proto.Message, error) { return []proto.Message{e}, nil }

func (s *State) startDirect(by catalog.Origin, c *chatv1.StartDirect) ([]proto.Message, error) {
	if c.UserId == by.Actor {
		return nil, refusal.NewField("user_id", "names yourself; a direct conversation needs another user")
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
	users, named := []string{by.Actor}, map[string]bool{by.Actor: true}
	for _, u := range c.UserIds {
		if !named[u] {
			users, named[u] = append(users, u), true
		}
	}
	if len(users) > maxMembers {
		return nil, errFull
	}
	return one(&chatv1.ConversationStarted{ConversationId: s.id, Kind: chatv1.Kind_KIND_GROUP, Title: c.Title,
		UserIds: users, HistoryFromJoining: c.HistoryFromJoining})
}

// requireGroup returns a refusal if the conversation is direct, because its members cannot change.
func (s *State) requireGroup() error {
	if s.kind != chatv1.Kind_KIND_GROUP {
		return refusal.New(codeDirect, "the two members of a direct conversation cannot change")
	}
	return nil
}

func (s *State) addMember(c *chatv1.AddMember) ([]proto.Message, error) {
	if err := s.requireGroup(); err != nil {
		return nil, err
	}
	if s.has(c.UserId) {
		return nil, nil
	}
	if len(s.members) >= maxMembers {
		return nil, errFull
	}
	return one(&chatv1.MemberAdded{ConversationId: s.id, UserId: c.UserId})
}

func (s *State) removeMember(by catalog.Origin, c *chatv1.RemoveMember) ([]proto.Message, error) {
	if err := s.requireGroup(); err != nil {
		return nil, err
	}
	switch {
	case by.Actor != s.owner:
		return nil, refusal.New(refusal.NotAllowed, "only the owner of a group can remove other members")
	case c.UserId == by.Actor:
		return nil, refusal.New(refusal.NotAllowed, "you cannot remove yourself; use chat.leave")
	case !s.has(c.UserId):
		return nil, nil
	}
	return one(&chatv1.MemberLeft{ConversationId: s.id, UserId: c.UserId})
}

func (s *State) leave(by catalog.Origin) ([]proto.Message, error) {
	if err := s.requireGroup(); err != nil {
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
		return nil, refusal.New(refusal.NotAllowed, "only the author of a message can edit it")
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
	case m.author != by.Actor && by.Actor != s.owner:
		return nil, refusal.New(refusal.NotAllowed, "only the author of a message or the owner of the group can delete it")
	case m.deleted:
		return nil, nil
	}
	return one(&chatv1.MessageDeleted{ConversationId: s.id, MessageId: c.MessageId})
}

// Evolve applies one event.
func (s *State) Evolve(f catalog.Fact, event proto.Message) {
	switch e := event.(type) {
	case *chatv1.ConversationStarted:
		s.kind = e.Kind
		for _, user := range e.UserIds {
			s.applyJoin(user)
		}
	case *chatv1.MemberAdded:
		s.applyJoin(e.UserId)
	case *chatv1.MemberLeft:
		s.applyLeave(e.UserId)
	case *chatv1.MessageSent:
		s.messages[e.MessageId] = &message{author: f.Actor}
	case *chatv1.MessageDeleted:
		if m := s.messages[e.MessageId]; m != nil {
			m.deleted = true
		}
	}
}

func (s *State) applyJoin(user string) {
	if s.has(user) {
		return
	}
	s.joined++
	s.members[user] = s.joined
	if s.kind == chatv1.Kind_KIND_GROUP && s.owner == "" {
		s.owner = user
	}
}

// applyLeave removes a member. When the owner of a group leaves, the longest-standing remaining member becomes the
// owner.
func (s *State) applyLeave(user string) {
	delete(s.members, user)
	if s.owner != user {
		return
	}
	s.owner = ""
	for member, place := range s.members {
		if s.owner == "" || place < s.members[s.owner] {
			s.owner = member
		}
	}
}

// Forget drops the states of all messages, to keep a cached State small. Before a command about a message is decided,
// package owner applies the events of that message again (see owner.State).
func (s *State) Forget() { clear(s.messages) }
