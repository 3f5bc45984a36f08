package edumatrix

import (
	"bytes"
	"encoding/json"
	"errors"
	"strings"
	"testing"
	"time"

	"google.golang.org/protobuf/types/known/timestamppb"

	"github.com/edumatrix/interlinked/proto/catalog"
	chatv1 "github.com/edumatrix/interlinked/proto/gen/edumatrix/chat/v1"
	meshv1 "github.com/edumatrix/interlinked/proto/gen/edumatrix/mesh/v1"
	"github.com/edumatrix/interlinked/shared/bus"
	"github.com/edumatrix/interlinked/shared/envelope"

	"github.com/ThreeDotsLabs/watermill/message"
)

// someDeadLetters returns an installation, dead letters of chat and parked streams. The dead letters are: a failed
// command; a parked event that was delivered twice, and therefore has two dead letters; an event that failed and was
// applied later; and an unreadable message. Two more events of the first parked stream wait. The second parked stream
// has no dead letter.
func someDeadLetters(t *testing.T) (*installation, []bus.DeadLetterRecord, []*meshv1.Parked) {
	t.Helper()
	command := envelope.Command{ID: "c1", Type: "chat.send_message", Stream: "conversation:7", Actor: "alice",
		Time: time.Unix(1, 0), Body: encoded(t, &chatv1.SendMessage{ConversationId: "7", Body: "hi"})}.Message()
	taken := messageSent(t, "taken")
	taken.Version = 2
	event := messageSent(t, "parked").Message()
	noise := message.NewMessage("noise", []byte{0xff, 0xfe})
	of := func(offset int64, topic string, m *message.Message) bus.DeadLetterRecord {
		return bus.DeadLetterRecord{Offset: offset, ID: m.UUID, Topic: topic, FromPartition: 1, FromOffset: 10 + offset,
			Key: "conversation:7", Error: "it failed", Time: time.Unix(100+offset, 0), Message: m}
	}
	again := of(2, "chat-events", event)
	again.FromOffset--
	read := []bus.DeadLetterRecord{of(0, "chat-commands", command), of(1, "chat-events", event), again,
		of(3, "chat-events", taken.Message()), of(4, "chat-events", noise)}
	parked := func(stream string, version catalog.Version, problem string, waiting int64) *meshv1.Parked {
		e := messageSent(t, "")
		e.Stream, e.Version, e.ID = stream, version, "id of "+stream
		return &meshv1.Parked{Source: "chat", Stream: stream, Version: int64(version), Record: e.Record("chat-events"),
			Error: problem, Waiting: waiting, At: timestamppb.New(time.Unix(7, 0))}
	}
	return &installation{declared: declared(t)}, read, []*meshv1.Parked{parked("conversation:7", 3, "newest error", 2),
		parked("conversation:9", 1, "missing", 0)}
}

func TestDeadLetters_AreListedOnceWithTheirStates(t *testing.T) {
	t.Parallel()
	i, read, parked := someDeadLetters(t)
	all := i.merge("chat", read, parked, map[string]bool{"4/0/noise": true})
	var got []string
	for _, l := range all {
		got = append(got, l.ID+" "+l.State)
	}
	want := []string{"chat/0/0 failed", "chat/0/1 parked", "chat/0/3 done", "chat/0/4 unreadable", "id of conversation:9 parked"}
	if strings.Join(got, ", ") != strings.Join(want, ", ") {
		t.Fatalf("got  %q\nwant %q", got, want)
	}
	if l := all[1]; l.Waiting != 2 || l.Error != "newest error" || string(l.Data) != `{"conversation_id":"7","message_id":"m1","body":"parked","reply_to":"","thread_id":"","mentioned_user_ids":[],"mentions_all":false}` {
		t.Errorf("%+v", l)
	}
	if l := all[3]; l.Problem == "" || !strings.Contains(l.Problem, "fffe") {
		t.Errorf("%+v", l)
	}
	dropped := i.merge("chat", read, nil, map[string]bool{"0/4/noise": true, "0/0/c1": true})
	if dropped[0].State != stateDone || dropped[3].State != stateDone {
		t.Errorf("dropped: %+v", dropped)
	}
	other := i.merge("chat", read, nil, map[string]bool{"0/0/another message at this offset": true})
	if other[0].State != stateFailed {
		t.Errorf("a dead letter at the offset of a dropped one, on a topic that was created again: %+v", other[0])
	}
}

func TestDeadLetters_AreFoundByOffsetAndByMessageID(t *testing.T) {
	t.Parallel()
	i, read, parked := someDeadLetters(t)
	all := append(i.merge("chat", read, parked, nil), i.merge("feed", read[:1], nil, nil)...)
	for id, want := range map[string]string{"chat/0/0": "chat/0/0", "0/1": "chat/0/1", "noise": "chat/0/4",
		"id of conversation:9": "id of conversation:9"} {
		if l, err := findDeadLetter(all, id, nil); err != nil || l.ID != want {
			t.Errorf("%s: %+v %v", id, l, err)
		}
	}
	for id, want := range map[string]string{"chat/0/0": "", "0/1": "use the id chat/0/1", "9/9": "does not answer"} {
		l, err := findDeadLetter(all, id, errors.New("feed does not answer"))
		if want == "" && (err != nil || l.ID != id) || want != "" && (err == nil || !strings.Contains(err.Error(), want)) {
			t.Errorf("%s while a service does not answer: %+v %v", id, l, err)
		}
	}
	for id, want := range map[string]string{"0/0": "one of chat/0/0, feed/0/0", "9/9": "no dead letter", "c1": "ambiguous"} {
		if l, err := findDeadLetter(all, id, nil); err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("%s: %+v %v", id, l, err)
		}
	}
}

func TestDeadLetters_AreShown(t *testing.T) {
	t.Parallel()
	i, read, parked := someDeadLetters(t)
	read[0].Error = "decide: \x1b[31mpanic"
	all := i.merge("chat", read, parked, nil)
	var out bytes.Buffer
	terminal := Terminal{Out: &out}
	if err := listDeadLetters(terminal, all, false); err != nil {
		t.Fatal(err)
	}
	for _, want := range []string{"ID ", "chat/0/0", "failed", "chat-commands/1/10", "chat.send_message by alice", "decide: ·[31mpanic",
		"parked, 2 wait", "chat.message_sent v3 by alice"} {
		if !strings.Contains(out.String(), want) {
			t.Errorf("%q is missing from\n%s", want, out.String())
		}
	}
	out.Reset()
	if err := showDeadLetter(terminal, all[0], false); err != nil {
		t.Fatal(err)
	}
	for _, want := range []string{"a command's outcome is final", `{"conversation_id":"7","body":"hi"`, "ce_type"} {
		if !strings.Contains(out.String(), want) {
			t.Errorf("%q is missing from\n%s", want, out.String())
		}
	}
	out.Reset()
	if err := listDeadLetters(terminal, all, true); err != nil {
		t.Fatal(err)
	}
	for _, line := range strings.Split(strings.TrimSpace(out.String()), "\n") {
		var l deadLetter
		if err := json.Unmarshal([]byte(line), &l); err != nil || l.State == "" || l.Message == "" {
			t.Errorf("%s: %v", line, err)
		}
	}
}
