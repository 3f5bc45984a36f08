package store

import (
	"context"
	"fmt"
	"time"

	"github.com/jackc/pgx/v5"
	"google.golang.org/protobuf/types/known/timestamppb"

	"github.com/edumatrix/interlinked/proto/catalog"
	chatv1 "github.com/edumatrix/interlinked/proto/gen/edumatrix/chat/v1"
)

// sqlEdits reads the texts of the message $2 of the conversation $1 that have versions within the readable ranges ($3,
// $4) and above a version ($5): at most one page ($6), which it cuts where the texts exceed a number of bytes ($7), but
// not before the first text. The column count is the number of texts without this cut. If the message exists, but has
// no such texts, the statement returns one row without a version.
const sqlEdits = `WITH message AS (
		SELECT * FROM chat.messages m WHERE conversation_id = $1 AND message_id = $2 AND EXISTS (
			SELECT FROM unnest($3::bigint[], $4::bigint[]) AS readable (lower, upper) WHERE m.version BETWEEN lower AND upper)
		ORDER BY version DESC LIMIT 1),
	page AS (
		SELECT * FROM (
			SELECT version, body, sent_at AS at FROM message WHERE NOT deleted AND version > $5
			UNION ALL
			SELECT e.* FROM message m, unnest($3::bigint[], $4::bigint[]) AS readable (lower, upper), LATERAL (
				SELECT version, body, edited_at FROM chat.edits e
				WHERE NOT m.deleted AND e.conversation_id = $1 AND e.message_id = $2
					AND e.version > greatest($5, m.version) AND e.version >= lower AND e.version <= upper
				ORDER BY e.version LIMIT $6) e) t
		ORDER BY version LIMIT $6),
	sized AS (
		SELECT *, count(*) OVER () AS count, row_number() OVER (ORDER BY version) AS row,
			sum(octet_length(body)) OVER (ORDER BY version ROWS UNBOUNDED PRECEDING) AS bytes
		FROM page)
	SELECT s.version, s.body, s.at, s.count FROM message LEFT JOIN sized s ON s.bytes <= $7 OR s.row = 1 ORDER BY s.version`

// Edits returns a page of the texts of a message whose versions are within ranges and above the parameter after, the
// oldest text first. For the following page, pass the result next as the parameter after; on the last page, the
// result next is 0. Edits also reports whether the message exists within the ranges.
func (s *Store) Edits(ctx context.Context, id, message string, readable []Range, after catalog.Version, limit int) (
	edits []*chatv1.Edit, next catalog.Version, exists bool, err error) {
	lower, upper := bounds(readable)
	rows, err := s.pool.Query(ctx, sqlEdits, planned, id, message, lower, upper, after, limit+1, MaxPageBytes)
	if err != nil {
		return nil, 0, false, fmt.Errorf("read edits of %s in %s: %w", message, id, err)
	}
	var version *int64
	var body *string
	var at *time.Time
	var count *int
	_, err = pgx.ForEachRow(rows, []any{&version, &body, &at, &count}, func() error {
		if exists = true; version != nil { // null if there is no text
			edits = append(edits, &chatv1.Edit{Version: *version, Body: *body, At: timestamppb.New(*at)})
		}
		return nil
	})
	if err != nil {
		return nil, 0, false, fmt.Errorf("read edits of %s in %s: %w", message, id, err)
	}
	if len(edits) == 0 {
		return nil, 0, exists, nil
	}
	edits, next = cutTo(edits, limit, *count, func(e *chatv1.Edit) catalog.Version { return catalog.Version(e.Version) })
	return edits, next, exists, nil
}
