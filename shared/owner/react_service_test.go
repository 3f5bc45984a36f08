//go:build integration

package owner_test

import (
	"context"
	"fmt"
	"net"
	"slices"
	"sync/atomic"
	"testing"

	"connectrpc.com/connect"
	"google.golang.org/protobuf/proto"

	"github.com/edumatrix/interlinked/proto/catalog"
	chatv1 "github.com/edumatrix/interlinked/proto/gen/edumatrix/chat/v1"
	meshv1 "github.com/edumatrix/interlinked/proto/gen/edumatrix/mesh/v1"
	"github.com/edumatrix/interlinked/proto/gen/edumatrix/mesh/v1/meshv1connect"
	toyv1 "github.com/edumatrix/interlinked/proto/gen/edumatrix/toy/v1"
	"github.com/edumatrix/interlinked/shared/envelope"
	"github.com/edumatrix/interlinked/shared/owner"
	"github.com/edumatrix/interlinked/shared/owner/consume"
	"github.com/edumatrix/interlinked/shared/rpc"
)

// diary is an aggregate that takes notes. While d.fails is true, Decide returns an error for a command with the text
// "choke".
type diary struct {
	n     catalog.Version
	fails *atomic.Bool
}

func (d *diary) Decide(_ catalog.Origin, command proto.Message) ([]proto.Message, error) {
	c, ok := command.(*toyv1.WriteNote)
	if !ok || c.Text == "choke" && d.fails.Load() {
		return nil, fmt.Errorf("%v cannot be decided", command)
	}
	return []proto.Message{&toyv1.NoteWritten{UserId: c.UserId, Text: c.Text, Number: int64(d.n + 1)}}, nil
}

func (d *diary) Evolve(f catalog.Fact, _ proto.Message) { d.n = f.Version }

func (*diary) Forget() {}

// A service reacts to each message of another service with a command, which its own aggregate decides. If the command
// for a message cannot be decided, the message's event must be parked, and other streams must not be affected. When an
// operator retries the event, the command must be decided again.
func TestReact_CommandsAreDecidedByTheServicesOwnAggregates(t *testing.T) {
	t.Parallel()
	w := newWorld(t)
	w.start(rooms)
	env := w.environment("toy", w.env.Stores)
	env.Config.Peers["chat"] = "http://" + net.JoinHostPort("127.0.0.1", fmt.Sprint(w.env.Config.Port))
	fails := &atomic.Bool{}
	fails.Store(true)
	toy := func(s *owner.Service) {
		for _, command := range w.env.Catalog.CommandsOf("toy") {
			s.HandleCommands(command.Kind(), func(string) owner.State { return &diary{fails: fails} })
		}
		s.React("chat-events", consume.FromStart(), func(_ envelope.Event, event proto.Message) []consume.Effect {
			m := event.(*chatv1.MessageSent)
			return []consume.Effect{{Command: &toyv1.WriteNote{UserId: m.ConversationId, Text: m.Body}}}
		})
	}
	stop := w.startIn(env, toy)
	client, url := rpc.NewClient("of this test", w.env.Telemetry.Tracer()), fmt.Sprintf("http://127.0.0.1:%d", env.Config.Port)
	log, operator := meshv1connect.NewOwnerServiceClient(client, url), meshv1connect.NewOperatorServiceClient(client, url)
	notes := func(user string) (all []string) {
		t.Helper()
		page, err := log.ReadLog(context.Background(), connect.NewRequest(&meshv1.ReadLogRequest{Stream: "diary:" + user}))
		if err != nil {
			t.Fatal(err)
		}
		for _, r := range page.Msg.GetRecords() {
			m := &toyv1.NoteWritten{}
			if err := proto.Unmarshal(r.GetBody(), m); err != nil {
				t.Fatal(err)
			}
			all = append(all, fmt.Sprint(m.GetText(), " ", m.GetNumber()))
		}
		return all
	}
	awaitNotes := func(user string, want ...string) {
		t.Helper()
		w.eventually(fmt.Sprintf("notes %q of %s", want, user), func() bool { return slices.Equal(notes(user), want) })
	}
	w.send(say("alice", "1", "7", "a"), say("alice", "2", "7", "choke"), say("alice", "3", "7", "b"), say("alice", "4", "8", "a"))
	awaitNotes("8", "a 1")
	awaitNotes("7", "a 1")
	w.eventually("it is parked", func() bool {
		answer, err := operator.ListParked(t.Context(), connect.NewRequest(&meshv1.ListParkedRequest{}))
		return err == nil && len(answer.Msg.GetParked()) == 1 && answer.Msg.GetParked()[0].GetVersion() == 2 &&
			answer.Msg.GetParked()[0].GetWaiting() == 1
	})
	stop()
	fails.Store(false)
	w.startIn(env, toy)
	done, err := operator.ResolveParked(t.Context(), connect.NewRequest(&meshv1.ResolveParkedRequest{Source: "chat",
		Stream: "conversation:7", Version: 2}))
	if err != nil || done.Msg.GetLeft() != 0 || done.Msg.GetApplied() != 2 {
		t.Fatalf("%v %v", done, err)
	}
	w.send(say("alice", "5", "7", "c"))
	awaitNotes("7", "a 1", "choke 2", "b 3", "c 4")
}
