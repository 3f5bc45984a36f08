//go:build integration

package faults

import (
	"context"
	"encoding/json"
	"fmt"
	"strings"
	"time"

	"github.com/IBM/sarama"
	"github.com/ThreeDotsLabs/watermill/message"
	"github.com/jackc/pgx/v5"
	"golang.org/x/sync/errgroup"
	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/reflect/protoreflect"

	"github.com/edumatrix/interlinked/proto/catalog"
	"github.com/edumatrix/interlinked/shared/bus"
	"github.com/edumatrix/interlinked/shared/envelope"
)

// owners are who has a log that the population writes to.
var owners = []string{"chat", "feed", "notification"}

// readLog reads one owner's log as it lies in the database.
func readLog(ctx context.Context, conn *pgx.Conn, c *catalog.Catalog, owner string) (Log, error) {
	l := Log{Owner: owner, Readings: map[string]int64{}}
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
			body = append(body, personal[1:]...) // the first byte says how it is sealed; fields of one message add up
		}
		m, err := c.Decode(e.Type, body)
		if err != nil {
			return e, err
		}
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
	rows, err = conn.Query(ctx, in(`SELECT stream, version FROM owner.readings`))
	if err != nil {
		return l, err
	}
	var stream string
	var version int64
	if _, err = pgx.ForEachRow(rows, []any{&stream, &version}, func() error {
		l.Readings[stream] = version
		return nil
	}); err != nil {
		return l, fmt.Errorf("readings of %s: %w", owner, err)
	}
	err = conn.QueryRow(ctx, in(`SELECT position, (SELECT count(*) FROM owner.parked) FROM owner.relay`)).
		Scan(&l.Relayed, &l.Parked)
	return l, err
}

// text is the first of the named fields that a message has and that is not empty.
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

// readTopics reads the topics of all logs, and the dead letters, from their beginning to their end.
func (m *mesh) readTopics(ctx context.Context) (records []Record, dead []Dead, err error) {
	k := m.stand.brokers(m.prefix + ".")
	c := k.SaramaConfig()
	c.Consumer.MaxWaitTime = 50 * time.Millisecond
	client, err := sarama.NewClient(k.Brokers, c)
	if err != nil {
		return nil, nil, err
	}
	defer func() { _ = client.Close() }()
	type part struct {
		owner, topic string
		number       int32
		found        []*sarama.ConsumerMessage
	}
	var parts []*part
	for _, t := range m.catalog.Topics("") {
		letters := strings.HasSuffix(t.Name, ".dead-letter")
		if _, logged := m.logged(t.Name); !logged && !letters {
			continue
		}
		for n := range t.Partitions {
			parts = append(parts, &part{owner: t.Owner, topic: t.Name, number: n})
		}
	}
	var g errgroup.Group
	g.SetLimit(8)
	for _, p := range parts {
		g.Go(func() (err error) {
			p.found, err = readPartition(ctx, client, k.Topic(p.topic), p.number)
			return err
		})
	}
	if err := g.Wait(); err != nil {
		return nil, nil, err
	}
	for _, p := range parts {
		for _, r := range p.found {
			carried := asMessage(r)
			if strings.HasSuffix(p.topic, ".dead-letter") {
				dead = append(dead, Dead{Topic: p.topic, Original: carried.Metadata.Get(bus.DeadLetterTopic),
					Error: carried.Metadata.Get(bus.DeadLetterError), Payload: string(r.Value)})
				continue
			}
			e, err := envelope.ReadEvent(carried)
			if err != nil {
				continue // poison
			}
			records = append(records, Record{Owner: p.owner, Topic: p.topic, Partition: p.number, Offset: r.Offset,
				Position: e.Position, Before: e.Before, Stream: e.Stream, Version: e.Version, Type: e.Type})
		}
	}
	return records, dead, nil
}

// asMessage gives a record the form in which envelope reads it.
func asMessage(r *sarama.ConsumerMessage) *message.Message {
	m := message.NewMessage("", r.Value)
	for _, h := range r.Headers {
		m.Metadata.Set(string(h.Key), string(h.Value))
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

func readPartition(ctx context.Context, client sarama.Client, topic string, partition int32) (
	found []*sarama.ConsumerMessage, err error) {
	end, err := client.GetOffset(topic, partition, sarama.OffsetNewest)
	if err != nil {
		return nil, err
	}
	begin, err := client.GetOffset(topic, partition, sarama.OffsetOldest)
	if err != nil || begin == end {
		return nil, err
	}
	consumer, err := sarama.NewConsumerFromClient(client)
	if err != nil {
		return nil, err
	}
	reading, err := consumer.ConsumePartition(topic, partition, begin)
	if err != nil {
		return nil, err
	}
	defer reading.AsyncClose()
	for {
		select {
		case r := <-reading.Messages():
			found = append(found, r)
			if r.Offset >= end-1 {
				return found, nil
			}
		case err := <-reading.Errors():
			return nil, err
		case <-ctx.Done():
			return nil, fmt.Errorf("read %s/%d up to %d: %w", topic, partition, end, ctx.Err())
		}
	}
}
