package conversation

import (
	"strings"

	"google.golang.org/protobuf/proto"

	"github.com/edumatrix/interlinked/proto/catalog"
	chatv1 "github.com/edumatrix/interlinked/proto/gen/edumatrix/chat/v1"
	"github.com/edumatrix/interlinked/proto/refusal"
)

// maxMembers is the maximum number of members of a conversation. StartGroup names at most 500 of them, so that the
// command fits into a frame; further members are added one by one.
const maxMembers = 2000

var errFull = refusal.New(codeFull, "a conversation has at most %d members", maxMembers)

// member is a current member of a conversation.
type member struct {
	place int // the member's number in the order of joining, from 1
	role  chatv1.Role
}

func (s *State) has(user string) bool { return s.members[user] != nil }

// role returns the role of a user, which is unspecified if the user is not a member. Members of a direct conversation
// have the role member.
func (s *State) role(user string) chatv1.Role {
	if m := s.members[user]; m != nil {
		return m.role
	}
	return chatv1.Role_ROLE_UNSPECIFIED
}

// leads reports whether a user is the owner or an admin of a group.
func (s *State) leads(user string) bool {
	r := s.role(user)
	return r == chatv1.Role_ROLE_OWNER || r == chatv1.Role_ROLE_ADMIN
}

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
	if err := checkPicture(c.Picture); err != nil {
		return nil, err
	}
	users := distinct(append([]string{by.Actor}, c.UserIds...))
	if len(users) > maxMembers {
		return nil, errFull
	}
	return one(&chatv1.ConversationStarted{ConversationId: s.id, Kind: chatv1.Kind_KIND_GROUP, Title: c.Title,
		Picture: c.Picture, UserIds: users, HistoryFromJoining: c.HistoryFromJoining})
}

// distinct returns the users without repeats, in the order in which each is named first.
func distinct(users []string) (all []string) {
	named := map[string]bool{}
	for _, u := range users {
		if !named[u] {
			all, named[u] = append(all, u), true
		}
	}
	return all
}

// requireGroup returns a refusal if the members and the title of the conversation cannot change by its own commands.
func (s *State) requireGroup() error {
	switch s.kind {
	case chatv1.Kind_KIND_GROUP:
		return nil
	case chatv1.Kind_KIND_STUDY_GROUP:
		return refusal.New(codeStudyGroup, "the conversation belongs to a study group; change the group instead")
	}
	return refusal.New(codeDirect, "a direct conversation always has the same two members, and no title or picture")
}

// requireLead returns a refusal if the conversation is not a group, or if the actor is neither its owner nor an admin.
func (s *State) requireLead(by catalog.Origin) error {
	if err := s.requireGroup(); err != nil {
		return err
	}
	return s.requireLeadInGroup(by, "do this")
}

// requireLeadInGroup returns a refusal if the conversation is a group or belongs to a study group, and the actor is
// neither the owner nor an admin. The parameter action is a verb with its object, for the refusal.
func (s *State) requireLeadInGroup(by catalog.Origin, action string) error {
	if s.kind == chatv1.Kind_KIND_DIRECT || s.leads(by.Actor) {
		return nil
	}
	return refusal.New(refusal.NotAllowed, "only the owner and the admins of a group can %s", action)
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
	if err := s.requireLead(by); err != nil {
		return nil, err
	}
	switch {
	case c.UserId == by.Actor:
		return nil, refusal.New(refusal.NotAllowed, "you cannot remove yourself; use chat.leave")
	case !s.has(c.UserId):
		return nil, nil
	case s.leads(c.UserId) && s.role(by.Actor) != chatv1.Role_ROLE_OWNER:
		return nil, refusal.New(refusal.NotAllowed, "only the owner of a group can remove an admin, and nobody can remove the owner")
	}
	return one(&chatv1.MemberLeft{ConversationId: s.id, UserId: c.UserId})
}

func (s *State) leave(by catalog.Origin) ([]proto.Message, error) {
	if err := s.requireGroup(); err != nil {
		return nil, err
	}
	left := &chatv1.MemberLeft{ConversationId: s.id, UserId: by.Actor}
	if s.role(by.Actor) == chatv1.Role_ROLE_OWNER {
		left.NewOwnerId = s.successor(by.Actor)
	}
	return one(left)
}

// successor returns the member who becomes the owner when the owner leaves: the admin who joined first, or the member
// who joined first if there is no admin. It returns "" if there is no other member.
func (s *State) successor(owner string) (user string) {
	precedes := func(a, b *member) bool {
		if a.role != b.role {
			return a.role == chatv1.Role_ROLE_ADMIN
		}
		return a.place < b.place
	}
	for u, m := range s.members {
		if u != owner && (user == "" || precedes(m, s.members[user])) {
			user = u
		}
	}
	return user
}

func (s *State) setRole(by catalog.Origin, c *chatv1.SetRole) ([]proto.Message, error) {
	if err := s.requireGroup(); err != nil {
		return nil, err
	}
	changed := &chatv1.RoleChanged{ConversationId: s.id, UserId: c.UserId, Role: c.Role}
	switch c.Role {
	case chatv1.Role_ROLE_OWNER:
		changed.PreviousOwnerId = by.Actor
	case chatv1.Role_ROLE_ADMIN, chatv1.Role_ROLE_MEMBER:
	default:
		return nil, refusal.NewField("role", "has to be owner, admin or member")
	}
	switch {
	case s.role(by.Actor) != chatv1.Role_ROLE_OWNER:
		return nil, refusal.New(refusal.NotAllowed, "only the owner of a group can change roles")
	case !s.has(c.UserId):
		return nil, refusal.New(refusal.NotFound, "the user is not a member of this group; add the user first")
	case s.role(c.UserId) == c.Role:
		return nil, nil
	case c.UserId == by.Actor:
		return nil, refusal.New(refusal.NotAllowed, "a group needs an owner; make another member the owner instead")
	}
	return one(changed)
}

func (s *State) setTitle(by catalog.Origin, c *chatv1.SetTitle) ([]proto.Message, error) {
	if err := s.requireLead(by); err != nil {
		return nil, err
	}
	return one(&chatv1.TitleChanged{ConversationId: s.id, Title: c.Title})
}

func (s *State) setPicture(by catalog.Origin, c *chatv1.SetPicture) ([]proto.Message, error) {
	if err := s.requireLead(by); err != nil {
		return nil, err
	}
	if err := checkPicture(c.Picture); err != nil {
		return nil, err
	}
	return one(&chatv1.PictureChanged{ConversationId: s.id, Picture: c.Picture})
}

// checkPicture returns a refusal if a picture is neither empty nor a URL that a client can load without a warning. A
// URL that begins with "//" is refused, because its scheme would be that of the page.
func checkPicture(url string) error {
	local := strings.HasPrefix(url, "/") && !strings.HasPrefix(url, "//")
	if url == "" || local || strings.HasPrefix(url, "https://") {
		return nil
	}
	return refusal.NewField("picture", `has to begin with "https://", or with "/" if this installation serves the image`)
}

// FirstRole returns the role that a user has in a new conversation. The parameter place is the user's place among those
// whom the event names, from 0.
func FirstRole(kind chatv1.Kind, place int) chatv1.Role {
	if place == 0 && kind != chatv1.Kind_KIND_DIRECT {
		return chatv1.Role_ROLE_OWNER
	}
	return chatv1.Role_ROLE_MEMBER
}

// AddedRole returns the role of a member who was added.
func AddedRole(e *chatv1.MemberAdded) chatv1.Role {
	if e.Role == chatv1.Role_ROLE_UNSPECIFIED {
		return chatv1.Role_ROLE_MEMBER
	}
	return e.Role
}

func (s *State) applyStart(e *chatv1.ConversationStarted) {
	s.kind = e.Kind
	for i, user := range e.UserIds {
		s.applyJoin(user, FirstRole(e.Kind, i))
	}
}

func (s *State) applyJoin(user string, role chatv1.Role) {
	if s.has(user) {
		return
	}
	s.joined++
	s.members[user] = &member{place: s.joined, role: role}
}

// applyLeave removes a member. In events of an earlier release, the event does not name the new owner: when an owner
// left, the member who joined first became the owner.
func (s *State) applyLeave(e *chatv1.MemberLeft) {
	successor := e.NewOwnerId
	if successor == "" && s.role(e.UserId) == chatv1.Role_ROLE_OWNER {
		successor = s.successor(e.UserId)
	}
	delete(s.members, e.UserId)
	if m := s.members[successor]; m != nil {
		m.role = chatv1.Role_ROLE_OWNER
	}
}

func (s *State) applyRole(e *chatv1.RoleChanged) {
	if m := s.members[e.UserId]; m != nil {
		m.role = e.Role
	}
	if m := s.members[e.PreviousOwnerId]; m != nil {
		m.role = chatv1.Role_ROLE_ADMIN
	}
}
