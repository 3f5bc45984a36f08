// Package store keeps what is read of conversations: the list of each user's, and their messages. It follows chat's log
// and holds nothing that does not follow from it.
package store

import (
	"context"
	"embed"
	"errors"
	"fmt"
	"io/fs"
	"maps"
	"slices"
	"strings"
	"time"

	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgxpool"
	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/types/known/timestamppb"

	"github.com/edumatrix/interlinked/proto/catalog"
	chatv1 "github.com/edumatrix/interlinked/proto/gen/edumatrix/chat/v1"
	"github.com/edumatrix/interlinked/shared/envelope"
)

//go:embed migrations/*.sql
var migrations embed.FS

// Migrations make the tables.
func Migrations() fs.FS {
	files, err := fs.Sub(migrations, "migrations")
	if err != nil {
		panic(err) // the folder is compiled in
	}
	return files
}

// Conversations is the projection.
type Conversations struct{ catalog *catalog.Catalog }

// NewConversations makes the projection.
func NewConversations(c *catalog.Catalog) *Conversations { return &Conversations{c} }

// ProjectionName is under which the position of Conversations is kept.
const ProjectionName = "conversations"

// Name is ProjectionName.
func (*Conversations) Name() string { return ProjectionName }

const (
	sqlStarted = `INSERT INTO conversations
		(conversation_id, kind, title, members, history_from_joining, version, position, changed_at)
		VALUES ($1, $2, $3, $4, $5, 0, 0, $6)`
	sqlJoined = `WITH listed AS (
			INSERT INTO conversation_members (member, conversation_id) VALUES ($2, $1) ON CONFLICT DO NOTHING)
		UPDATE conversations SET members = array_append(members, $2) WHERE conversation_id = $1`
	sqlListed = `INSERT INTO conversation_members (member, conversation_id)
		SELECT member, $1 FROM unnest($2::text[]) member ON CONFLICT DO NOTHING`
	sqlLeft = `WITH unlisted AS (
			DELETE FROM conversation_members WHERE member = $2 AND conversation_id = $1)
		UPDATE conversations SET members = array_remove(members, $2) WHERE conversation_id = $1`
	sqlSent = `INSERT INTO messages (conversation_id, version, message_id, author, body, sent_at)
		VALUES ($1, $2, $3, $4, $5, $6)`
	sqlEdited  = `INSERT INTO edits (conversation_id, message_id, version, body, edited_at) VALUES ($1, $2, $3, $4, $5)`
	sqlDeleted = `WITH forgotten AS (
			DELETE FROM edits WHERE conversation_id = $1 AND message_id = $2)
		UPDATE messages SET body = '', deleted = true WHERE conversation_id = $1 AND message_id = $2`
	sqlMoved = `UPDATE conversations SET version = $2, position = $3, changed_at = $4 WHERE conversation_id = $1`
)

// Apply writes what follows from events.
func (p *Conversations) Apply(ctx context.Context, tx pgx.Tx, events []envelope.Event) error {
	b := &pgx.Batch{}
	newest := map[string]envelope.Event{}
	for _, e := range events {
		id, ok := strings.CutPrefix(e.Stream, "conversation:")
		if !ok {
			continue
		}
		m, err := p.catalog.Decode(e.Type, e.Body)
		if err != nil {
			return fmt.Errorf("%s at version %d: %w", e.Stream, e.Version, err)
		}
		queue(b, id, e, m)
		newest[id] = e
	}
	for _, id := range slices.Sorted(maps.Keys(newest)) {
		e := newest[id]
		b.Queue(sqlMoved, id, e.Version, e.Position, e.Time)
	}
	if err := tx.SendBatch(ctx, b).Close(); err != nil {
		return fmt.Errorf("project conversations: %w", err)
	}
	return nil
}

func queue(b *pgx.Batch, id string, e envelope.Event, event proto.Message) {
	switch m := event.(type) {
	case *chatv1.ConversationStarted:
		b.Queue(sqlStarted, id, int32(m.Kind), storable(m.Title), m.UserIds, m.HistoryFromJoining, e.Time)
		b.Queue(sqlListed, id, m.UserIds)
	case *chatv1.MemberAdded:
		b.Queue(sqlJoined, id, m.UserId)
	case *chatv1.MemberLeft:
		b.Queue(sqlLeft, id, m.UserId)
	case *chatv1.MessageSent:
		b.Queue(sqlSent, id, e.Version, m.MessageId, e.Actor, storable(m.Body), e.Time)
	case *chatv1.MessageEdited:
		b.Queue(sqlEdited, id, m.MessageId, e.Version, storable(m.Body), e.Time)
	case *chatv1.MessageDeleted:
		b.Queue(sqlDeleted, id, m.MessageId)
	}
}

// storable takes out the one character that Postgres has no place for. It is refused where commands come in; what is in
// the log all the same must not stop the projection.
func storable(s string) string { return strings.ReplaceAll(s, "\x00", "\uFFFD") }

// Store reads what the projection wrote.
type Store struct{ pool *pgxpool.Pool }

// New reads through a pool.
func New(pool *pgxpool.Pool) *Store { return &Store{pool} }

const sqlConversations = `SELECT c.conversation_id, c.kind, c.title, c.members, c.version, c.position, c.changed_at
	FROM chat.conversation_members m JOIN chat.conversations c USING (conversation_id)
	WHERE m.member = $1 AND ($2 = 0 OR c.position < $2)
	ORDER BY c.position DESC LIMIT $3`

// Conversations lists those that a user is in, newest first, below a position (0: from the newest). The next page is
// what is below the position given back; 0: there is none.
func (s *Store) Conversations(ctx context.Context, user string, below int64, limit int) (
	all []*chatv1.Conversation, next int64, err error) {
	rows, err := s.pool.Query(ctx, sqlConversations, user, below, limit+1)
	if err != nil {
		return nil, 0, fmt.Errorf("list conversations of %s: %w", user, err)
	}
	var positions []int64
	all, err = pgx.CollectRows(rows, func(row pgx.CollectableRow) (*chatv1.Conversation, error) {
		c := &chatv1.Conversation{}
		var kind int32
		var position int64
		var changed time.Time
		err := row.Scan(&c.ConversationId, &kind, &c.Title, &c.UserIds, &c.Version, &position, &changed)
		c.Kind, c.ChangedAt = chatv1.Kind(kind), timestamppb.New(changed)
		positions = append(positions, position)
		return c, err
	})
	if err != nil {
		return nil, 0, fmt.Errorf("list conversations of %s: %w", user, err)
	}
	if len(all) > limit {
		return all[:limit], positions[limit-1], nil
	}
	return all, 0, nil
}

// Range is versions from one to another, both included.
type Range struct{ From, To int64 }

const sqlConversation = `SELECT version, history_from_joining FROM chat.conversations WHERE conversation_id = $1`

// Conversation says at which version a conversation is, and whether its history begins for everyone with their joining.
func (s *Store) Conversation(ctx context.Context, id string) (version int64, fromJoining bool, err error) {
	err = s.pool.QueryRow(ctx, sqlConversation, id).Scan(&version, &fromJoining)
	if err != nil && !errors.Is(err, pgx.ErrNoRows) {
		return 0, false, fmt.Errorf("read conversation %s: %w", id, err)
	}
	return version, fromJoining, nil
}

// A message is there, and a text of it, where its version is in one of the ranges.
const (
	sqlMessages = `SELECT m.message_id, m.version, m.author, coalesce(e.body, m.body), m.sent_at, e.edited_at, m.deleted
		FROM chat.messages m LEFT JOIN LATERAL (
			SELECT body, edited_at FROM chat.edits e
			WHERE e.conversation_id = m.conversation_id AND e.message_id = m.message_id AND e.version > m.version
			AND EXISTS (SELECT FROM unnest($4::bigint[], $5::bigint[]) open(since, until)
				WHERE e.version BETWEEN since AND until)
			ORDER BY e.version DESC LIMIT 1) e ON NOT m.deleted
		WHERE m.conversation_id = $1 AND m.version > $2 AND m.version < $3
		AND EXISTS (SELECT FROM unnest($4::bigint[], $5::bigint[]) open(since, until)
			WHERE m.version BETWEEN since AND until)`
	sqlOldest = sqlMessages + ` ORDER BY m.version LIMIT $6`
	sqlNewest = sqlMessages + ` ORDER BY m.version DESC LIMIT $6`
)

// Messages reads messages with versions between two, both left out, within ranges, oldest first: those nearest to after
// when up is set, else those nearest to before. Of each it gives the newest text within the ranges; of one that was
// deleted, whenever that was, none.
func (s *Store) Messages(ctx context.Context, id string, after, before int64, ranges []Range, up bool, limit int) (
	[]*chatv1.Message, error) {
	var since, until []int64
	for _, r := range ranges {
		since, until = append(since, r.From), append(until, r.To)
	}
	query := sqlNewest
	if up {
		query = sqlOldest
	}
	rows, err := s.pool.Query(ctx, query, id, after, before, since, until, limit)
	if err != nil {
		return nil, fmt.Errorf("read messages of %s: %w", id, err)
	}
	all, err := pgx.CollectRows(rows, func(row pgx.CollectableRow) (*chatv1.Message, error) {
		m := &chatv1.Message{}
		var sent time.Time
		var edited *time.Time
		err := row.Scan(&m.MessageId, &m.Version, &m.Author, &m.Body, &sent, &edited, &m.Deleted)
		m.SentAt = timestamppb.New(sent)
		if edited != nil {
			m.EditedAt = timestamppb.New(*edited)
		}
		return m, err
	})
	if err != nil {
		return nil, fmt.Errorf("read messages of %s: %w", id, err)
	}
	if !up {
		slices.Reverse(all)
	}
	return all, nil
}
