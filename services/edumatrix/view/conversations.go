package view

import (
	"slices"
	"strings"

	"google.golang.org/protobuf/proto"

	"github.com/edumatrix/interlinked/proto/catalog"
	chatv1 "github.com/edumatrix/interlinked/proto/gen/edumatrix/chat/v1"
)

// maxUserIDs is the maximum number of members that chat.conversations names for each conversation.
const maxUserIDs = 64

// Conversations is the first page of chat.conversations.
type Conversations struct {
	UserID   string // the user whose conversations these are
	Response chatv1.ConversationsResponse
}

// Query returns the query chat.conversations.
func (v *Conversations) Query() (string, proto.Message) {
	return "chat.conversations", &chatv1.ConversationsRequest{}
}

// Answer returns the response of the query.
func (v *Conversations) Answer() proto.Message { return &v.Response }

// Apply applies an event of a conversation, which becomes the first of the list. Apply returns ErrReload for an event
// of a conversation that the list does not contain, except the event that the user has left the conversation. It also
// returns ErrReload if another member leaves a conversation with more than 64 members: the list names only 64 members,
// and the event does not contain the member who takes the place of the one that has left.
func (v *Conversations) Apply(e Event) error {
	all := v.Response.Conversations
	i := slices.IndexFunc(all, func(c *chatv1.Conversation) bool {
		return catalog.Address("conversation", c.ConversationId) == e.Stream
	})
	if moved, is := e.Body.(*chatv1.ReadMarkerMoved); is {
		return v.read(moved)
	}
	if i < 0 {
		return v.unknown(e)
	}
	c := all[i]
	if e.Version <= c.Version {
		return nil
	}
	c.Version, c.ChangedAt = e.Version, e.at()
	copy(all[1:i+1], all[:i])
	all[0] = c
	switch b := e.Body.(type) {
	case *chatv1.TitleChanged:
		c.Title = b.Title
	case *chatv1.PictureChanged:
		c.Picture = b.Picture
	case *chatv1.RoleChanged:
		if b.UserId == v.UserID {
			c.Role = b.Role
		}
		if b.PreviousOwnerId == v.UserID {
			c.Role = chatv1.Role_ROLE_ADMIN
		}
	case *chatv1.MemberAdded:
		if c.MemberCount++; len(c.UserIds) < maxUserIDs {
			c.UserIds = append(c.UserIds, b.UserId)
		}
	case *chatv1.MemberLeft:
		return v.left(c, b)
	}
	return unread{&c.UnreadCount, &c.MentionCount, c.ReadUpTo}.apply(v.UserID, e)
}

// read applies the event that the user's marker has moved.
func (v *Conversations) read(b *chatv1.ReadMarkerMoved) error {
	for _, c := range v.Response.Conversations {
		if c.ConversationId == b.ConversationId {
			c.ReadUpTo = b.UpTo
			return unread{&c.UnreadCount, &c.MentionCount, c.ReadUpTo}.move(b, c.Version)
		}
	}
	return nil
}

// unknown handles an event of a conversation that is not in the list: a new one, or one that was beyond the first page.
// The event that the user has left such a conversation changes nothing.
func (v *Conversations) unknown(e Event) error {
	if !strings.HasPrefix(e.Stream, "conversation:") {
		return nil
	}
	if left, is := e.Body.(*chatv1.MemberLeft); is && left.UserId == v.UserID {
		return nil
	}
	return ErrReload
}

func (v *Conversations) left(c *chatv1.Conversation, b *chatv1.MemberLeft) error {
	if b.UserId == v.UserID {
		if v.Response.Next != "" {
			return ErrReload // the first conversation of the next page moves up
		}
		v.Response.Conversations = v.Response.Conversations[1:] // Apply has made it the first
		return nil
	}
	if c.MemberCount > maxUserIDs {
		return ErrReload
	}
	c.MemberCount--
	c.UserIds = slices.DeleteFunc(c.UserIds, func(u string) bool { return u == b.UserId })
	if b.NewOwnerId == v.UserID {
		c.Role = chatv1.Role_ROLE_OWNER
	}
	return nil
}

// Members is the first page of chat.members.
type Members struct {
	ConversationID string
	Response       chatv1.MembersResponse
}

// Query returns the query chat.members.
func (v *Members) Query() (string, proto.Message) {
	return "chat.members", &chatv1.MembersRequest{ConversationId: v.ConversationID}
}

// Answer returns the response of the query.
func (v *Members) Answer() proto.Message { return &v.Response }

// Apply applies an event of the conversation. A new member is added to the end of the list, unless there are further
// pages.
func (v *Members) Apply(e Event) error {
	r := &v.Response
	if !e.newer(v.ConversationID, r.Version) {
		return nil
	}
	r.Version = e.Version
	switch b := e.Body.(type) {
	case *chatv1.MemberAdded:
		if r.MemberCount++; r.Next == "" {
			role := b.Role
			if role == chatv1.Role_ROLE_UNSPECIFIED {
				role = chatv1.Role_ROLE_MEMBER
			}
			r.UserIds = append(r.UserIds, b.UserId)
			r.Members = append(r.Members, &chatv1.Member{UserId: b.UserId, Role: role})
		}
	case *chatv1.MemberLeft:
		r.MemberCount--
		r.UserIds = slices.DeleteFunc(r.UserIds, func(u string) bool { return u == b.UserId })
		r.Members = slices.DeleteFunc(r.Members, func(m *chatv1.Member) bool { return m.UserId == b.UserId })
		v.setRole(b.NewOwnerId, chatv1.Role_ROLE_OWNER)
	case *chatv1.RoleChanged:
		v.setRole(b.UserId, b.Role)
		v.setRole(b.PreviousOwnerId, chatv1.Role_ROLE_ADMIN)
	}
	return nil
}

func (v *Members) setRole(user string, role chatv1.Role) {
	for _, m := range v.Response.Members {
		if m.UserId == user {
			m.Role = role
		}
	}
}
