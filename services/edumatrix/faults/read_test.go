//go:build integration

package faults

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"strings"

	"github.com/ThreeDotsLabs/watermill/message"
	"github.com/jackc/pgx/v5"
	"github.com/twmb/franz-go/pkg/kadm"
	"github.com/twmb/franz-go/pkg/kgo"
	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/reflect/protoreflect"

	"github.com/edumatrix/interlinked/proto/catalog"
	"github.com/edumatrix/interlinked/shared/backend"
	"github.com/edumatrix/interlinked/shared/bus"
	"github.com/edumatrix/interlinked/shared/envelope"
)

// owners are the services with a log.
var owners = []string{"chat", "feed", "notification"}

// readLog reads an owner's log from the database.
func readLog(ctx context.Context, conn *pgx.Conn, c *catalog.Catalog, owner string) (Log, error) {
	l := Log{Owner: owner, Consumed: map[int32]int64{}}
	in := func(statement string) string { return strings.ReplaceAll(statement, "owner.", owner+".") }
	rows, err := conn.Query(ctx, in(`SELECT position, stream, version, id::text, type, topic, actor, cause, time, redacted,
		coalesce(opens, '[]'), coalesce(closes, '[]'), body, personal FROM owner.events ORDER BY position`))
	if err != nil {
		return l, err
	}
	l.Events, err = pgx.CollectRows(rows, func(row pgx.CollectableRow) (e Event, err error) {
		var opens, closes, body, personal []byte
		if err := row.Scan(&e.Position, &e.Stream, &e.Version, &e.ID, &e.Type, &e.Topic, &e.Actor, &e.Cause, &e.Time,
			&e.Redacted, &opens, &closes, &body, &personal); err != nil {
			return e, err
		}
		if err := json.Unmarshal(opens, &e.Opens); err != nil {
			return e, err
		}
		if err := json.Unmarshal(closes, &e.Closes); err != nil {
			return e, err
		}
		if len(personal) > 0 {
			body = append(body, personal[1:]...) // personal[0] is the format; Protobuf merges concatenated messages
		}
		m, err := c.Decode(e.Type, body)
		if err != nil {
			return e, err
		}
		e.Message = m
		e.Text, e.About, e.AboutAt = text(m, "body", "title"), text(m, "about_stream"), number(m, "about_version")
		return e, nil
	})
	if err != nil {
		return l, fmt.Errorf("events of %s: %w", owner, err)
	}
	rows, err = conn.Query(ctx, in(`SELECT actor, command_id, type, stream, kind, code, version, position
		FROM owner.outcomes`))
	if err == nil {
		l.Outcomes, err = pgx.CollectRows(rows, pgx.RowToStructByPos[Outcome])
	}
	if err != nil {
		return l, fmt.Errorf("outcomes of %s: %w", owner, err)
	}
	rows, err = conn.Query(ctx, in(`SELECT room, member, opened_version, coalesce(closed_version, 0) FROM owner.memberships
		ORDER BY room, member, opened_position`))
	if err == nil {
		l.Memberships, err = pgx.CollectRows(rows, pgx.RowToStructByPos[Membership])
	}
	if err != nil {
		return l, fmt.Errorf("memberships of %s: %w", owner, err)
	}
	rows, err = conn.Query(ctx, in(`SELECT partition, position FROM owner.checkpoints`))
	if err != nil {
		return l, err
	}
	var partition int32
	var position int64
	if _, err = pgx.ForEachRow(rows, []any{&partition, &position}, func() error {
		l.Consumed[partition] = position
		return nil
	}); err != nil {
		return l, fmt.Errorf("checkpoints of %s: %w", owner, err)
	}
	err = conn.QueryRow(ctx, in(`SELECT position, (SELECT count(*) FROM owner.parked_streams) FROM owner.relay`)).
		Scan(&l.Relayed, &l.Parked)
	return l, err
}

// text returns the value of the first named field that the message has and that is not empty.
func text(m proto.Message, names ...protoreflect.Name) string {
	r := m.ProtoReflect()
	for _, name := range names {
		if f := r.Descriptor().Fields().ByName(name); f != nil && f.Kind() == protoreflect.StringKind {
			if s := r.Get(f).String(); s != "" {
				return s
			}
		}
	}
	return ""
}

func number(m proto.Message, name protoreflect.Name) int64 {
	r := m.ProtoReflect()
	if f := r.Descriptor().Fields().ByName(name); f != nil && f.Kind() == protoreflect.Int64Kind {
		return r.Get(f).Int()
	}
	return 0
}

// readTopics reads the topics of all logs, and the dead letters, from the first record to the last.
func (m *mesh) readTopics(ctx context.Context) (records []Record, dead []Dead, err error) {
	k := m.stand.brokers(m.prefix + ".")
	owners := map[string]string{} // topic name on the broker → owner
	var topics []string
	for _, t := range m.catalog.Topics("") {
		letters := strings.HasSuffix(t.Name, ".dead-letter")
		if _, logged := m.logged(t.Name); logged || letters {
			owners[k.Topic(t.Name)] = t.Owner
			topics = append(topics, k.Topic(t.Name))
		}
	}
	found, err := readAll(ctx, k, topics)
	if err != nil {
		return nil, nil, err
	}
	for _, r := range found {
		topic, carried := strings.TrimPrefix(r.Topic, k.TopicPrefix), asMessage(r)
		if strings.HasSuffix(topic, ".dead-letter") {
			dead = append(dead, Dead{Topic: topic, Original: carried.Metadata.Get(bus.DeadLetterTopic),
				Error: carried.Metadata.Get(bus.DeadLetterError), Payload: string(r.Value)})
			continue
		}
		e, err := envelope.ReadEvent(carried)
		if err != nil {
			continue // an unreadable payload, published by poison
		}
		records = append(records, Record{Owner: owners[r.Topic], Topic: topic, Partition: r.Partition, Offset: r.Offset,
			Position: int64(e.Position), Before: int64(e.Before), Stream: e.Stream, Version: int64(e.Version), Type: e.Type})
	}
	return records, dead, nil
}

// asMessage converts a record to the message that package envelope reads.
func asMessage(r *kgo.Record) *message.Message {
	m := message.NewMessage("", r.Value)
	for _, h := range r.Headers {
		m.Metadata.Set(h.Key, string(h.Value))
	}
	return m
}

func (m *mesh) logged(topic string) (owner string, ok bool) {
	for _, owner := range owners {
		for _, t := range m.catalog.LoggedTopics(owner) {
			if t.Name == topic {
				return owner, true
			}
		}
	}
	return "", false
}

// readAll reads all records that the topics contain now, in the order of each partition.
func readAll(ctx context.Context, k backend.Kafka, topics []string) (found []*kgo.Record, err error) {
	asking, err := impatient(k)
	if err != nil {
		return nil, err
	}
	defer asking.Close()
	admin := kadm.NewClient(asking)
	ends, err := admin.ListEndOffsets(ctx, topics...)
	if err = errors.Join(err, ends.Error()); err != nil {
		return nil, err
	}
	begins, err := admin.ListStartOffsets(ctx, topics...)
	if err = errors.Join(err, begins.Error()); err != nil {
		return nil, err
	}
	from, left := map[string]map[int32]kgo.Offset{}, 0
	begins.Each(func(o kadm.ListedOffset) {
		if end, _ := ends.Lookup(o.Topic, o.Partition); o.Offset < end.Offset {
			if from[o.Topic] == nil {
				from[o.Topic] = map[int32]kgo.Offset{}
			}
			from[o.Topic][o.Partition] = kgo.NewOffset().At(o.Offset)
			left++
		}
	})
	if left == 0 {
		return nil, nil
	}
	reading, err := impatient(k, kgo.ConsumePartitions(from))
	if err != nil {
		return nil, err
	}
	defer reading.Close()
	for left > 0 {
		fetches := reading.PollFetches(ctx)
		if err := ctx.Err(); err != nil {
			return nil, fmt.Errorf("%d partitions were not read to the end: %w", left, err)
		}
		fetches.EachRecord(func(r *kgo.Record) {
			end, _ := ends.Lookup(r.Topic, r.Partition)
			if r.Offset < end.Offset {
				found = append(found, r)
			}
			if r.Offset == end.Offset-1 {
				left--
			}
		})
	}
	return found, nil
}
