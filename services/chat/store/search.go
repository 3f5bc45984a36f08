package store

import (
	"context"
	"errors"
	"fmt"
	"math"
	"sort"

	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgconn"

	"github.com/edumatrix/interlinked/proto/catalog"
	chatv1 "github.com/edumatrix/interlinked/proto/gen/edumatrix/chat/v1"
	"github.com/edumatrix/interlinked/shared/interval"
	"github.com/edumatrix/interlinked/shared/page"
)

// ErrTooBroad means that a statement of a search took longer than 2 s. The server has ended the statement, so that one
// user does not slow down the queries of others.
var ErrTooBroad = errors.New("the search took too long")

// sqlBeginSearch begins a transaction whose statements all read the same state of the database, and in which the server
// ends statements that take too long. An ordinary search takes some milliseconds, and compiling its statements (jit)
// would take longer.
const sqlBeginSearch = "BEGIN ISOLATION LEVEL REPEATABLE READ READ ONLY; SET LOCAL statement_timeout = '2s'; SET LOCAL jit = off"

// Search reads the rows by which messages are found, in one transaction.
type Search struct{ tx pgx.Tx }

// Search calls a function that reads rows for a search. The error matches ErrTooBroad if a statement took too long.
func (s *Store) Search(ctx context.Context, read func(*Search) error) error {
	err := pgx.BeginTxFunc(ctx, s.pool, pgx.TxOptions{BeginQuery: sqlBeginSearch},
		func(tx pgx.Tx) error { return read(&Search{tx}) })
	var pg *pgconn.PgError
	if errors.As(err, &pg) && pg.Code == "57014" && ctx.Err() == nil { // query_canceled
		return fmt.Errorf("search messages: %w: %w", ErrTooBroad, err)
	}
	return err
}

// Searched is a conversation that is searched.
type Searched struct {
	ID string
	// Ranges are the versions that the reader can read, ascending.
	Ranges []Range
	// Member reports whether the reader is a member now (see Page).
	Member bool
}

// includes reports whether the reader can read the message with a version.
func (c Searched) includes(version catalog.Version) bool {
	i := sort.Search(len(c.Ranges), func(i int) bool { return c.Ranges[i].To >= version })
	return i < len(c.Ranges) && c.Ranges[i].From <= version
}

// Joined is a conversation of which a user is or was a member.
type Joined struct {
	ID          string
	Changed     catalog.Position // the position at which the user has last joined or left
	Version     catalog.Version  // the version as of which the conversation was read; 0 if it cannot be read yet
	FromJoining bool             // each member's history begins with joining
	Intervals   []interval.Interval
}

// sqlJoined finds conversations of the user $1, sorted by when the user last joined or left them, the most recent one
// first. It reads the membership intervals in the log in the same statement as the conversations, so the intervals are
// complete up to the conversations' versions. The index over the ids of conversations can be used only with the
// collation that it has.
const sqlJoined = `WITH page AS (
		(SELECT room, opened_position AS changed FROM chat.memberships
		WHERE member = $1 AND closed_position IS NULL AND opened_position < $2 AND starts_with(room, 'conversation:')
		ORDER BY opened_position DESC LIMIT $3)
		UNION ALL
		(SELECT room, closed_position FROM chat.memberships m
		WHERE member = $1 AND closed_position IS NOT NULL AND closed_position < $2 AND starts_with(room, 'conversation:')
			AND opened_position = (
				SELECT max(last.opened_position) FROM chat.memberships last WHERE last.room = m.room AND last.member = $1)
		ORDER BY closed_position DESC LIMIT $3)
		ORDER BY changed DESC LIMIT $3)
	SELECT n.id, p.changed, coalesce(c.version, 0), coalesce(c.history_from_joining, false), i.opened, i.closed
	FROM page p
	CROSS JOIN LATERAL (SELECT substr(p.room, length('conversation:') + 1) COLLATE "default" AS id) n
	LEFT JOIN LATERAL (
		SELECT version, history_from_joining FROM chat.conversations WHERE conversation_id = n.id LIMIT 1) c ON true
	CROSS JOIN LATERAL (
		SELECT array_agg(opened_version ORDER BY opened_position) AS opened,
			array_agg(coalesce(closed_version, 0) ORDER BY opened_position) AS closed
		FROM chat.memberships WHERE room = p.room AND member = $1) i
	ORDER BY p.changed DESC`

// Joined returns a page of the conversations of which a user is or was a member, sorted by when the user last joined or
// left them, the most recent one first. If the parameter below is not 0, only conversations that the user has joined or
// left before that position are returned. The result next is the value of the parameter below for the following page;
// on the last page, it is 0.
func (s *Search) Joined(ctx context.Context, user string, below catalog.Position, limit int) (
	all []Joined, next catalog.Position, err error) {
	if below == 0 {
		below = math.MaxInt64
	}
	rows, err := s.tx.Query(ctx, sqlJoined, planned, user, below, limit+1)
	if err != nil {
		return nil, 0, fmt.Errorf("list the conversations that %s can search: %w", user, err)
	}
	var opened, closed []catalog.Version
	all, err = pgx.CollectRows(rows, func(row pgx.CollectableRow) (j Joined, err error) {
		err = row.Scan(&j.ID, &j.Changed, &j.Version, &j.FromJoining, &opened, &closed)
		for i := range opened {
			j.Intervals = append(j.Intervals, interval.Interval{FromVersion: opened[i], UntilVersion: closed[i]})
		}
		return j, err
	})
	if err != nil {
		return nil, 0, fmt.Errorf("list the conversations that %s can search: %w", user, err)
	}
	all, next = page.Cut(all, limit, func(row int) catalog.Position { return all[row].Changed })
	return all, next, nil
}

// sqlFound reads messages ($1, $4, $6), each with its newest text within the readable ranges of versions ($2, $3) of
// its conversation. The conversation of each range is in $7.
var sqlFound = fmt.Sprintf(sqlMessages, `SELECT m.*, n.sort
	FROM unnest($1::text[], $4::text[], $6::bigint[]) WITH ORDINALITY AS n (id, message, version, sort), LATERAL (
		SELECT * FROM chat.messages m WHERE m.conversation_id = n.id AND m.message_id = n.message AND m.version = n.version
		LIMIT 1) m`, "ASC",
	`(SELECT lower, upper FROM unnest($7::text[], $2::bigint[], $3::bigint[]) AS r (id, lower, upper)
		WHERE r.id = m.conversation_id)`)

// Messages reads the messages of candidates, each with its newest readable text. If the texts exceed MaxPageBytes, it
// reads only the first candidates, but at least one. The result read is the number of candidates that it has read. A
// message that does not exist any more is nil, and a deleted message has no text.
func (s *Search) Messages(ctx context.Context, all []Searched, candidates []Candidate) (
	messages []*chatv1.Message, read int, err error) {
	var ids, messageIDs, of []string
	var versions, lower, upper []int64
	ranged := map[int]bool{}
	for _, c := range candidates {
		id := all[c.Of].ID
		ids, messageIDs, versions = append(ids, id), append(messageIDs, c.messageID), append(versions, int64(c.Version))
		if ranged[c.Of] {
			continue
		}
		ranged[c.Of] = true
		l, u := bounds(all[c.Of].Ranges)
		lower, upper = append(lower, l...), append(upper, u...)
		for range l {
			of = append(of, id)
		}
	}
	rows, err := s.tx.Query(ctx, sqlFound, planned, ids, lower, upper, messageIDs, MaxPageBytes, versions, of)
	if err != nil {
		return nil, 0, fmt.Errorf("read found messages: %w", err)
	}
	found, err := pgx.CollectRows(rows, scanMessage)
	if err != nil {
		return nil, 0, fmt.Errorf("read found messages: %w", err)
	}
	messages, read = make([]*chatv1.Message, len(candidates)), len(candidates)
	for _, r := range found {
		i := int(r.sort) - 1
		if messages[i] = r.message; !all[candidates[i].Of].Member {
			hideCurrent(r.message)
		}
		if len(found) < r.count { // the statement has left out messages beyond MaxPageBytes
			read = i + 1
		}
	}
	return messages[:read], read, nil
}
