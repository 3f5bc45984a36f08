package store

import (
	"context"
	"errors"
	"fmt"
	"math"
	"strings"
	"time"

	"github.com/jackc/pgx/v5"
	"google.golang.org/protobuf/types/known/timestamppb"

	chatv1 "github.com/edumatrix/interlinked/proto/gen/edumatrix/chat/v1"
	"github.com/edumatrix/interlinked/shared/eventlog/projection"
	"github.com/edumatrix/interlinked/shared/page"
)

// ProjectionName is the key under which the position of Conversations is stored.
const ProjectionName = "conversations"

// A user's conversations are listed in the order of their newest events, by an index over one row for each member. To
// move these rows with every message would cost one write per member and message, so they contain a period only: the
// position without its lowest bits (8 of a small conversation, 20 of a large one). Small conversations move at most once
// in 256 positions of the log, large ones, which have up to 2,000 rows to move, at most once in a million. A list sorts
// within a period by the exact position, so a page reads all of a user's conversations of its first and last period: of
// small ones at most 256 each.

// maxSmall is the number of members above which a conversation is large. It is also how many members a list shows.
const maxSmall = 64

// Each statement writes the rows of a whole batch of events.
const (
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

// conversations holds the statements of the projection.
type conversations struct{ start, leave, join, move, send, edit, remove *projection.Statement }

// Conversations declares the projection.
func Conversations() *projection.Projection {
	p := projection.Declare(ProjectionName, projection.Options{Streams: []string{"conversation"},
		Tables: []string{"conversations", "conversation_members", "messages", "edits"}})
	c := conversations{start: p.Statement(0, sqlStart), leave: p.Statement(2, sqlLeave), join: p.Statement(2, sqlJoin),
		move: p.Statement(1, sqlMove), send: p.Statement(0, sqlSend), edit: p.Statement(0, sqlEdit),
		remove: p.Statement(0, sqlDelete)}
	projection.On(p, c.started)
	projection.On(p, c.added)
	projection.On(p, c.left)
	projection.On(p, c.sent)
	projection.On(p, c.edited)
	projection.On(p, c.deleted)
	return p
}

func (c *conversations) started(b *projection.Batch, e projection.Event, m *chatv1.ConversationStarted) {
	b.Add(c.start, e.ID, int32(m.Kind), storable(m.Title), m.HistoryFromJoining, e.Time)
	c.touch(b, e, true)
	for i, user := range m.UserIds {
		c.enter(b, e, user, i)
	}
}

func (c *conversations) added(b *projection.Batch, e projection.Event, m *chatv1.MemberAdded) {
	c.touch(b, e, true)
	c.enter(b, e, m.UserId, 0)
}

func (c *conversations) left(b *projection.Batch, e projection.Event, m *chatv1.MemberLeft) {
	c.touch(b, e, true)
	b.Add(c.leave, e.ID, m.UserId)
	b.Remove(c.join, e.ID, m.UserId)
}

func (c *conversations) sent(b *projection.Batch, e projection.Event, m *chatv1.MessageSent) {
	c.touch(b, e, false)
	b.Add(c.send, e.ID, e.Version, m.MessageId, e.Actor, storable(m.Body), e.Time)
}

func (c *conversations) edited(b *projection.Batch, e projection.Event, m *chatv1.MessageEdited) {
	c.touch(b, e, false)
	b.Add(c.edit, e.ID, m.MessageId, e.Version, storable(m.Body), e.Time)
}

func (c *conversations) deleted(b *projection.Batch, e projection.Event, m *chatv1.MessageDeleted) {
	c.touch(b, e, false)
	b.Add(c.remove, e.ID, m.MessageId, e.Version)
}

// touch makes an event the newest of its conversation.
func (c *conversations) touch(b *projection.Batch, e projection.Event, membersChanged bool) {
	if row := b.Row(c.move, e.ID); row != nil {
		membersChanged = membersChanged || row[4].(bool)
	}
	b.Add(c.move, e.ID, e.Version, e.Position, e.Time, membersChanged)
}

// enter makes a user a member, unless they are one after the earlier events of the batch.
func (c *conversations) enter(b *projection.Batch, e projection.Event, user string, index int) {
	if b.Row(c.join, e.ID, user) == nil {
		b.Add(c.join, e.ID, user, e.Version, int32(index), e.Position)
	}
}

// storable replaces the zero character, which Postgres cannot store. Commands with it are refused; an old event in the
// log must not stop the projection.
func storable(s string) string { return strings.ReplaceAll(s, "\x00", "\uFFFD") }

// The rows of a user have the order of their periods; within a period the positions of the conversations decide.
const sqlConversations = `WITH page AS (
		(SELECT c.* FROM chat.conversation_members m, LATERAL (
			SELECT * FROM chat.conversations c WHERE c.conversation_id = m.conversation_id LIMIT 1) c
		WHERE m.member = $1 AND NOT m.large AND m.period <= $2::bigint >> 8 AND c.position < $2
		ORDER BY m.period DESC, c.position DESC LIMIT $3)
		UNION ALL
		(SELECT c.* FROM chat.conversation_members m, LATERAL (
			SELECT * FROM chat.conversations c WHERE c.conversation_id = m.conversation_id LIMIT 1) c
		WHERE m.member = $1 AND m.large AND m.period <= $2::bigint >> 20 AND c.position < $2
		ORDER BY m.period DESC, c.position DESC LIMIT $3))
	SELECT c.conversation_id, c.kind, c.title, c.member_count, c.version, c.position, c.changed_at, ARRAY(
		SELECT m.member FROM chat.conversation_members m WHERE m.conversation_id = c.conversation_id
		ORDER BY m.joined_version, m.joined_index LIMIT 64)
	FROM page c ORDER BY c.position DESC LIMIT $3`

// Conversations returns a user's conversations, the newest first, below a position (0: from the newest). Pass next as
// below to read the next page; it is 0 on the last page.
func (s *Store) Conversations(ctx context.Context, user string, below int64, limit int) (
	all []*chatv1.Conversation, next int64, err error) {
	if below == 0 {
		below = math.MaxInt64
	}
	rows, err := s.pool.Query(ctx, sqlConversations, planned, user, below, limit+1)
	if err != nil {
		return nil, 0, fmt.Errorf("list conversations of %s: %w", user, err)
	}
	var positions []int64
	bytes, fit := 0, 0
	all, err = pgx.CollectRows(rows, func(row pgx.CollectableRow) (*chatv1.Conversation, error) {
		c := &chatv1.Conversation{}
		var kind int32
		var position int64
		var changed time.Time
		err := row.Scan(&c.ConversationId, &kind, &c.Title, &c.MemberCount, &c.Version, &position, &changed, &c.UserIds)
		c.Kind, c.ChangedAt = chatv1.Kind(kind), timestamppb.New(changed)
		positions = append(positions, position)
		bytes += len(c.ConversationId) + len(c.Title)
		for _, user := range c.UserIds {
			bytes += len(user)
		}
		if fit == 0 || bytes <= MaxPageBytes {
			fit++
		}
		return c, err
	})
	if err != nil {
		return nil, 0, fmt.Errorf("list conversations of %s: %w", user, err)
	}
	all, next = page.Cut(all, min(fit, limit), func(row int) int64 { return positions[row] })
	return all, next, nil
}

// Seat is a member's place in the order of joining.
type Seat struct {
	Version int64 // at which the user joined
	Index   int32 // among the users who joined at that version
}

const sqlMembers = `SELECT c.version, c.member_count, m.member, m.joined_version, m.joined_index
	FROM chat.conversations c LEFT JOIN LATERAL (
		SELECT m.member, m.joined_version, m.joined_index FROM chat.conversation_members m
		WHERE m.conversation_id = $1 AND (m.joined_version, m.joined_index) > ($2, $3)
		ORDER BY m.joined_version, m.joined_index LIMIT $4) m ON true
	WHERE c.conversation_id = $1 ORDER BY m.joined_version, m.joined_index`

// Members is a page of the members of a conversation.
type Members struct {
	Version int64 // of the conversation, as of which the page was read; 0: unknown
	Count   int32 // of all members
	Users   []string
	Next    Seat // the last of this page, if there are more
}

// Members returns the members of a conversation behind a seat, in the order of joining.
func (s *Store) Members(ctx context.Context, id string, after Seat, limit int) (Members, error) {
	var m Members
	rows, err := s.pool.Query(ctx, sqlMembers, planned, id, after.Version, after.Index, limit+1)
	if err != nil {
		return m, fmt.Errorf("list members of %s: %w", id, err)
	}
	var user *string
	var version *int64
	var index *int32
	var seats []Seat
	_, err = pgx.ForEachRow(rows, []any{&m.Version, &m.Count, &user, &version, &index}, func() error {
		if user != nil { // it is null where no member is behind the seat
			m.Users, seats = append(m.Users, *user), append(seats, Seat{*version, *index})
		}
		return nil
	})
	if err != nil {
		return m, fmt.Errorf("list members of %s: %w", id, err)
	}
	m.Users, m.Next = page.Cut(m.Users, limit, func(row int) Seat { return seats[row] })
	return m, nil
}

// Conversation is one conversation.
type Conversation struct {
	FromJoining bool // each member's history begins with joining
}

const sqlConversation = `SELECT version, history_from_joining FROM chat.conversations WHERE conversation_id = $1`

// Conversation returns a conversation and the version as of which it was read, which is 0 if it is unknown.
func (s *Store) Conversation(ctx context.Context, id string) (c Conversation, version int64, err error) {
	err = s.pool.QueryRow(ctx, sqlConversation, id).Scan(&version, &c.FromJoining)
	if err != nil && !errors.Is(err, pgx.ErrNoRows) {
		return c, 0, fmt.Errorf("read conversation %s: %w", id, err)
	}
	return c, version, nil
}
