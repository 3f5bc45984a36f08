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

// sqlMessages reads messages of the conversation $1: at most one page ($6) from each range ($2, $3), and no row outside
// of the ranges. For each message it looks up by index the newest edit within the readable ranges ($4, $5). It cuts the
// page where the texts exceed a number of bytes ($7), but not before the first message. The column count is the number
// of messages that the page would have without this cut.
const (
	sqlMessages = `WITH found AS (
			SELECT m.* FROM unnest($2::bigint[], $3::bigint[]) AS range (lower, upper), LATERAL (
				SELECT * FROM chat.messages m WHERE m.conversation_id = $1 AND m.version >= lower AND m.version <= upper
				ORDER BY m.version %[1]s LIMIT $6) m
			ORDER BY m.version %[1]s LIMIT $6),
		page AS (
			SELECT m.message_id, m.version, m.author, coalesce(e.body, m.body) AS body, m.sent_at, e.edited_at, m.deleted
			FROM found m LEFT JOIN LATERAL (
				SELECT newest.* FROM unnest($4::bigint[], $5::bigint[]) AS readable (lower, upper), LATERAL (
					SELECT version, body, edited_at FROM chat.edits
					WHERE conversation_id = $1 AND message_id = m.message_id
						AND version >= greatest(lower, m.version + 1) AND version <= upper
					ORDER BY version DESC LIMIT 1) newest
				ORDER BY newest.version DESC LIMIT 1) e ON NOT m.deleted),
		sized AS (
			SELECT *, count(*) OVER () AS count, sum(octet_length(body)) OVER (
				ORDER BY version %[1]s ROWS UNBOUNDED PRECEDING) AS bytes, row_number() OVER (ORDER BY version %[1]s) AS row
			FROM page)
		SELECT message_id, version, author, body, sent_at, edited_at, deleted, count FROM sized
		WHERE bytes <= $7 OR row = 1 ORDER BY version %[1]s`
	// maxRanges is the maximum number of ranges that one statement reads. Each range costs an index lookup and at most
	// the rows of one page.
	maxRanges = 16
)

var sqlOldest, sqlNewest = fmt.Sprintf(sqlMessages, "ASC"), fmt.Sprintf(sqlMessages, "DESC")

// Page selects the messages to read.
type Page struct {
	// After and Before bound the versions of the messages; both bounds are exclusive.
	After, Before catalog.Version
	// Ranges are the readable versions, ascending and disjoint.
	Ranges []Range
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
		rows, err := s.pool.Query(ctx, statement, planned, id, lower, upper, readableLower, readableUpper,
			p.Limit+1-len(all), MaxPageBytes-bytes) // one more than the limit, to see whether there are more
		if err != nil {
			return nil, false, fmt.Errorf("read messages of %s: %w", id, err)
		}
		count, before := 0, len(all)
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

// bounds returns the lower and upper ends of ranges as two columns.
func bounds(all []Range) (lower, upper []int64) {
	for _, r := range all {
		lower, upper = append(lower, int64(r.From)), append(upper, int64(r.To))
	}
	return lower, upper
}
