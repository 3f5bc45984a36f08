package store

import (
	"context"
	"fmt"

	"github.com/jackc/pgx/v5"
	"google.golang.org/protobuf/types/known/timestamppb"

	"github.com/edumatrix/interlinked/proto/catalog"
	chatv1 "github.com/edumatrix/interlinked/proto/gen/edumatrix/chat/v1"
)

// sqlPins finds the pinned messages that were sent within the readable ranges ($2, $3) and pinned before a version
// ($6).
var sqlPins = fmt.Sprintf(sqlMessages, `SELECT m.*, p.version AS sort FROM chat.pins p, LATERAL (
		SELECT * FROM chat.messages m WHERE m.conversation_id = $1 AND m.message_id = p.message_id AND NOT m.deleted
		ORDER BY m.version DESC LIMIT 1) m
	WHERE p.conversation_id = $1 AND p.version < $6 AND EXISTS (
		SELECT FROM unnest($2::bigint[], $3::bigint[]) AS readable (lower, upper) WHERE m.version BETWEEN lower AND upper)
	ORDER BY p.version DESC LIMIT $4`, "DESC", sqlReadable)

// Pins returns a page of the pinned messages of a conversation whose versions are within ranges, the one that was
// pinned last first. Only messages that were pinned before the version below are returned. The result next is the value
// of the parameter below for the following page; on the last page, the result is 0.
func (s *Store) Pins(ctx context.Context, id string, readable []Range, below catalog.Version, limit int) (
	pins []*chatv1.Pin, next catalog.Version, err error) {
	lower, upper := bounds(readable)
	rows, err := s.pool.Query(ctx, sqlPins, planned, id, lower, upper, limit+1, MaxPageBytes, below)
	if err != nil {
		return nil, 0, fmt.Errorf("read pins of %s: %w", id, err)
	}
	all, err := pgx.CollectRows(rows, scanMessage)
	if err != nil {
		return nil, 0, fmt.Errorf("read pins of %s: %w", id, err)
	}
	if len(all) == 0 {
		return nil, 0, nil
	}
	all, next = cutTo(all, limit, all[0].count, func(r messageRow) catalog.Version { return r.sort })
	for _, r := range all {
		pins = append(pins, &chatv1.Pin{Message: r.message, PinnedBy: r.pinnedBy, PinnedAt: timestamppb.New(*r.pinnedAt)})
	}
	return pins, next, nil
}
