package conversation_test

import (
	"testing"

	"google.golang.org/protobuf/proto"

	chatv1 "github.com/edumatrix/interlinked/proto/gen/edumatrix/chat/v1"
	"github.com/edumatrix/interlinked/proto/refusal"
	"github.com/edumatrix/interlinked/services/chat/conversation"
	"github.com/edumatrix/interlinked/shared/owner/decidetest"
)

const (
	owner  = chatv1.Role_ROLE_OWNER
	admin  = chatv1.Role_ROLE_ADMIN
	member = chatv1.Role_ROLE_MEMBER
)

func studyGroup(users ...string) decidetest.Event {
	return decidetest.By(users[0],
		&chatv1.ConversationStarted{ConversationId: id, Kind: chatv1.Kind_KIND_STUDY_GROUP, UserIds: users})
}

func role(user string, r chatv1.Role, previous string) decidetest.Event {
	return decidetest.By("ann", &chatv1.RoleChanged{ConversationId: id, UserId: user, Role: r, PreviousOwnerId: previous})
}

func setRole(user string, r chatv1.Role) proto.Message {
	return &chatv1.SetRole{ConversationId: id, UserId: user, Role: r}
}

func TestDecide_Roles(t *testing.T) {
	t.Parallel()
	class := group("ann", "bob", "cid", "dan")
	bobAdmin := role("bob", admin, "")
	handedOver := role("bob", owner, "ann")
	remove := func(user string) proto.Message { return &chatv1.RemoveMember{ConversationId: id, UserId: user} }
	leave := &chatv1.Leave{ConversationId: id}
	given := decidetest.Given
	decidetest.Test(t, stream, conversation.New, map[string]decidetest.Case{
		"make an admin":           given(class).When("ann", setRole("bob", admin)).Then(bobAdmin.Message),
		"make an admin again":     given(class, bobAdmin).When("ann", setRole("bob", admin)).Unchanged(),
		"make an admin a member":  given(class, bobAdmin).When("ann", setRole("bob", member)).Then(role("bob", member, "").Message),
		"make a member a member":  given(class).When("ann", setRole("bob", member)).Unchanged(),
		"hand over":               given(class).When("ann", setRole("bob", owner)).Then(handedOver.Message),
		"hand over to oneself":    given(class).When("ann", setRole("ann", owner)).Unchanged(),
		"resign":                  given(class).When("ann", setRole("ann", member)).Refused(refusal.NotAllowed),
		"after handing over":      given(class, handedOver).When("ann", setRole("cid", admin)).Refused(refusal.NotAllowed),
		"by the new owner":        given(class, handedOver).When("bob", setRole("ann", member)).Then(role("ann", member, "").Message),
		"by an admin":             given(class, bobAdmin).When("bob", setRole("cid", admin)).Refused(refusal.NotAllowed),
		"by a member":             given(class).When("bob", setRole("bob", owner)).Refused(refusal.NotAllowed),
		"of a stranger":           given(class).When("ann", setRole("eve", admin)).Refused(refusal.NotFound),
		"of one who left":         given(class, left("bob")).When("ann", setRole("bob", admin)).Refused(refusal.NotFound),
		"without a role":          given(class).When("ann", setRole("bob", 0)).Refused(refusal.InvalidField),
		"of an unknown kind":      given(class).When("ann", setRole("bob", 17)).Refused(refusal.InvalidField),
		"by a stranger":           given(class).When("eve", setRole("bob", admin)).Refused(refusal.NotAMember),
		"in a direct":             given(direct("ann", "bob")).When("ann", setRole("bob", admin)).Refused("direct_conversation"),
		"in a study group":        given(studyGroup("ann", "bob")).When("ann", setRole("bob", admin)).Refused("study_group"),
		"in an unknown":           given().When("ann", setRole("bob", admin)).Refused(refusal.NotAMember),
		"an admin who came back":  given(class, bobAdmin, left("bob"), added("bob")).When("bob", remove("cid")).Refused(refusal.NotAllowed),
		"an added admin":          given(group("ann", "cid"), addedAs("bob", admin)).When("bob", remove("cid")).Then(left("cid").Message),
		"remove by an admin":      given(class, bobAdmin).When("bob", remove("cid")).Then(left("cid").Message),
		"remove an admin":         given(class, bobAdmin, role("cid", admin, "")).When("bob", remove("cid")).Refused(refusal.NotAllowed),
		"remove the owner":        given(class, bobAdmin).When("bob", remove("ann")).Refused(refusal.NotAllowed),
		"remove an admin, owner":  given(class, bobAdmin).When("ann", remove("bob")).Then(left("bob").Message),
		"remove the former owner": given(class, handedOver).When("bob", remove("ann")).Then(left("ann").Message),

		"the owner leaves, with an admin": given(class, role("cid", admin, "")).When("ann", leave).
			Then(leftTo("ann", "cid").Message),
		"the owner leaves, with two admins": given(class, role("dan", admin, ""), role("cid", admin, "")).When("ann", leave).
			Then(leftTo("ann", "cid").Message),
		"the owner leaves, the admin joined again": given(class, left("bob"), addedAs("bob", member), left("cid"),
			addedAs("cid", admin)).When("ann", leave).Then(leftTo("ann", "cid").Message),
		"the successor, by an event of an earlier release": given(class, left("ann")).When("bob", remove("cid")).
			Then(left("cid").Message),
		"another member, by such an event": given(class, left("ann")).When("cid", remove("dan")).Refused(refusal.NotAllowed),
		"an admin leaves":                  given(class, bobAdmin).When("bob", leave).Then(left("bob").Message),
		"the former owner leaves":          given(class, handedOver).When("ann", leave).Then(left("ann").Message),
		"the new owner leaves":             given(class, handedOver).When("bob", leave).Then(leftTo("bob", "ann").Message),
		"leave a study group":              given(studyGroup("ann", "bob")).When("bob", leave).Refused("study_group"),
		"add to a study group":             given(studyGroup("ann")).When("ann", &chatv1.AddMember{UserId: "bob"}).Refused("study_group"),
		"remove from a study group": given(studyGroup("ann", "bob")).When("ann", remove("bob")).
			Refused("study_group"),
	})
}

func addedAs(user string, r chatv1.Role) decidetest.Event {
	return decidetest.By("ann", &chatv1.MemberAdded{ConversationId: id, UserId: user, Role: r})
}

func TestDecide_TitleAndPicture(t *testing.T) {
	t.Parallel()
	class := group("ann", "bob", "cid")
	bobAdmin := role("bob", admin, "")
	title := &chatv1.SetTitle{ConversationId: id, Title: "maths"}
	picture := func(url string) proto.Message { return &chatv1.SetPicture{ConversationId: id, Picture: url} }
	changed := func(url string) proto.Message { return &chatv1.PictureChanged{ConversationId: id, Picture: url} }
	given := decidetest.Given
	decidetest.Test(t, stream, conversation.New, map[string]decidetest.Case{
		"title": given(class).When("ann", title).Then(&chatv1.TitleChanged{ConversationId: id, Title: "maths"}),
		"title by an admin": given(class, bobAdmin).When("bob", title).
			Then(&chatv1.TitleChanged{ConversationId: id, Title: "maths"}),
		"title by a member":        given(class).When("bob", title).Refused(refusal.NotAllowed),
		"title by a stranger":      given(class).When("eve", title).Refused(refusal.NotAMember),
		"title of a direct":        given(direct("ann", "bob")).When("ann", title).Refused("direct_conversation"),
		"title of a study group":   given(studyGroup("ann")).When("ann", title).Refused("study_group"),
		"no title":                 given(class).When("ann", &chatv1.SetTitle{}).Then(&chatv1.TitleChanged{ConversationId: id}),
		"picture":                  given(class).When("ann", picture("https://x/p.png")).Then(changed("https://x/p.png")),
		"picture of this mesh":     given(class).When("ann", picture("/files/1")).Then(changed("/files/1")),
		"no picture":               given(class).When("ann", picture("")).Then(changed("")),
		"picture by a member":      given(class).When("cid", picture("")).Refused(refusal.NotAllowed),
		"picture of a direct":      given(direct("ann", "bob")).When("ann", picture("")).Refused("direct_conversation"),
		"picture of a study group": given(studyGroup("ann")).When("ann", picture("")).Refused("study_group"),
		"picture without TLS":      given(class).When("ann", picture("http://x/p.png")).Refused(refusal.InvalidField),
		"picture of the page's scheme": given(class).When("ann", picture("//x/p.png")).
			Refused(refusal.InvalidField),
		"picture that runs a script": given(class).When("ann", picture("javascript:alert(1)")).
			Refused(refusal.InvalidField),
		"a group with such a picture": given().When("ann", &chatv1.StartGroup{Picture: "data:text/html,x"}).
			Refused(refusal.InvalidField),
	})
}
