package intake

import (
	"time"

	"github.com/google/uuid"
	"google.golang.org/protobuf/proto"

	"github.com/edumatrix/interlinked/proto/catalog"
	"github.com/edumatrix/interlinked/proto/refusal"
	"github.com/edumatrix/interlinked/services/gateway/frame"
)

// Command is a wish as a client stated it, found to be well-formed.
type Command struct {
	ID       string
	Actor    string
	Stream   string
	Declared *catalog.Command
	Expires  time.Time // zero: never
	Body     []byte
}

// Read checks what a client wishes against the declaration, and addresses it. It makes the command id where the client
// gave none. Worth is for how long the client wants it done; 0: as long as is declared. The error is a refusal.
func Read(declared *catalog.Command, actor, id string, data frame.Data, worth time.Duration) (Command, error) {
	if id == "" {
		id = uuid.NewString()
	} else if !catalog.ValidID(id) {
		return Command{}, refusal.NewField("command_id", "has to be an id: %s", catalog.IDForm)
	}
	c := Command{ID: id, Actor: actor, Declared: declared}
	m := declared.Type.New().Interface()
	if err := data.Read(m); err != nil {
		return c, err
	}
	if err := declared.Check(m); err != nil {
		return c, err
	}
	c.Stream = declared.Stream(m, catalog.Origin{Actor: actor, CommandID: id})
	if c.Stream == "" {
		return c, refusal.New(refusal.InvalidField, "%s: the command does not say what it is about", declared.Name)
	}
	if declared.Worth > 0 && (worth == 0 || worth > declared.Worth) {
		worth = declared.Worth
	}
	if worth > 0 {
		c.Expires = time.Now().Add(worth)
	}
	body, err := proto.MarshalOptions{Deterministic: true}.Marshal(m)
	if err != nil {
		return c, refusal.New(refusal.InvalidField, "%s: %v", declared.Name, err)
	}
	c.Body = body
	return c, nil
}

// size is what a command costs while it waits, roughly: itself, and what is kept for its answer.
func (c Command) size() int { return len(c.Body) + len(c.Stream) + len(c.ID) + 512 }
