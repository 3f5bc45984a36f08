package intake

import (
	"time"

	"github.com/google/uuid"
	"google.golang.org/protobuf/proto"

	"github.com/edumatrix/interlinked/proto/catalog"
	"github.com/edumatrix/interlinked/proto/refusal"
	"github.com/edumatrix/interlinked/services/gateway/frame"
)

// Command is a well-formed command of a client.
type Command struct {
	ID       string
	Actor    string
	Stream   string
	Declared *catalog.Command
	Expires  time.Time // zero if it never expires
	Body     []byte
}

// Read decodes and checks the data of a command, and determines its stream. It generates a command id if the client has
// not sent one. The command expires after the duration maxWait, or after its declared time if that is shorter. If
// maxWait is 0, only the declared time applies. The error is a refusal.
func Read(declared *catalog.Command, actor, id string, data frame.Data, maxWait time.Duration) (Command, error) {
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
		return c, refusal.New(refusal.InvalidField, "%s: the command does not name its stream", declared.Name)
	}
	if declared.ExpiresAfter > 0 && (maxWait == 0 || maxWait > declared.ExpiresAfter) {
		maxWait = declared.ExpiresAfter
	}
	if maxWait > 0 {
		c.Expires = time.Now().Add(maxWait)
	}
	body, err := proto.MarshalOptions{Deterministic: true}.Marshal(m)
	if err != nil {
		return c, refusal.New(refusal.InvalidField, "%s: %v", declared.Name, err)
	}
	c.Body = body
	return c, nil
}

// size returns an estimate of the memory that a waiting command and its answer take, in bytes.
func (c Command) size() int { return len(c.Body) + len(c.Stream) + len(c.ID) + 512 }
