package consume

import (
	"context"
	"errors"
	"fmt"
	"strconv"
	"time"

	"github.com/google/uuid"
	"google.golang.org/protobuf/proto"

	"github.com/edumatrix/interlinked/proto/catalog"
	"github.com/edumatrix/interlinked/proto/refusal"
	"github.com/edumatrix/interlinked/shared/envelope"
	"github.com/edumatrix/interlinked/shared/eventlog"
)

// Command is a command that the service's reaction returns for one of the service's own streams.
type Command struct {
	// ID is derived from the event, the reaction and the index of the effect, so that an event that is delivered again
	// leads to the same command.
	ID          string
	Actor       string
	Correlation string
	TraceParent string
	Message     proto.Message // of a declared command, possibly one that clients may not send
}

// Commit decides commands one after another, each on the state of its stream, and commits their outcomes together with
// a write. In the log, the events of the write follow the events of the commands. A command counts as done if it has an
// outcome already, such as a refusal. The error is an error of eventlog.Log.Commit for the write, or a *CommandError.
type Commit func(ctx context.Context, commands []Command, w eventlog.Write) (eventlog.Committed, error)

// CommandError reports that a command could not be decided. Nothing of its write was committed.
type CommandError struct {
	Index int // index of the command in the slice that Commit got
	Err   error
}

func (e *CommandError) Error() string { return fmt.Sprintf("command %d: %v", e.Index, e.Err) }

func (e *CommandError) Unwrap() error { return e.Err }

// commandNames is the namespace of the ids of reactions' commands.
var commandNames = uuid.MustParse("5d6a2a0e-93c5-5f5b-9f0b-6d4b0a5e2c31")

// commandID returns the id of the command of an effect. The topic stands for the reaction, because a service has one
// reaction to each topic.
func (c *Consumer) commandID(e envelope.Event, index int) string {
	return uuid.NewSHA1(commandNames, []byte(e.ID+"\x00"+c.o.Source+"/"+c.o.Topic+"\x00"+strconv.Itoa(index))).String()
}

// check sets the actor of an effect that has none, and the stream of a command. It returns an error for an invalid
// effect.
func (c *Consumer) check(e envelope.Event, index int, f *Effect) error {
	if f.Actor == "" {
		f.Actor = e.Actor
	}
	switch {
	case f.Command == nil:
		return nil
	case len(f.Events) > 0 || f.Stream != "":
		return errors.New("an effect is either events for a stream, or a command")
	}
	declared, ok := c.o.Catalog.CommandOf(f.Command)
	if !ok {
		return fmt.Errorf("%s is not a command", f.Command.ProtoReflect().Descriptor().FullName())
	}
	f.Stream = declared.Stream(f.Command, catalog.Origin{Actor: f.Actor, CommandID: c.commandID(e, index)})
	return nil
}

// commitWithoutCommands returns the Commit of a service that does not decide commands.
func commitWithoutCommands(log *eventlog.Log) Commit {
	return func(ctx context.Context, commands []Command, w eventlog.Write) (eventlog.Committed, error) {
		if len(commands) > 0 {
			return eventlog.Committed{}, &CommandError{Err: errors.New("this service does not decide commands")}
		}
		return log.Commit(ctx, w)
	}
}

// notYetPatience is how long a partition waits while a command lacks a fact (refusal.NotYetError). Clients' commands
// wait equally long.
const notYetPatience = 2 * time.Second

// notYet reports whether an error means that a command cannot be decided because a fact has not arrived yet.
func notYet(err error) bool {
	_, is := refusal.IsNotYet(err)
	return is
}
