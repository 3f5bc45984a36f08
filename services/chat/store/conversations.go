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

	"github.com/edumatrix/interlinked/proto/catalog"
	chatv1 "github.com/edumatrix/interlinked/proto/gen/edumatrix/chat/v1"
	"github.com/edumatrix/interlinked/shared/eventlog/projection"
	"github.com/edumatrix/interlinked/shared/page"
)

// ProjectionName is the name of the projection of DeclareConversations.
const ProjectionName = "conversations"

// A user's list of conversations is sorted by the position of each conversation's newest event, the newest first.
//
// The list is read through an index over conversation_members, which has one row for each member of each conversation.
// If these rows contained the position, every message would rewrite the rows of all members. They contain a period
// instead: the position without its lowest bits, smallShift bits in a small conversation and largeShift bits in a large
// one. For example, messages at the positions 5,000 and 5,100 are both in period 19 of a small conversation, so the
// second message rewrites no row of a member. A message at position 5,200 is in period 20 and rewrites all of them,
// which are at most maxSmall. In a large conversation, with up to 2,000 members, all three messages are in period 0.
//
// Conversations with the same period are sorted by their positions, which are in the table conversations. So a page
// reads all of the user's conversations in its first and its last period. At most 256 small conversations have the same
// period, because a period of small conversations has 256 positions. (Before migration 00003_periods.sql, smallShift
// was 10.)
const smallShift, largeShift = 8, 20

// maxSmall is the number of members above which a conversation is large. It is also the maximum number of members that
// a list of conversations names for each conversation.
const maxSmall = 64

var sqlJoin = fmt.Sprintf(`
	INSERT INTO conversation_members (member, conversation_id, joined_version, joined_index, period)
	SELECT member, id, version, index, position >> %d
	FROM unnest($1::text[], $2::text[], $3::bigint[], $4::integer[], $5::bigint[])
	AS n (id, member, version, index, position) ON CONFLICT DO NOTHING`, smallShift)

// sqlAdvance stores the newest event of each conversation. If the conversation's period or its members have changed, it
// also updates the rows of members in which the column period or large differs from the conversation's value. LIMIT 1
// makes the server look up the conversations one by one.
var sqlAdvance = fmt.Sprintf(`WITH newest AS (
		SELECT e.*, c.position AS old_position, CASE WHEN e.members_changed THEN (
			SELECT count(*) FROM conversation_members m WHERE m.conversation_id = e.id) END AS members
		FROM unnest($1::text[], $2::bigint[], $3::bigint[], $4::timestamptz[], $5::boolean[])
			AS e (id, version, position, at, members_changed),
		LATERAL (SELECT position FROM conversations WHERE conversation_id = e.id LIMIT 1) c),
	advanced AS (
		UPDATE conversations c SET version = newest.version, position = newest.position, changed_at = newest.at,
			member_count = CASE WHEN newest.members_changed THEN newest.members ELSE c.member_count END,
			large = CASE WHEN newest.members_changed THEN newest.members > %[1]d ELSE c.large END
		FROM newest WHERE c.conversation_id = newest.id
		RETURNING c.conversation_id AS id, c.large, newest.members_changed,
			newest.old_position >> (CASE WHEN c.large THEN %[3]d ELSE %[2]d END) AS old_period,
			c.position >> (CASE WHEN c.large THEN %[3]d ELSE %[2]d END) AS period)
	UPDATE conversation_members m SET large = advanced.large, period = advanced.period FROM advanced
	WHERE m.conversation_id = advanced.id AND (advanced.members_changed OR advanced.period <> advanced.old_period)
		AND (m.large <> advanced.large OR m.period <> advanced.period)`, maxSmall, smallShift, largeShift)

// Each statement writes the rows of a whole batch of events.
const (
	sqlStart = `INSERT INTO conversations (conversation_id, kind, title, history_from_joining, version, position, changed_at)
		SELECT id, kind, title, from_joining, 0, 0, at
		FROM unnest($1::text[], $2::integer[], $3::text[], $4::boolean[], $5::timestamptz[])
		AS n (id, kind, title, from_joining, at)`
	sqlLeave = `DELETE FROM conversation_members m USING unnest($1::text[], $2::text[]) AS n (id, member)
		WHERE m.conversation_id = n.id AND m.member = n.member`
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

// The first columns of a statement's rows are their key: a row that is added to a batch replaces an earlier row with
// the same key. These constants are the numbers of columns in the key.
const (
	everyRow       = 0 // no key: every row is written
	byConversation = 1
	byMember       = 2 // the key is the conversation and the user
)

// conversationWriter has the statements of the projection. Each method adds the rows of one event for these statements
// to a batch.
type conversationWriter struct{ start, leave, join, advance, send, edit, remove *projection.Statement }

// DeclareConversations declares the projection of conversations, their members and their messages.
func DeclareConversations() *projection.Projection {
	p := projection.Declare(ProjectionName, projection.Options{Streams: []string{"conversation"},
		Tables: []string{"conversations", "conversation_members", "messages", "edits"}})
	// A batch executes its statements in the order of their declaration: a user who leaves and is added again within
	// one batch has to leave first. The statement remove is an update without a key. This is safe, because all its rows
	// set the same values.
	c := conversationWriter{start: p.Statement(everyRow, sqlStart), leave: p.Statement(byMember, sqlLeave),
		join: p.Statement(byMember, sqlJoin), advance: p.Statement(byConversation, sqlAdvance),
		send: p.Statement(everyRow, sqlSend), edit: p.Statement(everyRow, sqlEdit), remove: p.Statement(everyRow, sqlDelete)}
	projection.On(p, c.started)
	projection.On(p, c.added)
	projection.On(p, c.left)
	projection.On(p, c.sent)
	projection.On(p, c.edited)
	projection.On(p, c.deleted)
	return p
}

func (c *conversationWriter) started(b *projection.Batch, e projection.Event, m *chatv1.ConversationStarted) {
	b.Add(c.start, e.ID, int32(m.Kind), storable(m.Title), m.HistoryFromJoining, e.Time)
	c.advanceTo(b, e, true)
	for i, user := range m.UserIds {
		c.addMember(b, e, user, i)
	}
}

func (c *conversationWriter) added(b *projection.Batch, e projection.Event, m *chatv1.MemberAdded) {
	c.advanceTo(b, e, true)
	c.addMember(b, e, m.UserId, 0)
}

func (c *conversationWriter) left(b *projection.Batch, e projection.Event, m *chatv1.MemberLeft) {
	c.advanceTo(b, e, true)
	b.Add(c.leave, e.ID, m.UserId)
	b.Remove(c.join, e.ID, m.UserId)
}

func (c *conversationWriter) sent(b *projection.Batch, e projection.Event, m *chatv1.MessageSent) {
	c.advanceTo(b, e, false)
	b.Add(c.send, e.ID, e.Version, m.MessageId, e.Actor, storable(m.Body), e.Time)
}

func (c *conversationWriter) edited(b *projection.Batch, e projection.Event, m *chatv1.MessageEdited) {
	c.advanceTo(b, e, false)
	b.Add(c.edit, e.ID, m.MessageId, e.Version, storable(m.Body), e.Time)
}

func (c *conversationWriter) deleted(b *projection.Batch, e projection.Event, m *chatv1.MessageDeleted) {
	c.advanceTo(b, e, false)
	b.Add(c.remove, e.ID, m.MessageId, e.Version)
}

// advanceTo records an event as the newest of its conversation.
func (c *conversationWriter) advanceTo(b *projection.Batch, e projection.Event, membersChanged bool) {
	const changedColumn = 4 // the index of membersChanged in a row of c.advance
	if earlier := b.Row(c.advance, e.ID); earlier != nil {
		membersChanged = membersChanged || earlier[changedColumn].(bool)
	}
	b.Add(c.advance, e.ID, e.Version, e.Position, e.Time, membersChanged)
}

// addMember adds the row of a member, unless an earlier event of the batch has already added it.
func (c *conversationWriter) addMember(b *projection.Batch, e projection.Event, user string, index int) {
	if b.Row(c.join, e.ID, user) == nil {
		b.Add(c.join, e.ID, user, e.Version, int32(index), e.Position)
	}
}

// storable replaces the character U+0000, which Postgres cannot store. Commands that contain this character are
// refused, but an event of an earlier release may contain it, and must not stop the projection.
func storable(s string) string { return strings.ReplaceAll(s, "\x00", "\uFFFD") }

// sqlConversations reads a page of small and a page of large conversations, each sorted by period and then by position,
// and merges them.
var sqlConversations = fmt.Sprintf(`WITH page AS (
		(SELECT c.* FROM chat.conversation_members m, LATERAL (
			SELECT * FROM chat.conversations c WHERE c.conversation_id = m.conversation_id LIMIT 1) c
		WHERE m.member = $1 AND NOT m.large AND m.period <= $2::bigint >> %[2]d AND c.position < $2
		ORDER BY m.period DESC, c.position DESC LIMIT $3)
		UNION ALL
		(SELECT c.* FROM chat.conversation_members m, LATERAL (
			SELECT * FROM chat.conversations c WHERE c.conversation_id = m.conversation_id LIMIT 1) c
		WHERE m.member = $1 AND m.large AND m.period <= $2::bigint >> %[3]d AND c.position < $2
		ORDER BY m.period DESC, c.position DESC LIMIT $3))
	SELECT c.conversation_id, c.kind, c.title, c.member_count, c.version, c.position, c.changed_at, ARRAY(
		SELECT m.member FROM chat.conversation_members m WHERE m.conversation_id = c.conversation_id
		ORDER BY m.joined_version, m.joined_index LIMIT %[1]d)
	FROM page c ORDER BY c.position DESC LIMIT $3`, maxSmall, smallShift, largeShift)

// Conversations returns a page of a user's conversations, those with the newest events first. If the parameter below is
// not 0, only conversations whose newest event has a lower position are returned. The result next is the value of the
// parameter below for the following page; on the last page, the result is 0.
func (s *Store) Conversations(ctx context.Context, user string, below catalog.Position, limit int) (
	all []*chatv1.Conversation, next catalog.Position, err error) {
	if below == 0 {
		below = math.MaxInt64
	}
	rows, err := s.pool.Query(ctx, sqlConversations, planned, user, below, limit+1)
	if err != nil {
		return nil, 0, fmt.Errorf("list conversations of %s: %w", user, err)
	}
	var positions []catalog.Position
	bytes, fit := 0, 0
	all, err = pgx.CollectRows(rows, func(row pgx.CollectableRow) (*chatv1.Conversation, error) {
		c := &chatv1.Conversation{}
		var kind int32
		var position catalog.Position
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
	all, next = page.Cut(all, min(fit, limit), func(row int) catalog.Position { return positions[row] })
	return all, next, nil
}

// JoinOrder is a member's place in the order of joining.
type JoinOrder struct {
	Version catalog.Version // the version of the conversation at which the member joined
	Index   int32           // the place among the members who joined at that version, from 0
}

const sqlMembers = `SELECT c.version, c.member_count, m.member, m.joined_version, m.joined_index
	FROM chat.conversations c LEFT JOIN LATERAL (
		SELECT m.member, m.joined_version, m.joined_index FROM chat.conversation_members m
		WHERE m.conversation_id = $1 AND (m.joined_version, m.joined_index) > ($2, $3)
		ORDER BY m.joined_version, m.joined_index LIMIT $4) m ON true
	WHERE c.conversation_id = $1 ORDER BY m.joined_version, m.joined_index`

// Members is a page of the members of a conversation.
type Members struct {
	Version catalog.Version // the version of the conversation as of which the page was read; 0 if the conversation is unknown
	Count   int32           // the number of all members
	Users   []string
	Next    JoinOrder // the place of the page's last member if there are more members; otherwise zero
}

// Members returns a page of the members of a conversation: those who follow a place in the order of joining, in that
// order.
func (s *Store) Members(ctx context.Context, id string, after JoinOrder, limit int) (Members, error) {
	var m Members
	rows, err := s.pool.Query(ctx, sqlMembers, planned, id, after.Version, after.Index, limit+1)
	if err != nil {
		return m, fmt.Errorf("list members of %s: %w", id, err)
	}
	var user *string
	var version *catalog.Version
	var index *int32
	var places []JoinOrder
	_, err = pgx.ForEachRow(rows, []any{&m.Version, &m.Count, &user, &version, &index}, func() error {
		if user != nil { // null in the only row of an answer without members
			m.Users, places = append(m.Users, *user), append(places, JoinOrder{*version, *index})
		}
		return nil
	})
	if err != nil {
		return m, fmt.Errorf("list members of %s: %w", id, err)
	}
	m.Users, m.Next = page.Cut(m.Users, limit, func(row int) JoinOrder { return places[row] })
	return m, nil
}

// Settings are the properties of a conversation that apply to all its members.
type Settings struct {
	FromJoining bool // each member's history begins with joining
}

const sqlSettings = `SELECT version, history_from_joining FROM chat.conversations WHERE conversation_id = $1`

// Settings returns a conversation's settings and the version as of which they were read, which is 0 if it is unknown.
func (s *Store) Settings(ctx context.Context, id string) (c Settings, version catalog.Version, err error) {
	err = s.pool.QueryRow(ctx, sqlSettings, id).Scan(&version, &c.FromJoining)
	if err != nil && !errors.Is(err, pgx.ErrNoRows) {
		return c, 0, fmt.Errorf("read conversation %s: %w", id, err)
	}
	return c, version, nil
}
