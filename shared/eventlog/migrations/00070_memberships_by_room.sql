-- +goose NO TRANSACTION
-- +goose Up

-- This index counts the members of a room without reading its former members. It contains the member because the planner
-- may also choose it for the lookup of one member, which must not read the whole room. It is built concurrently, so that
-- commits continue. An attempt that was interrupted leaves an invalid index, which is dropped first.
DROP INDEX CONCURRENTLY IF EXISTS memberships_by_room;
CREATE INDEX CONCURRENTLY memberships_by_room ON memberships (room, member) WHERE closed_position IS NULL;

-- +goose Down
DROP INDEX memberships_by_room;
