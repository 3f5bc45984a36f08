-- +goose NO TRANSACTION
-- +goose Up

-- This index finds old events of counters (class 2), which are deleted once newer events have superseded them. An event
-- about a subject, such as a user's reactions to a message, is not superseded by an event about another subject. It is
-- built concurrently, so that commits continue. An attempt that was interrupted leaves an invalid index, which is
-- dropped first.
DROP INDEX CONCURRENTLY IF EXISTS events_of_counters;
CREATE INDEX CONCURRENTLY events_of_counters ON events (time, position) WHERE class = 2 AND subject = '';

-- +goose Down
DROP INDEX events_of_counters;
