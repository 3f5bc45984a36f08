// Package rule decides which events of other services raise which notifications. It does no I/O. The id of a
// notification is derived from the event and the recipient. So if an event is handled again, its notifications have the
// same ids as before. The checkpoint of the consumer prevents an event from raising notifications twice.
package rule

import (
	"github.com/google/uuid"
	"google.golang.org/protobuf/proto"

	chatv1 "github.com/edumatrix/interlinked/proto/gen/edumatrix/chat/v1"
	notificationv1 "github.com/edumatrix/interlinked/proto/gen/edumatrix/notification/v1"

	"github.com/edumatrix/interlinked/proto/catalog"
)

// About is an event that may raise notifications.
type About struct {
	ID      string
	Stream  string
	Version catalog.Version
	Actor   string
	Event   proto.Message
}

// idNamespace is the UUID namespace of the ids of notifications.
var idNamespace = uuid.MustParse("b0c3cf60-8a2e-5b43-9d0c-6d5a1c2e7f10")

// Raise returns the notifications that an event raises: one for each user whom another user added to a conversation.
func Raise(a About) (raised []*notificationv1.Raised) {
	var added []string
	switch e := a.Event.(type) {
	case *chatv1.ConversationStarted:
		added = e.UserIds
	case *chatv1.MemberAdded:
		added = []string{e.UserId}
	}
	for _, user := range added {
		if user == a.Actor {
			continue
		}
		raised = append(raised, &notificationv1.Raised{
			NotificationId: uuid.NewSHA1(idNamespace, []byte(a.ID+"\x00"+user)).String(), RecipientId: user,
			Reason: notificationv1.Reason_REASON_ADDED_TO_CONVERSATION, By: a.Actor, AboutStream: a.Stream,
			AboutVersion: int64(a.Version)})
	}
	return raised
}
