//go:build integration

package faults

import (
	"context"
	"fmt"
	"strings"
	"time"

	"github.com/jackc/pgx/v5"
)

// quiet sends a last message to each conversation (see mark). It then waits, for at most 45 s, until all events are
// published, applied and delivered. It returns the contents of the stores, including the rows that a rebuild changes.
func (m *mesh) quiet(p *population, poisoned []Poison) (*Stored, error) {
	ctx, cancel := context.WithTimeout(context.Background(), 2*time.Minute)
	defer cancel()
	conn, err := pgx.Connect(ctx, m.stand.database(m.database, m.stand.postgres.Addr()))
	if err != nil {
		return nil, err
	}
	defer conn.Close(ctx)
	stored := &Stored{Skew: m.skew}
	if err := m.mark(ctx, conn, p); err != nil {
		return stored, err
	}
	var late []error // only logged, because Check reports the missing events in more detail
	waits, stop := context.WithTimeout(ctx, 45*time.Second)
	defer stop()
	late = append(late, m.applied(waits, conn, "chat"), poll(waits, "checkpoints", func() (string, error) {
		behind, err := column(ctx, conn, `SELECT partition::text FROM notification.checkpoints
			WHERE position < (SELECT coalesce(max(position), 0) FROM chat.events)`)
		return strings.Join(behind, " "), err
	}), p.seenAll(waits, ctx, conn, m), p.seenPosts(waits, ctx, conn, m))
	// Wait for the relays last. While notification consumes the events of chat, it adds events to its own log, which
	// its relay must publish too.
	for _, owner := range owners {
		late = append(late, poll(waits, "relay of "+owner, func() (string, error) {
			behind, err := column(ctx, conn, strings.ReplaceAll(`SELECT position::text FROM owner.relay
				WHERE position < (SELECT coalesce(max(position), 0) FROM owner.events)`, "owner", owner))
			return strings.Join(behind, ""), err
		}))
	}
	for _, err := range late {
		if err != nil {
			m.t.Log(err)
		}
	}
	for _, owner := range owners {
		l, err := readLog(ctx, conn, m.catalog, owner)
		if err != nil {
			return stored, err
		}
		stored.Logs = append(stored.Logs, l)
	}
	// If a fault has killed a consumer, the consumer reads the poison only after its consumer group has assigned the
	// partitions to it again. So read the topics repeatedly, at most 16 times, until the dead letters contain all
	// poison that must be there.
	for tries := 0; ; tries++ {
		stored.Records, stored.Dead, err = m.readTopics(ctx)
		if (err == nil && len(stored.unburied(poisoned)) == 0) || tries >= 15 || ctx.Err() != nil {
			break
		}
		sleep(ctx, time.Second)
	}
	if err != nil {
		return stored, err
	}
	stored.Records, stored.Torn = m.withKept(stored.Records), m.torn
	stored.Differences, err = m.rebuild(ctx, conn, "chat")
	return stored, err
}

// mark sends a message to every conversation that has members, so that every member has at least one event that was
// certainly written during their membership.
func (m *mesh) mark(ctx context.Context, conn *pgx.Conn, p *population) error {
	rows, err := conn.Query(ctx, `SELECT room, min(member) FROM chat.memberships
		WHERE closed_position IS NULL GROUP BY room`)
	if err != nil {
		return err
	}
	var room, member string
	marks := map[string]string{}
	if _, err := pgx.ForEachRow(rows, []any{&room, &member}, func() error {
		marks[room] = member
		return nil
	}); err != nil {
		return err
	}
	n := 0
	for room, member := range marks {
		for _, d := range p.devices {
			if d.user == member {
				n++
				w := &worker{device: d, random: p.random(50_000 + n)}
				p.sending.Go(func() { w.say(conversationOf(room)) })
				break
			}
		}
	}
	p.settle(60 * time.Second)
	return nil
}

// seenAll waits until every device is connected, and its session has received the newest event of every conversation
// that its user is in.
func (p *population) seenAll(waits, ctx context.Context, conn *pgx.Conn, m *mesh) error {
	l, err := readLog(ctx, conn, m.catalog, "chat")
	if err != nil {
		return err
	}
	members, heads := l.intervals(), l.heads()
	return poll(waits, "clients", func() (string, error) {
		for _, d := range p.devices {
			c := d.session()
			if c == nil {
				return d.name + " is not connected", nil
			}
			for stream, head := range heads {
				if within(members[stream][d.user], head) && p.h.Saw(c.session, stream) < head {
					return fmt.Sprintf("%s has seen %s up to %d of %d", d.name, stream, p.h.Saw(c.session, stream), head), nil
				}
			}
		}
		return "", nil
	})
}

// seenPosts waits until every device is connected, and its session has received all posts that were written by authors
// to whom it had subscribed.
func (p *population) seenPosts(waits, ctx context.Context, conn *pgx.Conn, m *mesh) error {
	l, err := readLog(ctx, conn, m.catalog, "feed")
	if err != nil {
		return err
	}
	j := &judge{s: &Stored{Skew: m.skew}}
	return poll(waits, "posts", func() (string, error) {
		for _, d := range p.devices {
			c := d.session()
			if c == nil {
				return d.name + " is not connected", nil
			}
			for _, e := range l.Events {
				if j.due(c.session, e) && p.h.Saw(c.session, e.Stream) < e.Version {
					return fmt.Sprintf("%s has not seen %s of %s", d.name, e.Stream, e.Actor), nil
				}
			}
		}
		return "", nil
	})
}

// heads returns the newest version of each stream.
func (l *Log) heads() map[string]int64 {
	heads := map[string]int64{}
	for _, e := range l.Events {
		heads[e.Stream] = max(heads[e.Stream], e.Version)
	}
	return heads
}
