// Package store holds the data that queries about conversations read: the list of each user's conversations, and their
// messages. It is a projection of chat's log and contains nothing else.
package store

import (
	"context"
	"embed"
	"errors"
	"fmt"
	"io/fs"
	"math"
	"slices"
	"time"

	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgxpool"
	"google.golang.org/protobuf/types/known/timestamppb"

	chatv1 "github.com/edumatrix/interlinked/proto/gen/edumatrix/chat/v1"
	"github.com/edumatrix/interlinked/shared/page"
)

//go:embed migrations/*.sql
var migrations embed.FS

// Migrations returns the migrations that create the tables.
func Migrations() fs.FS {
	files, err := fs.Sub(migrations, "migrations")
	if err != nil {
		panic(err) // the folder is compiled in
	}
	return files
}

// MaxPageBytes is about the maximum size of the texts in a page. A larger page is cut, and reports that there is more.
// Its JSON may be several times as large, and is still below a connection's bound.
const MaxPageBytes = 512 << 10

// Store reads the rows that the projection wrote. Its statements name the schema, because its connections have no
// search_path; those of the projection do not, because a rebuild runs them in another schema.
type Store struct{ pool *pgxpool.Pool }

// New returns a Store that reads from a pool.
func New(pool *pgxpool.Pool) *Store { return &Store{pool} }

// planned makes the server plan a statement for its arguments each time it runs. A cached plan would serve any
// arguments, and assume tables as small as when it was made.
const planned = pgx.QueryExecModeCacheDescribe

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
	all, more := page.Cut(all, min(fit, limit))
	if more {
		next = positions[len(all)-1]
	}
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
	users, more := page.Cut(m.Users, limit)
	if m.Users = users; more {
		m.Next = seats[len(users)-1]
	}
	return m, nil
}

// Range is a range of versions, both ends included.
type Range struct{ From, To int64 }

const sqlConversation = `SELECT version, history_from_joining FROM chat.conversations WHERE conversation_id = $1`

// Conversation returns the version of a conversation, and whether each member's history begins with joining.
func (s *Store) Conversation(ctx context.Context, id string) (version int64, fromJoining bool, err error) {
	err = s.pool.QueryRow(ctx, sqlConversation, id).Scan(&version, &fromJoining)
	if err != nil && !errors.Is(err, pgx.ErrNoRows) {
		return 0, false, fmt.Errorf("read conversation %s: %w", id, err)
	}
	return version, fromJoining, nil
}

// Reads no more rows of each range ($2, $3) than a page has, and no row outside the ranges. The newest text of a
// message is looked up by index in the readable ranges ($4, $5). The page is cut at MaxPageBytes; count is the number
// of messages that it would have had.
const (
	sqlMessages = `WITH found AS (
			SELECT m.* FROM unnest($2::bigint[], $3::bigint[]) AS open (since, until), LATERAL (
				SELECT * FROM chat.messages m WHERE m.conversation_id = $1 AND m.version >= since AND m.version <= until
				ORDER BY m.version %[1]s LIMIT $6) m
			ORDER BY m.version %[1]s LIMIT $6),
		page AS (
			SELECT m.message_id, m.version, m.author, coalesce(e.body, m.body) AS body, m.sent_at, e.edited_at, m.deleted
			FROM found m LEFT JOIN LATERAL (
				SELECT e.* FROM unnest($4::bigint[], $5::bigint[]) AS open (since, until), LATERAL (
					SELECT e.version, e.body, e.edited_at FROM chat.edits e
					WHERE e.conversation_id = $1 AND e.message_id = m.message_id
						AND e.version >= greatest(since, m.version + 1) AND e.version <= until
					ORDER BY e.version DESC LIMIT 1) e
				ORDER BY e.version DESC LIMIT 1) e ON NOT m.deleted),
		sized AS (
			SELECT *, count(*) OVER () AS count, sum(octet_length(body)) OVER (
				ORDER BY version %[1]s ROWS UNBOUNDED PRECEDING) AS bytes, row_number() OVER (ORDER BY version %[1]s) AS row
			FROM page)
		SELECT message_id, version, author, body, sent_at, edited_at, deleted, count FROM sized
		WHERE bytes <= $7 OR row = 1 ORDER BY version %[1]s`
	// maxRanges is the number of ranges that one statement reads. Each range costs a lookup and at most a page.
	maxRanges = 16
)

var sqlOldest, sqlNewest = fmt.Sprintf(sqlMessages, "ASC"), fmt.Sprintf(sqlMessages, "DESC")

// Page selects the messages to read.
type Page struct {
	// After and Before bound the versions of the messages; both are excluded.
	After, Before int64
	// Ranges are the readable versions, ascending and disjoint.
	Ranges []Range
	// Up selects the messages nearest to After; otherwise those nearest to Before are read.
	Up    bool
	Limit int
}

// clamped returns the parts of the ranges within the page's versions, the nearest first.
func (p Page) clamped() (all []Range) {
	for _, r := range p.Ranges {
		if r.To > p.After && r.From < p.Before {
			all = append(all, Range{max(r.From, p.After+1), min(r.To, p.Before-1)})
		}
	}
	all = slices.DeleteFunc(all, func(r Range) bool { return r.From > r.To })
	if !p.Up {
		slices.Reverse(all)
	}
	return all
}

// Messages reads a page, the oldest message first, and reports whether there are more messages beyond it. Each message
// has its newest text within the ranges; a message that was deleted, even later, has none.
func (s *Store) Messages(ctx context.Context, id string, p Page) (all []*chatv1.Message, more bool, err error) {
	statement := sqlNewest
	if p.Up {
		statement = sqlOldest
	}
	since, until := columns(p.Ranges)
	bytes := 0
	for ranges := range slices.Chunk(p.clamped(), maxRanges) {
		from, to := columns(ranges)
		rows, err := s.pool.Query(ctx, statement, planned, id, from, to, since, until, p.Limit+1-len(all), MaxPageBytes-bytes)
		if err != nil {
			return nil, false, fmt.Errorf("read messages of %s: %w", id, err)
		}
		count, had := 0, len(all)
		found, err := pgx.CollectRows(rows, func(row pgx.CollectableRow) (*chatv1.Message, error) {
			m := &chatv1.Message{}
			var sent time.Time
			var edited *time.Time
			err := row.Scan(&m.MessageId, &m.Version, &m.Author, &m.Body, &sent, &edited, &m.Deleted, &count)
			if m.SentAt = timestamppb.New(sent); edited != nil {
				m.EditedAt = timestamppb.New(*edited)
			}
			bytes += len(m.Body)
			return m, err
		})
		if err != nil {
			return nil, false, fmt.Errorf("read messages of %s: %w", id, err)
		}
		if had > 0 && bytes > MaxPageBytes {
			found = nil // the first message of a page is always included, but does not fit here
		}
		if all = append(all, found...); had+count > min(len(all), p.Limit) {
			all, more = all[:min(len(all), p.Limit)], true
			break
		}
	}
	if !p.Up {
		slices.Reverse(all)
	}
	return all, more, nil
}

func columns(all []Range) (since, until []int64) {
	for _, r := range all {
		since, until = append(since, r.From), append(until, r.To)
	}
	return since, until
}
