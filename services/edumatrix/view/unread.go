package view

import (
	"slices"

	"google.golang.org/protobuf/proto"

	"github.com/edumatrix/interlinked/proto/catalog"
	chatv1 "github.com/edumatrix/interlinked/proto/gen/edumatrix/chat/v1"
)

// maxUnread is the largest number of unread messages or mentions that answers contain. It stands for this number or
// more.
const maxUnread = 100

// unread are the parts of an answer that describe what is unread in one conversation.
type unread struct {
	messages, mentions *int32
	readUpTo           int64 // the place of the user's marker
}

// apply applies an event of the conversation. It returns ErrReload if a message that may be counted has changed. An
// event about the marker may arrive before the messages that it covers, so messages up to the marker are not counted.
func (u unread) apply(user string, e Event) error {
	switch b := e.Body.(type) {
	case *chatv1.MessageSent:
		if e.Actor == user || e.Version <= u.readUpTo {
			return nil
		}
		if b.ThreadId == "" {
			*u.messages = min(*u.messages+1, maxUnread)
		}
		if b.MentionsAll || slices.Contains(b.MentionedUserIds, user) {
			*u.mentions = min(*u.mentions+1, maxUnread)
		}
	case *chatv1.MessageEdited:
		mentioned := b.MentionsAll || slices.Contains(b.MentionedUserIds, user)
		if e.Actor != user && (mentioned || *u.mentions > 0) {
			return ErrReload
		}
	case *chatv1.MessageDeleted:
		if *u.messages > 0 || *u.mentions > 0 {
			return ErrReload
		}
	}
	return nil
}

// move applies the event that the user's marker has moved. The parameter newest is the version of the answer. If newer
// messages may be unread, move returns ErrReload.
func (u unread) move(b *chatv1.ReadMarkerMoved, newest int64) error {
	if b.UpTo < newest {
		return ErrReload
	}
	*u.messages, *u.mentions = 0, 0
	return nil
}

// Markers is the answer of chat.markers.
type Markers struct {
	UserID, ConversationID string
	Response               chatv1.MarkersResponse
}

// Query returns the query chat.markers.
func (v *Markers) Query() (string, proto.Message) {
	return "chat.markers", &chatv1.MarkersRequest{ConversationId: v.ConversationID}
}

// Answer returns the response of the query.
func (v *Markers) Answer() proto.Message { return &v.Response }

// Apply applies an event of the conversation, or about a marker in it.
func (v *Markers) Apply(e Event) error {
	r := &v.Response
	counts := unread{&r.UnreadCount, &r.MentionCount, r.ReadUpTo}
	switch b := e.Body.(type) {
	case *chatv1.MessagesSeen:
		if b.ConversationId == v.ConversationID {
			v.see(b.UserId, b.UpTo)
		}
		return nil
	case *chatv1.ReadMarkerMoved:
		if b.ConversationId != v.ConversationID {
			return nil
		}
		v.see(b.UserId, b.SeenUpTo)
		r.ReadUpTo = b.UpTo
		return counts.move(b, r.Version)
	}
	if !e.newer(v.ConversationID, r.Version) {
		return nil
	}
	r.Version = e.Version
	switch b := e.Body.(type) {
	case *chatv1.MemberAdded, *chatv1.ConversationStarted:
		return ErrReload // the number of members may now be above the bound
	case *chatv1.MemberLeft:
		if len(r.Markers) == 0 {
			return ErrReload // the number of members may now be within the bound
		}
		r.Markers = slices.DeleteFunc(r.Markers, func(m *chatv1.Marker) bool { return m.UserId == b.UserId })
	}
	return counts.apply(v.UserID, e)
}

// see moves a member's marker forward.
func (v *Markers) see(user string, upTo int64) {
	for _, m := range v.Response.Markers {
		if m.UserId == user {
			m.SeenUpTo = max(m.SeenUpTo, upTo)
		}
	}
}

// Unread is the answer of chat.unread.
type Unread struct {
	UserID   string
	Response chatv1.UnreadResponse
}

// Query returns the query chat.unread.
func (v *Unread) Query() (string, proto.Message) { return "chat.unread", &chatv1.UnreadRequest{} }

// Answer returns the response of the query.
func (v *Unread) Answer() proto.Message { return &v.Response }

// Apply returns ErrReload for each event that may change the totals, because the answer does not contain the numbers of
// the single conversations. A client that has them adds them up instead.
func (v *Unread) Apply(e Event) error {
	if catalog.KindOf(e.Stream) == "marker" {
		return ErrReload
	}
	switch b := e.Body.(type) {
	case *chatv1.MessageDeleted:
		return ErrReload // the user may have deleted the message of another user
	case *chatv1.MessageSent, *chatv1.MessageEdited:
		if e.Actor != v.UserID {
			return ErrReload
		}
	case *chatv1.MemberLeft:
		if b.UserId == v.UserID {
			return ErrReload
		}
	}
	return nil
}
