// Package post decides the commands about one post. It does no I/O.
package post

import (
	"google.golang.org/protobuf/proto"

	"github.com/edumatrix/interlinked/proto/catalog"
	feedv1 "github.com/edumatrix/interlinked/proto/gen/edumatrix/feed/v1"
	"github.com/edumatrix/interlinked/proto/refusal"
)

// State is the part of a post that decisions about it need.
type State struct {
	id     string
	exists bool
}

// New returns the state of a stream ("post:7") without events.
func New(stream string) *State {
	_, id, _ := catalog.SplitAddress(stream)
	return &State{id: id}
}

// Decide returns the events to which a command leads, or a refusal.
func (s *State) Decide(by catalog.Origin, command proto.Message) ([]proto.Message, error) {
	switch c := command.(type) {
	case *feedv1.CreatePost:
		if s.exists { // the command was sent again after its outcome was deleted
			return nil, nil
		}
		return []proto.Message{&feedv1.PostCreated{PostId: s.id, AuthorId: by.Actor, Body: c.Body}}, nil
	}
	return nil, refusal.New(refusal.UnknownType, "a post does not handle %s", command.ProtoReflect().Descriptor().Name())
}

// Evolve applies one event.
func (s *State) Evolve(_ catalog.Fact, event proto.Message) {
	switch event.(type) {
	case *feedv1.PostCreated:
		s.exists = true
	}
}

// Forget does nothing, because the events of a post have no subjects (see owner.State).
func (s *State) Forget() {}
