package view

import (
	"slices"

	"google.golang.org/protobuf/proto"

	chatv1 "github.com/edumatrix/interlinked/proto/gen/edumatrix/chat/v1"
)

// History is the newest page of chat.history: the messages of a thread, or those that belong to no thread.
type History struct {
	UserID         string // the reader
	ConversationID string
	ThreadID       string // empty: the messages that belong to no thread
	Response       chatv1.HistoryResponse

	early []Event // of reactions to messages that have not arrived yet
}

// Query returns the query chat.history.
func (v *History) Query() (string, proto.Message) {
	return "chat.history", &chatv1.HistoryRequest{ConversationId: v.ConversationID, ThreadId: v.ThreadID}
}

// Answer returns the response of the query.
func (v *History) Answer() proto.Message { return &v.Response }

// Apply applies an event of the conversation. A new message is added to the end of the page, so the page grows. When
// the reader leaves the conversation, Apply returns ErrReload, because the answer no longer contains pins and numbers
// of replies.
func (v *History) Apply(e Event) error {
	if b, is := e.Body.(*chatv1.ReactionsChanged); is {
		if b.ConversationId == v.ConversationID && !v.listed().react(v.UserID, e, b) {
			v.early = append(v.early[max(0, len(v.early)-maxEarly+1):], e)
		}
		return nil
	}
	if !e.newer(v.ConversationID, v.Response.Version) {
		return nil
	}
	v.Response.Version = e.Version
	v.listed().apply(e)
	switch b := e.Body.(type) {
	case *chatv1.MessageSent:
		if b.ThreadId == v.ThreadID {
			v.add(e, b)
		}
	case *chatv1.MemberLeft:
		if b.UserId == v.UserID {
			return ErrReload
		}
	}
	return nil
}

func (v *History) listed() messages { return v.Response.Messages }

// add adds a new message, and the reactions to it that have arrived earlier.
func (v *History) add(e Event, b *chatv1.MessageSent) {
	v.Response.Messages = append(v.Response.Messages, &chatv1.Message{MessageId: b.MessageId, Version: e.Version,
		Author: e.Actor, Body: b.Body, SentAt: e.at(), ReplyTo: b.ReplyTo, ThreadId: b.ThreadId,
		MentionedUserIds: b.MentionedUserIds, MentionsAll: b.MentionsAll})
	for _, early := range v.early {
		v.listed().react(v.UserID, early, early.Body.(*chatv1.ReactionsChanged))
	}
}

// messages are the messages of one conversation in an answer.
type messages []*chatv1.Message

// find returns a message, or nil if the answer does not contain it.
func (all messages) find(id string) *chatv1.Message {
	i := slices.IndexFunc(all, func(m *chatv1.Message) bool { return m.MessageId == id })
	if i < 0 {
		return nil
	}
	return all[i]
}

// apply applies an event of the conversation to the messages that it changes.
func (all messages) apply(e Event) {
	switch b := e.Body.(type) {
	case *chatv1.MessageSent:
		if first := all.find(b.ThreadId); first != nil {
			first.ReplyCount++
			first.LastReplyAt, first.LastReplyBy = e.at(), e.Actor
		}
	case *chatv1.MessageEdited:
		if m := all.find(b.MessageId); m != nil {
			m.Body, m.EditedAt = b.Body, e.at()
			m.MentionedUserIds, m.MentionsAll = b.MentionedUserIds, b.MentionsAll
		}
	case *chatv1.MessageDeleted:
		if m := all.find(b.MessageId); m != nil {
			m.Body, m.EditedAt, m.MentionedUserIds, m.MentionsAll, m.Deleted = "", nil, nil, false, true
			m.Reactions, m.ReactionsVersion = nil, 0
		}
		if first := all.find(b.ThreadId); first != nil {
			first.ReplyCount--
		}
	case *chatv1.MessagePinned:
		if m := all.find(b.MessageId); m != nil {
			m.Pinned = true
		}
	case *chatv1.MessageUnpinned:
		if m := all.find(b.MessageId); m != nil {
			m.Pinned = false
		}
	}
}

// Pins is the first page of chat.pins.
type Pins struct {
	UserID         string // the reader
	ConversationID string
	Response       chatv1.PinsResponse
}

// Query returns the query chat.pins.
func (v *Pins) Query() (string, proto.Message) {
	return "chat.pins", &chatv1.PinsRequest{ConversationId: v.ConversationID}
}

// Answer returns the response of the query.
func (v *Pins) Answer() proto.Message { return &v.Response }

// Apply applies an event of the conversation. The event that a message was pinned does not contain the message, so
// Apply returns ErrReload.
func (v *Pins) Apply(e Event) error {
	var pinned messages
	for _, p := range v.Response.Pins {
		pinned = append(pinned, p.Message)
	}
	if b, is := e.Body.(*chatv1.ReactionsChanged); is && b.ConversationId == v.ConversationID {
		pinned.react(v.UserID, e, b)
	}
	if !e.newer(v.ConversationID, v.Response.Version) {
		return nil
	}
	v.Response.Version = e.Version
	pinned.apply(e)
	switch b := e.Body.(type) {
	case *chatv1.MessagePinned:
		return ErrReload
	case *chatv1.MessageUnpinned:
		v.Response.Pins = slices.DeleteFunc(v.Response.Pins, func(p *chatv1.Pin) bool { return p.Message.MessageId == b.MessageId })
	}
	return nil
}

// Edits is the only page of chat.edits for a message.
type Edits struct {
	ConversationID, MessageID string
	Response                  chatv1.EditsResponse
}

// Query returns the query chat.edits.
func (v *Edits) Query() (string, proto.Message) {
	return "chat.edits", &chatv1.EditsRequest{ConversationId: v.ConversationID, MessageId: v.MessageID}
}

// Answer returns the response of the query.
func (v *Edits) Answer() proto.Message { return &v.Response }

// Apply applies an event about the message.
func (v *Edits) Apply(e Event) error {
	var version int64
	if n := len(v.Response.Edits); n > 0 {
		version = v.Response.Edits[n-1].Version
	}
	if !e.newer(v.ConversationID, version) {
		return nil
	}
	switch b := e.Body.(type) {
	case *chatv1.MessageEdited:
		if b.MessageId == v.MessageID {
			v.Response.Edits = append(v.Response.Edits, &chatv1.Edit{Version: e.Version, Body: b.Body, At: e.at()})
		}
	case *chatv1.MessageDeleted:
		if b.MessageId == v.MessageID {
			v.Response.Edits = nil
		}
	}
	return nil
}
