package eventlog

import (
	"testing"

	"github.com/edumatrix/interlinked/shared/envelope"
)

func TestCommit_TellsTheOutcomeAndKeepsIt(t *testing.T) {
	t.Parallel()
	l := fresh(t)
	c := commit(t, l, said("1", "c1"))
	want := envelope.Result{Actor: "alice", CommandID: "c1", Type: "chat.send_message", Source: "chat",
		Stream: "conversation:1", Kind: envelope.Committed, Version: 1, Position: 1}
	if len(c.Results) != 1 || c.Results[0] != want || c.Version != 1 || c.Position != 1 {
		t.Fatalf("%+v", c)
	}
	got, found, err := l.Outcome(t.Context(), "alice", "c1")
	if err != nil || !found || got != want {
		t.Fatalf("%+v %v %v", got, found, err)
	}
	if _, found, err := l.Outcome(t.Context(), "bob", "c1"); found || err != nil {
		t.Fatalf("%v %v", found, err)
	}
}
