package eventlog

import (
	"context"
	"errors"
	"fmt"
	"sync"
	"testing"

	"google.golang.org/protobuf/proto"

	chatv1 "github.com/edumatrix/interlinked/proto/gen/edumatrix/chat/v1"

	"github.com/edumatrix/interlinked/proto/catalog"
)

func TestCommitDeciding_NeverLoses(t *testing.T) {
	t.Parallel()
	url := database(t)
	instances := []*Log{running(t, url), running(t, url)}
	commit(t, instances[0], Write{Stream: "conversation:1", Commands: []Decided{{Actor: "alice", CommandID: "start",
		Type: "chat.start_group", Events: []proto.Message{started("1", "alice")}}}})
	const writers, each = 8, 10
	var all sync.WaitGroup
	for w := range writers {
		all.Go(func() {
			for i := range each {
				_, err := instances[w%2].CommitDeciding(t.Context(), Selection{Stream: "conversation:1", Subjects: []string{"m"}},
					func(_ context.Context, loaded Loaded) (Write, error) {
						// The test derives the next message from the loaded version, so no event may be missing.
						if loaded.Events[0].Type != "chat.conversation_started" || catalog.Version(len(loaded.Events)) != loaded.Version {
							return Write{}, fmt.Errorf("loaded %d events at version %d", len(loaded.Events), loaded.Version)
						}
						return Write{Commands: []Decided{{Actor: "alice", CommandID: fmt.Sprint(w, "-", i), Type: "chat.send_message",
							Events: []proto.Message{sent("1", "m", fmt.Sprint(loaded.Version))}}}}, nil
					})
				if err != nil {
					t.Error(err)
				}
			}
		})
	}
	all.Wait()
	page, err := instances[0].Read(t.Context(), Query{Stream: "conversation:1"})
	if err != nil || len(page.Events) != 1+writers*each {
		t.Fatalf("%d events, %v", len(page.Events), err)
	}
	for _, e := range page.Events[1:] {
		var m chatv1.MessageSent
		if err := proto.Unmarshal(e.Body, &m); err != nil || m.Body != fmt.Sprint(e.Version-1) {
			t.Fatalf("version %d was decided at %s, %v", e.Version, m.Body, err)
		}
	}
}

func TestCommitDeciding_AFailureAffectsOnlyItsWrite(t *testing.T) {
	t.Parallel()
	l := fresh(t)
	mine := errors.New("mine")
	var all sync.WaitGroup
	for i := range 10 {
		all.Go(func() {
			if _, err := l.Commit(t.Context(), said("1", fmt.Sprint(i))); err != nil {
				t.Error(err)
			}
		})
	}
	_, err := l.CommitDeciding(t.Context(), Selection{Stream: "conversation:2"},
		func(context.Context, Loaded) (Write, error) { return Write{}, mine })
	if !errors.Is(err, mine) {
		t.Errorf("got %v", err)
	}
	_, err = l.CommitDeciding(t.Context(), Selection{Stream: "conversation:2"},
		func(context.Context, Loaded) (Write, error) { panic("deciding") })
	failsAs[*WriteError](t, err)
	bad := func(context.Context, Loaded) (Write, error) {
		w := said("2", "bad")
		w.Commands[0].Correlation = "\x00"
		return w, nil
	}
	for range 2 {
		_, err = l.CommitDeciding(t.Context(), Selection{Stream: "conversation:2"}, bad)
		failsAs[*WriteError](t, err)
	}
	all.Wait()
}
