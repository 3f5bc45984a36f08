package eventlog

import (
	"encoding/json"
	"fmt"
	"slices"
	"time"

	"github.com/google/uuid"
	"github.com/jackc/pgx/v5"

	"github.com/edumatrix/interlinked/proto/catalog"
	routingv1 "github.com/edumatrix/interlinked/proto/gen/edumatrix/routing/v1"
	"github.com/edumatrix/interlinked/shared/envelope"
	"github.com/edumatrix/interlinked/shared/eventlog/internal/pgerror"
)

// Logged is an event as the log contains it.
type Logged struct {
	envelope.Event
	Topic string
	plain []byte // the body without its personal fields
}

// scan reads an event from the last columns of a row, which must be those of one of the select lists in statements.go
// (the constants columns and impersonal). It stores the preceding columns in variables of the caller; the parameter
// into contains pointers to these variables.
func (l *Log) scan(found pgx.Rows, into ...any) (Logged, error) {
	e := Logged{Event: envelope.Event{Source: l.o.Owner}}
	var (
		id            uuid.UUID
		commandType   string
		at            time.Time
		class         int16
		opens, closes []byte
		personal      []byte
		expires       *time.Time
	)
	err := found.Scan(append(into, &e.Position, &e.Stream, &e.Version, &id, &e.Type, &e.Topic, &e.Actor, &e.Cause,
		&commandType, &e.Correlation, &at, &class, &e.Rooms, &opens, &closes, &e.Subject, &e.Answers, &e.TraceParent,
		&e.plain, &personal, &e.Redacted, &expires)...)
	if err != nil {
		return e, fmt.Errorf("read an event: %w", err)
	}
	e.ID, e.Time, e.Class = id.String(), at.UTC(), routingv1.Class(class)
	if key := l.o.Catalog.KeyOf(e.Stream); key != e.Stream {
		e.Key = key
	}
	if len(e.Rooms) == 0 {
		e.Rooms = nil
	}
	if e.Opens, err = decodeMemberships(opens); err != nil {
		return e, pgerror.Data(fmt.Errorf("event %d: %w", e.Position, err))
	}
	if e.Closes, err = decodeMemberships(closes); err != nil {
		return e, pgerror.Data(fmt.Errorf("event %d: %w", e.Position, err))
	}
	if e.Answers {
		e.CommandType = commandType
	}
	if expires != nil {
		e.Expires = expires.UTC()
	}
	e.Body = e.plain
	if len(personal) > 0 {
		if personal[0] != unencrypted {
			return e, pgerror.Data(fmt.Errorf("event %d: its personal fields have an unknown encryption (%d)", e.Position,
				personal[0]))
		}
		// Two encoded Protobuf messages, concatenated, decode as one message with the fields of both.
		e.Body = slices.Concat(e.plain, personal[1:])
	}
	return e, nil
}

func (l *Log) scanAll(found pgx.Rows) (all []Logged, err error) {
	defer found.Close()
	for found.Next() {
		e, err := l.scan(found)
		if err != nil {
			return nil, err
		}
		all = append(all, e)
	}
	return all, found.Err()
}

func decodeMemberships(encoded []byte) (all []catalog.Membership, err error) {
	if encoded == nil {
		return nil, nil
	}
	if err := json.Unmarshal(encoded, &all); err != nil {
		return nil, fmt.Errorf("rooms that the event opens or closes: %w", err)
	}
	return all, nil
}
