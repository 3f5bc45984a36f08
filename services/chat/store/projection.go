package store

import (
	"context"
	"fmt"
	"maps"
	"slices"
	"strings"
	"time"

	"github.com/jackc/pgx/v5"
	"google.golang.org/protobuf/proto"

	"github.com/edumatrix/interlinked/proto/catalog"
	chatv1 "github.com/edumatrix/interlinked/proto/gen/edumatrix/chat/v1"
	"github.com/edumatrix/interlinked/shared/envelope"
	"github.com/edumatrix/interlinked/shared/eventlog"
)

// Conversations is the projection. Its statements do not name the schema: a rebuild runs them with another search_path.
type Conversations struct{ catalog *catalog.Catalog }

// NewConversations returns the projection.
func NewConversations(c *catalog.Catalog) *Conversations { return &Conversations{c} }

// ProjectionName is the key under which the position of Conversations is stored.
const ProjectionName = "conversations"

// Name returns ProjectionName.
func (*Conversations) Name() string { return ProjectionName }

// A user's conversations are listed in the order of their newest events, by an index over one row for each member. To
// move these rows with every message would cost one write per member and message, so they contain a period only: the
// position without its lowest bits (8 of a small conversation, 20 of a large one). Small conversations move at most once
// in 256 positions of the log, large ones, which have up to 2,000 rows to move, at most once in a million. A list sorts
// within a period by the exact position, so a page reads all of a user's conversations of its first and last period: of
// small ones at most 256 each.

// maxSmall is the number of members above which a conversation is large. It is also how many members a list shows.
const maxSmall = 64

// Each statement writes what a whole batch of events leads to. They run in this order.
const (
	// A batch is written by index lookups, whatever the statistics of quickly grown tables suggest.
	sqlByIndex = `SELECT set_config('enable_seqscan', 'off', true), set_config('enable_hashjoin', 'off', true),
		set_config('enable_mergejoin', 'off', true)`
	sqlStart = `INSERT INTO conversations (conversation_id, kind, title, history_from_joining, version, position, changed_at)
		SELECT id, kind, title, from_joining, 0, 0, at
		FROM unnest($1::text[], $2::integer[], $3::text[], $4::boolean[], $5::timestamptz[])
		AS n (id, kind, title, from_joining, at)`
	sqlLeave = `DELETE FROM conversation_members m USING unnest($1::text[], $2::text[]) AS n (id, member)
		WHERE m.conversation_id = n.id AND m.member = n.member`
	sqlJoin = `INSERT INTO conversation_members (member, conversation_id, joined_version, joined_index, period)
		SELECT member, id, version, index, position >> 8
		FROM unnest($1::text[], $2::text[], $3::bigint[], $4::integer[], $5::bigint[])
		AS n (id, member, version, index, position) ON CONFLICT DO NOTHING`
	// The rows of members move when they come into another period, or when members of the conversation changed.
	sqlMove = `WITH moved AS (
			UPDATE conversations c SET version = n.version, position = n.position, changed_at = n.at,
				member_count = CASE WHEN n.changed THEN n.members ELSE c.member_count END,
				large = CASE WHEN n.changed THEN n.members > 64 ELSE c.large END
			FROM (
				SELECT u.*, o.was, CASE WHEN u.changed THEN (
					SELECT count(*) FROM conversation_members m WHERE m.conversation_id = u.id) END AS members
				FROM unnest($1::text[], $2::bigint[], $3::bigint[], $4::timestamptz[], $5::boolean[])
					AS u (id, version, position, at, changed),
				LATERAL (SELECT position AS was FROM conversations o WHERE o.conversation_id = u.id LIMIT 1) o) n
			WHERE c.conversation_id = n.id
			RETURNING c.conversation_id AS id, c.large, n.changed, n.was >> (CASE WHEN c.large THEN 20 ELSE 8 END) AS was,
				c.position >> (CASE WHEN c.large THEN 20 ELSE 8 END) AS period)
		UPDATE conversation_members m SET large = moved.large, period = moved.period FROM moved
		WHERE m.conversation_id = moved.id AND (moved.changed OR moved.period <> moved.was)
			AND (m.large <> moved.large OR m.period <> moved.period)`
	sqlSend = `INSERT INTO messages (conversation_id, version, message_id, author, body, sent_at)
		SELECT * FROM unnest($1::text[], $2::bigint[], $3::text[], $4::text[], $5::text[], $6::timestamptz[])`
	sqlEdit = `INSERT INTO edits (conversation_id, message_id, version, body, edited_at)
		SELECT * FROM unnest($1::text[], $2::text[], $3::bigint[], $4::text[], $5::timestamptz[])`
	sqlDelete = `WITH gone AS (SELECT * FROM unnest($1::text[], $2::text[], $3::bigint[]) AS n (id, message, version)),
		forgotten AS (
			DELETE FROM edits e USING gone
			WHERE e.conversation_id = gone.id AND e.message_id = gone.message AND e.version < gone.version)
		UPDATE messages m SET body = '', deleted = true FROM gone
		WHERE m.conversation_id = gone.id AND m.message_id = gone.message AND m.version < gone.version`
)

// Apply writes the effects of events, in a few statements for all of them.
func (p *Conversations) Apply(ctx context.Context, tx eventlog.Tx, events []envelope.Event) error {
	c := changes{touched: map[string]*touched{}, members: map[member]*turn{}}
	for _, e := range events {
		id, ok := strings.CutPrefix(e.Stream, "conversation:")
		if !ok {
			continue
		}
		m, err := p.catalog.Decode(e.Type, e.Body)
		if err != nil {
			return fmt.Errorf("%s at version %d: %w", e.Stream, e.Version, err)
		}
		c.add(id, e, m)
	}
	if len(c.touched) == 0 {
		return nil
	}
	if err := tx.SendBatch(ctx, c.batch()).Close(); err != nil {
		return fmt.Errorf("project conversations: %w", err)
	}
	return nil
}

// changes holds the effects of a batch of events, as columns of the statements.
type changes struct {
	touched map[string]*touched
	members map[member]*turn

	started struct {
		id, title   []string
		kind        []int32
		fromJoining []bool
		at          []time.Time
	}
	sent struct {
		id, message, author, body []string
		version                   []int64
		at                        []time.Time
	}
	edited struct {
		id, message, body []string
		version           []int64
		at                []time.Time
	}
	deleted struct {
		id, message []string
		version     []int64
	}
}

// touched is a conversation with events in the batch.
type touched struct {
	newest  envelope.Event
	members bool // they changed
}

type member struct{ conversation, user string }

// turn is what a batch changes of a member.
type turn struct {
	left    bool // at least once
	in      bool // in the end
	version int64
	index   int32
}

func (c *changes) add(id string, e envelope.Event, event proto.Message) {
	t := c.touched[id]
	if t == nil {
		t = &touched{}
		c.touched[id] = t
	}
	t.newest = e
	switch m := event.(type) {
	case *chatv1.ConversationStarted:
		s := &c.started
		s.id, s.title, s.kind = append(s.id, id), append(s.title, storable(m.Title)), append(s.kind, int32(m.Kind))
		s.fromJoining, s.at = append(s.fromJoining, m.HistoryFromJoining), append(s.at, e.Time)
		for i, user := range m.UserIds {
			c.join(id, user, e.Version, i)
		}
	case *chatv1.MemberAdded:
		c.join(id, m.UserId, e.Version, 0)
	case *chatv1.MemberLeft:
		t.members = true
		turn := c.turn(id, m.UserId)
		turn.left, turn.in = true, false
	case *chatv1.MessageSent:
		s := &c.sent
		s.id, s.version, s.message = append(s.id, id), append(s.version, e.Version), append(s.message, m.MessageId)
		s.author, s.body, s.at = append(s.author, e.Actor), append(s.body, storable(m.Body)), append(s.at, e.Time)
	case *chatv1.MessageEdited:
		s := &c.edited
		s.id, s.version, s.message = append(s.id, id), append(s.version, e.Version), append(s.message, m.MessageId)
		s.body, s.at = append(s.body, storable(m.Body)), append(s.at, e.Time)
	case *chatv1.MessageDeleted:
		s := &c.deleted
		s.id, s.version, s.message = append(s.id, id), append(s.version, e.Version), append(s.message, m.MessageId)
	}
}

func (c *changes) turn(id, user string) *turn {
	t := c.members[member{id, user}]
	if t == nil {
		t = &turn{}
		c.members[member{id, user}] = t
	}
	return t
}

func (c *changes) join(id, user string, version int64, index int) {
	c.touched[id].members = true
	if t := c.turn(id, user); !t.in {
		t.in, t.version, t.index = true, version, int32(index)
	}
}

func (c *changes) batch() *pgx.Batch {
	b := &pgx.Batch{}
	b.Queue(sqlByIndex)
	if s := &c.started; len(s.id) > 0 {
		b.Queue(sqlStart, s.id, s.kind, s.title, s.fromJoining, s.at)
	}
	c.queueMembers(b)
	c.queueMoves(b)
	if s := &c.sent; len(s.id) > 0 {
		b.Queue(sqlSend, s.id, s.version, s.message, s.author, s.body, s.at)
	}
	if s := &c.edited; len(s.id) > 0 {
		b.Queue(sqlEdit, s.id, s.message, s.version, s.body, s.at)
	}
	if s := &c.deleted; len(s.id) > 0 {
		b.Queue(sqlDelete, s.id, s.message, s.version)
	}
	return b
}

func (c *changes) queueMembers(b *pgx.Batch) {
	var left, joined struct {
		id, user          []string
		version, position []int64
		index             []int32
	}
	for m, t := range c.members {
		if t.left {
			left.id, left.user = append(left.id, m.conversation), append(left.user, m.user)
		}
		if t.in {
			joined.id, joined.user = append(joined.id, m.conversation), append(joined.user, m.user)
			joined.version, joined.index = append(joined.version, t.version), append(joined.index, t.index)
			joined.position = append(joined.position, c.touched[m.conversation].newest.Position)
		}
	}
	if len(left.id) > 0 {
		b.Queue(sqlLeave, left.id, left.user)
	}
	if len(joined.id) > 0 {
		b.Queue(sqlJoin, joined.id, joined.user, joined.version, joined.index, joined.position)
	}
}

func (c *changes) queueMoves(b *pgx.Batch) {
	var ids []string
	var versions, positions []int64
	var times []time.Time
	var members []bool
	for _, id := range slices.Sorted(maps.Keys(c.touched)) {
		t := c.touched[id]
		ids, versions, positions = append(ids, id), append(versions, t.newest.Version), append(positions, t.newest.Position)
		times, members = append(times, t.newest.Time), append(members, t.members)
	}
	b.Queue(sqlMove, ids, versions, positions, times, members)
}

// storable replaces the zero character, which Postgres cannot store. Commands with it are refused; an old event in the
// log must not stop the projection.
func storable(s string) string { return strings.ReplaceAll(s, "\x00", "\uFFFD") }
