package faults

import (
	"slices"
	"strings"

	chatv1 "github.com/edumatrix/interlinked/proto/gen/edumatrix/chat/v1"
)

// conversation is a model of one conversation, which is independent of the aggregate that decides its commands.
type conversation struct {
	kind     chatv1.Kind
	members  []string // in the order of joining
	roles    map[string]chatv1.Role
	messages map[string]*sentIn
	pins     []string
}

// sentIn is a message of a conversation.
type sentIn struct {
	author, thread string
	deleted        bool
}

func (c *conversation) leads(user string) bool {
	return c.kind == chatv1.Kind_KIND_DIRECT || c.roles[user] == chatv1.Role_ROLE_OWNER || c.roles[user] == chatv1.Role_ROLE_ADMIN
}

// conversations checks that each event of a conversation follows the rules: who may cause it, who becomes the owner,
// and to which messages it refers.
func (j *judge) conversations() {
	all := map[string]*conversation{}
	for _, e := range j.s.log("chat").Events {
		if !strings.HasPrefix(e.Stream, "conversation:") || e.Message == nil {
			continue
		}
		c := all[e.Stream]
		if c == nil {
			c = &conversation{roles: map[string]chatv1.Role{}, messages: map[string]*sentIn{}}
			all[e.Stream] = c
		}
		if _, first := e.Message.(*chatv1.ConversationStarted); !first && !slices.Contains(c.members, e.Actor) {
			j.broken(access, "%s at version %d: %s changed it, but is not a member", e.Stream, e.Version, e.Actor)
		}
		if problem := c.apply(e); problem != "" {
			j.broken(rules, "%s at version %d: %s of %s %s", e.Stream, e.Version, e.Type, e.Actor, problem)
		}
		if problem := c.invalid(); problem != "" {
			j.broken(rules, "%s at version %d: %s", e.Stream, e.Version, problem)
		}
	}
}

// apply applies an event, and returns the rule that it breaks, or "".
func (c *conversation) apply(e Event) (problem string) {
	switch m := e.Message.(type) {
	case *chatv1.ConversationStarted:
		c.kind, c.members = m.Kind, slices.Clone(m.UserIds)
		if m.Kind == chatv1.Kind_KIND_GROUP {
			c.roles[e.Actor] = chatv1.Role_ROLE_OWNER
		}
	case *chatv1.MemberAdded:
		if slices.Contains(c.members, m.UserId) {
			problem = "adds a member again"
		}
		c.members = append(c.members, m.UserId)
	case *chatv1.MemberLeft:
		problem = c.leave(e.Actor, m)
	case *chatv1.RoleChanged:
		if c.roles[e.Actor] != chatv1.Role_ROLE_OWNER {
			problem = "needs the owner"
		}
		if m.PreviousOwnerId != "" {
			c.roles[m.PreviousOwnerId] = chatv1.Role_ROLE_ADMIN
		}
		c.roles[m.UserId] = m.Role
	case *chatv1.TitleChanged, *chatv1.PictureChanged:
		if !c.leads(e.Actor) {
			problem = "needs the owner or an admin"
		}
	default:
		return c.applyMessage(e)
	}
	return problem
}

func (c *conversation) leave(actor string, m *chatv1.MemberLeft) (problem string) {
	user, removed := c.roles[m.UserId], m.UserId != actor
	if removed && (!c.leads(actor) || user == chatv1.Role_ROLE_OWNER ||
		user == chatv1.Role_ROLE_ADMIN && c.roles[actor] != chatv1.Role_ROLE_OWNER) {
		problem = "removes a member without the right to"
	}
	if next := c.successor(m.UserId); m.NewOwnerId != next {
		problem = "makes " + m.NewOwnerId + " the owner instead of " + next
	}
	delete(c.roles, m.UserId)
	c.members = slices.DeleteFunc(c.members, func(u string) bool { return u == m.UserId })
	if m.NewOwnerId != "" {
		c.roles[m.NewOwnerId] = chatv1.Role_ROLE_OWNER
	}
	return problem
}

// successor returns the member who has to become the owner when a member leaves; empty: the owner stays the same.
func (c *conversation) successor(leaving string) string {
	if c.roles[leaving] != chatv1.Role_ROLE_OWNER {
		return ""
	}
	others := slices.DeleteFunc(slices.Clone(c.members), func(u string) bool { return u == leaving })
	if i := slices.IndexFunc(others, func(u string) bool { return c.roles[u] == chatv1.Role_ROLE_ADMIN }); i >= 0 {
		return others[i]
	}
	return strings.Join(others[:min(1, len(others))], "")
}

func (c *conversation) applyMessage(e Event) (problem string) {
	mentions := func(users []string, all bool) {
		for _, u := range users {
			if !slices.Contains(c.members, u) {
				problem = "mentions " + u + ", who is not a member"
			}
		}
		if all && !c.leads(e.Actor) {
			problem = "mentions all members without the right to"
		}
	}
	switch m := e.Message.(type) {
	case *chatv1.MessageSent:
		if m.ReplyTo != "" && (c.messages[m.ReplyTo] == nil || c.messages[m.ReplyTo].deleted) {
			problem = "answers a message that is not there"
		}
		if m.ThreadId != "" && (c.messages[m.ThreadId] == nil || c.messages[m.ThreadId].thread != "") {
			problem = "belongs to a thread whose first message belongs to another thread or is not there"
		}
		mentions(m.MentionedUserIds, m.MentionsAll)
		c.messages[m.MessageId] = &sentIn{author: e.Actor, thread: m.ThreadId}
	case *chatv1.MessageEdited:
		if s := c.messages[m.MessageId]; s == nil || s.author != e.Actor || s.deleted {
			problem = "edits a message that is not the actor's or is not there"
		}
		mentions(m.MentionedUserIds, m.MentionsAll)
	case *chatv1.MessageDeleted:
		s := c.messages[m.MessageId]
		if s == nil || s.deleted || s.thread != m.ThreadId || s.author != e.Actor && (c.kind == chatv1.Kind_KIND_DIRECT || !c.leads(e.Actor)) {
			return "deletes a message without the right to, or one that is not there"
		}
		s.deleted = true
	case *chatv1.MessagePinned:
		if s := c.messages[m.MessageId]; s == nil || s.deleted || !c.leads(e.Actor) {
			problem = "pins a message without the right to, or one that is not there"
		}
		c.pins = append(c.pins, m.MessageId)
	case *chatv1.MessageUnpinned:
		if s := c.messages[m.MessageId]; !c.leads(e.Actor) && (s == nil || s.author != e.Actor) { // authors unpin by deleting
			problem = "unpins a message without the right to"
		}
		c.pins = slices.DeleteFunc(c.pins, func(p string) bool { return p == m.MessageId })
	}
	return problem
}

// invalid returns which property of the conversation does not hold, or "".
func (c *conversation) invalid() string {
	owners := 0
	for user, role := range c.roles {
		if role == chatv1.Role_ROLE_OWNER {
			owners++
		}
		if !slices.Contains(c.members, user) {
			return user + " has a role, but is not a member"
		}
	}
	switch {
	case c.kind == chatv1.Kind_KIND_GROUP && len(c.members) > 0 && owners != 1:
		return "a group with members needs exactly one owner"
	case len(c.pins) > 100:
		return "more than 100 messages are pinned"
	}
	for i, p := range c.pins {
		if slices.Contains(c.pins[:i], p) || c.messages[p] == nil || c.messages[p].deleted {
			return p + " is pinned twice, or is deleted"
		}
	}
	return ""
}
