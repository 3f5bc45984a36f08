package catalog

import (
	"testing"

	"github.com/stretchr/testify/require"
)

func TestCheckSubjects_RefusesASubjectThatNoCommandNames(t *testing.T) {
	t.Parallel()
	about := func(prefix, subject string) (stream, of template) {
		return template{source: prefix + "{id}"}, template{source: subject}
	}
	c := &Catalog{commands: map[string]*Command{}, events: map[string]*Event{}}
	edit, sent, created := &Command{}, &Event{}, &Event{}
	edit.stream, edit.subject = about("conversation:", "{message_id}")
	sent.kind, sent.subject.source = "conversation", "{message_id}"
	created.kind, created.subject.source = "post", "{post_id}"
	c.commands["chat.edit_message"], c.events["chat.message_sent"] = edit, sent
	require.Empty(t, c.checkSubjects())
	c.events["feed.post_created"] = created
	problems := c.checkSubjects()
	require.Len(t, problems, 1)
	require.ErrorContains(t, problems[0], "feed.post_created")
	// This command has the same subject, but its streams are comments, and the event's stream is a post. So posts still
	// have no command with the subject.
	other := &Command{}
	other.stream, other.subject = about("comment:", "{post_id}")
	c.commands["feed.edit_comment"] = other
	require.Len(t, c.checkSubjects(), 1)
	other.stream, other.subject = about("post:", "{post_id}")
	require.Empty(t, c.checkSubjects())
}
