// Package marker decides the commands about the marker of one user in one conversation: the version up to which the
// user has read it. The package does no I/O. Every event contains the whole value, so a State needs only the newest
// event.
package marker

import (
	"google.golang.org/protobuf/proto"

	"github.com/edumatrix/interlinked/proto/catalog"
	chatv1 "github.com/edumatrix/interlinked/proto/gen/edumatrix/chat/v1"
	"github.com/edumatrix/interlinked/proto/refusal"
)

// MaxShown is the maximum number of members of a conversation in which members see how far others have read. The
// commands declare that one more member is counted. In a conversation of n members, each message leads to up to n-1
// events that are delivered to n members, so the cost of a larger bound grows with its square.
const MaxShown = 32

// State is the marker of one user in one conversation.
type State struct {
	upTo catalog.Version // everything up to this version is read; 0: the marker was never moved
	seen catalog.Version // the highest value that upTo has ever had
}

// New returns the state of a stream ("marker:7:ann") without events.
func New(string) *State { return &State{} }

// Decide returns the events to which a command leads. Whether the actor is a member is checked by the log.
func (s *State) Decide(by catalog.Origin, command proto.Message) ([]proto.Message, error) {
	switch c := command.(type) {
	case *chatv1.MarkRead:
		// A marker beyond the newest message would hide messages that nobody has sent yet.
		upTo := min(catalog.Version(c.UpTo), by.Room.Version)
		if upTo <= s.current(by) {
			return nil, nil
		}
		return s.read(by, c.ConversationId, upTo), nil
	case *chatv1.MarkUnread:
		upTo := max(catalog.Version(c.From)-1, by.Room.Joined)
		if upTo >= s.current(by) {
			return nil, nil
		}
		return []proto.Message{moved(by, c.ConversationId, upTo, s.seen)}, nil
	}
	return nil, refusal.New(refusal.UnknownType, "a marker does not handle %s", command.ProtoReflect().Descriptor().Name())
}

// current returns the place of the marker. The marker of a user who has joined, or joined again, begins there.
func (s *State) current(by catalog.Origin) catalog.Version { return max(s.upTo, by.Room.Joined) }

// read returns the events of a marker that moves forward. In a small conversation, other members see how far the user
// has ever read.
func (s *State) read(by catalog.Origin, conversation string, upTo catalog.Version) []proto.Message {
	seen := max(s.seen, upTo)
	events := []proto.Message{moved(by, conversation, upTo, seen)}
	if seen > s.seen && by.Room.Members <= MaxShown {
		events = append(events, &chatv1.MessagesSeen{ConversationId: conversation, UserId: by.Actor, UpTo: int64(seen)})
	}
	return events
}

func moved(by catalog.Origin, conversation string, upTo, seen catalog.Version) *chatv1.ReadMarkerMoved {
	return &chatv1.ReadMarkerMoved{ConversationId: conversation, UserId: by.Actor, UpTo: int64(upTo), SeenUpTo: int64(seen)}
}

// Evolve applies one event.
func (s *State) Evolve(_ catalog.Fact, event proto.Message) {
	if e, ok := event.(*chatv1.ReadMarkerMoved); ok {
		s.upTo, s.seen = catalog.Version(e.UpTo), catalog.Version(e.SeenUpTo)
	}
}

// Forget does nothing, because a marker has no subjects.
func (*State) Forget() {}

// Merge merges two commands of a run that move the marker forward, or back, into the one that moves it further.
func (*State) Merge(earlier, later proto.Message) proto.Message {
	switch c := later.(type) {
	case *chatv1.MarkRead:
		if first, ok := earlier.(*chatv1.MarkRead); ok {
			return &chatv1.MarkRead{ConversationId: c.ConversationId, UpTo: max(first.UpTo, c.UpTo)}
		}
	case *chatv1.MarkUnread:
		if first, ok := earlier.(*chatv1.MarkUnread); ok {
			return &chatv1.MarkUnread{ConversationId: c.ConversationId, From: min(first.From, c.From)}
		}
	}
	return nil
}
