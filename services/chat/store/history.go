package store

import (
	"context"
	"fmt"
	"slices"
	"time"

	"github.com/jackc/pgx/v5"
	"google.golang.org/protobuf/types/known/timestamppb"

	"github.com/edumatrix/interlinked/proto/catalog"
	chatv1 "github.com/edumatrix/interlinked/proto/gen/edumatrix/chat/v1"
)

// Range is a range of versions, both ends included.
type Range struct{ From, To catalog.Version }

// sqlMessages reads messages in three steps. The first step, which is the first verb, finds at most one page of
// messages and their order. For each of them, the second step looks up by index the newest edit within the readable
// ranges, which are the third verb. The third step cuts the page where the texts exceed a number of bytes ($5), but
// not before the first message. The column count is the number of messages that the page would have without this cut.
const sqlMessages = `WITH found AS (%[1]s),
	page AS (
		SELECT m.sort, m.message_id, m.version, m.author, coalesce(e.body, m.body) AS body, m.sent_at, e.edited_at,
			m.deleted, m.reply_to, m.thread_id, coalesce(e.mentioned, m.mentioned) AS mentioned,
			coalesce(e.mentions_all, m.mentions_all) AS mentions_all, m.reply_count, m.last_reply_at, m.last_reply_by,
			coalesce(p.pinned_by, '') AS pinned_by, p.pinned_at
		FROM found m
		LEFT JOIN LATERAL (
			SELECT newest.* FROM %[3]s AS readable (lower, upper), LATERAL (
				SELECT version, body, edited_at, mentioned, mentions_all FROM chat.edits
				WHERE conversation_id = m.conversation_id AND message_id = m.message_id
					AND version >= greatest(lower, m.version + 1) AND version <= upper
				ORDER BY version DESC LIMIT 1) newest
			ORDER BY newest.version DESC LIMIT 1) e ON NOT m.deleted
		LEFT JOIN LATERAL (
			SELECT pinned_by, pinned_at FROM chat.pins
			WHERE conversation_id = m.conversation_id AND message_id = m.message_id LIMIT 1) p ON true),
	sized AS (
		SELECT *, count(*) OVER () AS count, sum(octet_length(body)) OVER (
			ORDER BY sort %[2]s ROWS UNBOUNDED PRECEDING) AS bytes, row_number() OVER (ORDER BY sort %[2]s) AS row
		FROM page)
	SELECT message_id, version, author, body, sent_at, edited_at, deleted, reply_to, thread_id, mentioned, mentions_all,
		reply_count, last_reply_at, last_reply_by, pinned_by, pinned_at, sort, count FROM sized
	WHERE bytes <= $5 OR row = 1 ORDER BY sort %[2]s`

// sqlReadable are the readable ranges of a statement that reads messages of one conversation.
const sqlReadable = "unnest($2::bigint[], $3::bigint[])"

// sqlInRanges finds at most one page ($4) of messages of the conversation $1. They are in the thread $8 and in some
// ranges of versions ($6, $7). It reads at most one page from each range, and no row outside of the ranges.
const sqlInRanges = `SELECT m.*, m.version AS sort FROM unnest($6::bigint[], $7::bigint[]) AS range (lower, upper), LATERAL (
		SELECT * FROM chat.messages m
		WHERE m.conversation_id = $1 AND m.thread_id = $8 AND m.version >= lower AND m.version <= upper
		ORDER BY m.version %[1]s LIMIT $4) m
	ORDER BY m.version %[1]s LIMIT $4`

// maxRanges is the maximum number of ranges that one statement reads. Each range costs an index lookup and at most the
// rows of one page.
const maxRanges = 16

var sqlOldest = fmt.Sprintf(sqlMessages, fmt.Sprintf(sqlInRanges, "ASC"), "ASC", sqlReadable)
var sqlNewest = fmt.Sprintf(sqlMessages, fmt.Sprintf(sqlInRanges, "DESC"), "DESC", sqlReadable)

// Page selects the messages to read.
type Page struct {
	// ThreadID is the first message of the thread to read; empty: the messages that belong to no thread.
	ThreadID string
	// After and Before bound the versions of the messages; both bounds are exclusive.
	After, Before catalog.Version
	// Ranges are the readable versions, ascending and disjoint.
	Ranges []Range
	// Member reports whether the reader is a member now. Former members get neither the numbers of replies nor the pins,
	// because only the current ones are stored, and these may have changed since they left.
	Member bool
	// If FromAfter is true, the messages nearest to After are read, otherwise the messages nearest to Before.
	FromAfter bool
	Limit     int
}

// clamped returns the parts of the ranges that lie between After and Before, in the order in which the page is filled:
// ascending if FromAfter is true, otherwise descending.
func (p Page) clamped() (all []Range) {
	for _, r := range p.Ranges {
		if r.To > p.After && r.From < p.Before {
			all = append(all, Range{max(r.From, p.After+1), min(r.To, p.Before-1)})
		}
	}
	all = slices.DeleteFunc(all, func(r Range) bool { return r.From > r.To })
	if !p.FromAfter {
		slices.Reverse(all)
	}
	return all
}

// Messages reads a page, the oldest message first, and reports whether there are more messages beyond it. The text of a
// message is the newest one within the ranges. A deleted message has no text, even if it was deleted outside of the
// ranges.
func (s *Store) Messages(ctx context.Context, id string, p Page) (all []*chatv1.Message, more bool, err error) {
	statement := sqlNewest
	if p.FromAfter {
		statement = sqlOldest
	}
	readableLower, readableUpper := bounds(p.Ranges)
	bytes := 0
	for ranges := range slices.Chunk(p.clamped(), maxRanges) {
		lower, upper := bounds(ranges)
		rows, err := s.pool.Query(ctx, statement, planned, id, readableLower, readableUpper,
			p.Limit+1-len(all), // one more than the limit, to see whether there are more
			MaxPageBytes-bytes, lower, upper, p.ThreadID)
		if err != nil {
			return nil, false, fmt.Errorf("read messages of %s: %w", id, err)
		}
		count, before := 0, len(all)
		found, err := pgx.CollectRows(rows, func(row pgx.CollectableRow) (*chatv1.Message, error) {
			r, err := scanMessage(row)
			if count = r.count; !p.Member {
				hideCurrent(r.message)
			}
			bytes += len(r.message.Body)
			return r.message, err
		})
		if err != nil {
			return nil, false, fmt.Errorf("read messages of %s: %w", id, err)
		}
		if before > 0 && bytes > MaxPageBytes {
			// So that no page is empty, the statement returns its first row even if the text of this row exceeds the
			// rest of MaxPageBytes. This page has messages already, so leave the row out. The next page begins with it.
			found = nil
		}
		all = append(all, found...)
		cutByBytes := before+count > len(all)
		if cutByBytes || len(all) > p.Limit {
			all, more = all[:min(len(all), p.Limit)], true
			break
		}
	}
	if !p.FromAfter {
		slices.Reverse(all)
	}
	return all, more, nil
}

// messageRow is a row that sqlMessages returns.
type messageRow struct {
	message  *chatv1.Message
	pinnedBy string // empty if the message is not pinned
	pinnedAt *time.Time
	sort     catalog.Version // the value by which the rows are ordered
	count    int
}

func scanMessage(row pgx.CollectableRow) (r messageRow, err error) {
	m := &chatv1.Message{}
	var sent time.Time
	var edited, replied *time.Time
	err = row.Scan(&m.MessageId, &m.Version, &m.Author, &m.Body, &sent, &edited, &m.Deleted, &m.ReplyTo, &m.ThreadId,
		&m.MentionedUserIds, &m.MentionsAll, &m.ReplyCount, &replied, &m.LastReplyBy, &r.pinnedBy, &r.pinnedAt, &r.sort,
		&r.count)
	m.SentAt, m.EditedAt, m.LastReplyAt = timestamppb.New(sent), optionalTime(edited), optionalTime(replied)
	m.Pinned = r.pinnedBy != ""
	r.message = m
	return r, err
}

func optionalTime(t *time.Time) *timestamppb.Timestamp {
	if t == nil {
		return nil
	}
	return timestamppb.New(*t)
}

// hideCurrent removes the properties of a message that change after a reader has left the conversation.
func hideCurrent(m *chatv1.Message) {
	m.ReplyCount, m.LastReplyAt, m.LastReplyBy, m.Pinned = 0, nil, "", false
}

// cutTo returns at most as many rows as the parameter limit, and the place of the last of them if there are more. The
// parameter count is the number of rows that the statement found before it cut them at MaxPageBytes. The function place
// returns the place of a row in the order of the page. There has to be at least one row.
func cutTo[T any](rows []T, limit, count int, place func(T) catalog.Version) (page []T, next catalog.Version) {
	page = rows[:min(limit, len(rows))]
	if len(page) < count {
		next = place(page[len(page)-1])
	}
	return page, next
}

// bounds returns the lower and upper ends of ranges as two columns.
func bounds(all []Range) (lower, upper []int64) {
	for _, r := range all {
		lower, upper = append(lower, int64(r.From)), append(upper, int64(r.To))
	}
	return lower, upper
}
