package edumatrix

import (
	"bytes"
	"encoding/json"
	"flag"
	"io"
	"os"
	"slices"
	"strings"
	"testing"
	"time"

	"google.golang.org/protobuf/proto"

	"github.com/edumatrix/interlinked/proto/catalog"
	chatv1 "github.com/edumatrix/interlinked/proto/gen/edumatrix/chat/v1"
	"github.com/edumatrix/interlinked/shared/envelope"
)

func declared(t *testing.T) *catalog.Catalog {
	t.Helper()
	c, err := catalog.Load()
	if err != nil {
		t.Fatal(err)
	}
	return c
}

func encoded(t *testing.T, m proto.Message) []byte {
	t.Helper()
	raw, err := proto.Marshal(m)
	if err != nil {
		t.Fatal(err)
	}
	return raw
}

func messageSent(t *testing.T, body string) envelope.Event {
	t.Helper()
	return envelope.Event{ID: "e1", Type: "chat.message_sent", Source: "chat", Stream: "conversation:7", Version: 3,
		Position: 12, Time: time.Date(2026, 3, 4, 5, 6, 7, 8e6, time.UTC), Actor: "alice", Cause: "c1",
		Body: encoded(t, &chatv1.MessageSent{ConversationId: "7", MessageId: "m1", Body: body})}
}

func TestShow_OneLineForAnEvent(t *testing.T) {
	t.Parallel()
	redacted := messageSent(t, "")
	redacted.Redacted = true
	torn := messageSent(t, "")
	torn.Body = []byte{0xff}
	at := &where{"chat-events", 2, 9}
	for name, test := range map[string]struct {
		event envelope.Event
		at    *where
		ink   ink
		want  string
	}{
		"from the log": {messageSent(t, "hi"), nil, false, `2026-03-04T05:06:07.008Z 3 chat.message_sent alice ` +
			`{"conversation_id":"7","message_id":"m1","body":"hi","reply_to":"","thread_id":"","mentioned_user_ids":[],"mentions_all":false}`},
		"from a topic": {messageSent(t, "hi"), at, false, `2026-03-04T05:06:07.008Z chat-events/2 conversation:7 3 ` +
			`chat.message_sent alice {"conversation_id":"7","message_id":"m1","body":"hi","reply_to":"","thread_id":"","mentioned_user_ids":[],"mentions_all":false}`},
		"redacted": {redacted, nil, false, `2026-03-04T05:06:07.008Z 3 chat.message_sent alice (redacted) ` +
			`{"conversation_id":"7","message_id":"m1","body":"","reply_to":"","thread_id":"","mentioned_user_ids":[],"mentions_all":false}`},
		"control characters": {messageSent(t, "\x1b[2J\u009b2J"), nil, false, `2026-03-04T05:06:07.008Z 3 chat.message_sent alice ` +
			`{"conversation_id":"7","message_id":"m1","body":"\u001b[2J·2J","reply_to":"","thread_id":"","mentioned_user_ids":[],"mentions_all":false}`},
		"damaged": {torn, nil, false, "2026-03-04T05:06:07.008Z 3 chat.message_sent alice (event chat.message_sent: "},
		"position": {envelope.Event{ID: "chat:5", Type: envelope.Position("chat", 5, 4).Type, Source: "chat", Position: 5,
			Time: messageSent(t, "").Time}, at, false, "2026-03-04T05:06:07.008Z chat-events/2 chat is complete up to position 5 here"},
		"in colours": {messageSent(t, "hi"), nil, true, "\x1b[2m2026-03-04T05:06:07.008Z\x1b[0m \x1b[33m3\x1b[0m " +
			"\x1b[36mchat.message_sent\x1b[0m \x1b[32malice\x1b[0m {"},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			var out bytes.Buffer
			s := &shower{out: &out, ink: test.ink, declared: declared(t)}
			if err := s.event(test.event, test.at); err != nil {
				t.Fatal(err)
			}
			if got := out.String(); !strings.HasPrefix(got, test.want) || strings.Count(got, "\n") != 1 {
				t.Errorf("got  %q\nwant %q", got, test.want)
			}
		})
	}
}

func TestShow_JSONHasOneObjectPerLine(t *testing.T) {
	t.Parallel()
	var out bytes.Buffer
	s := &shower{out: &out, json: true, declared: declared(t)}
	torn := messageSent(t, "")
	torn.Body = []byte{0xff}
	for _, e := range []envelope.Event{messageSent(t, "a\nb"), torn} {
		if err := s.event(e, &where{"chat-events", 0, 0}); err != nil {
			t.Fatal(err)
		}
	}
	lines := strings.Split(strings.TrimSuffix(out.String(), "\n"), "\n")
	if len(lines) != 2 {
		t.Fatalf("%q", lines)
	}
	want := `{"topic":"chat-events","partition":0,"offset":0,"owner":"chat","position":12,"stream":"conversation:7",` +
		`"version":3,"id":"e1","type":"chat.message_sent","time":"2026-03-04T05:06:07.008Z","actor":"alice","cause":"c1",` +
		`"data":{"conversation_id":"7","message_id":"m1","body":"a\nb","reply_to":"","thread_id":"","mentioned_user_ids":[],"mentions_all":false}}`
	if lines[0] != want {
		t.Errorf("got  %s\nwant %s", lines[0], want)
	}
	var second shown
	if err := json.Unmarshal([]byte(lines[1]), &second); err != nil || second.Problem == "" || second.Data != nil {
		t.Errorf("%+v %v", second, err)
	}
}

func TestInk_ColoursOnlyTerminals(t *testing.T) {
	t.Parallel()
	file, err := os.CreateTemp(t.TempDir(), "")
	if err != nil {
		t.Fatal(err)
	}
	defer file.Close()
	for name, out := range map[string]io.Writer{"a buffer": &bytes.Buffer{}, "a file": file} {
		if (Terminal{Out: out, Getenv: func(string) string { return "" }}).ink() {
			t.Errorf("%s is coloured", name)
		}
	}
	if got := ink(true).paint(red, ""); got != "" {
		t.Errorf("the empty text is printed as %q", got)
	}
}

func TestArguments_ComeInAnyOrderWithFlags(t *testing.T) {
	t.Parallel()
	f := flag.NewFlagSet("", flag.ContinueOnError)
	owner, asJSON := f.String("owner", "", ""), f.Bool("json", false, "")
	rest, err := arguments(f, []string{"show", "--json", "conversation:7", "--owner", "chat"})
	if err != nil || !slices.Equal(rest, []string{"show", "conversation:7"}) || *owner != "chat" || !*asJSON {
		t.Fatalf("%q %q %v %v", rest, *owner, *asJSON, err)
	}
}
