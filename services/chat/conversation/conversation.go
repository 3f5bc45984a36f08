// Package conversation decides the commands about one conversation: its members with their roles, its title and
// picture, and its messages. The package does no I/O. A State is built from the events of its stream, and Decide turns
// a command into events or refuses it. The texts of messages are not part of the state.
package conversation

import (
	"google.golang.org/protobuf/proto"

	"github.com/edumatrix/interlinked/proto/catalog"
	chatv1 "github.com/edumatrix/interlinked/proto/gen/edumatrix/chat/v1"
	"github.com/edumatrix/interlinked/proto/refusal"
)

// Codes of refusals that belong to this domain.
const (
	codeDirect     = "direct_conversation" // a direct conversation always has its two members
	codeStudyGroup = "study_group"         // the members and the title of such a conversation follow its group
	codeDeleted    = "message_deleted"
	codeFull       = "conversation_full"
	codePins       = "too_many_pins"
)

// State is the part of a conversation that is needed to decide commands.
type State struct {
	id       string
	kind     chatv1.Kind // unspecified while the conversation does not exist
	members  map[string]*member
	joined   int             // how often users have joined; a user who joins gets the next number
	pins     map[string]bool // the pinned messages
	messages map[string]*message
}

// New returns the state of a stream ("conversation:7") without events.
func New(stream string) *State {
	_, id, _ := catalog.SplitAddress(stream)
	return &State{id: id, members: map[string]*member{}, pins: map[string]bool{}, messages: map[string]*message{}}
}

// begun reports whether the conversation was started. It remains true after all members have left.
func (s *State) begun() bool { return s.kind != chatv1.Kind_KIND_UNSPECIFIED }

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
	case *chatv1.SetRole:
		return s.setRole(by, c)
	case *chatv1.SetTitle:
		return s.setTitle(by, c)
	case *chatv1.SetPicture:
		return s.setPicture(by, c)
	case *chatv1.SendMessage:
		return s.send(by, c)
	case *chatv1.EditMessage:
		return s.edit(by, c)
	case *chatv1.DeleteMessage:
		return s.delete(by, c)
	case *chatv1.PinMessage:
		return s.pin(by, c)
	case *chatv1.UnpinMessage:
		return s.unpin(by, c)
	}
	return nil, refusal.New(refusal.UnknownType, "a conversation does not handle %s", command.ProtoReflect().Descriptor().Name())
}

func one(e proto.Message) ([]proto.Message, error) { return []proto.Message{e}, nil }

// Evolve applies one event.
func (s *State) Evolve(f catalog.Fact, event proto.Message) {
	switch e := event.(type) {
	case *chatv1.ConversationStarted:
		s.applyStart(e)
	case *chatv1.MemberAdded:
		s.applyJoin(e.UserId, AddedRole(e))
	case *chatv1.MemberLeft:
		s.applyLeave(e)
	case *chatv1.RoleChanged:
		s.applyRole(e)
	case *chatv1.MessageSent:
		s.messages[e.MessageId] = &message{author: f.Actor, thread: e.ThreadId}
	case *chatv1.MessageDeleted:
		if m := s.messages[e.MessageId]; m != nil {
			m.deleted = true
		}
	case *chatv1.MessagePinned:
		s.pins[e.MessageId] = true
	case *chatv1.MessageUnpinned:
		delete(s.pins, e.MessageId)
	}
}

// Forget drops the states of all messages, to keep a cached State small. Before a command about a message is decided,
// package owner applies the events of that message again (see owner.State).
func (s *State) Forget() { clear(s.messages) }
