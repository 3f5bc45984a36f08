-- +goose NO TRANSACTION
-- +goose Up

-- A B-tree index finds old outcomes. It replaces a BRIN index, which stores the lowest and the highest time of each
-- block range. New rows filled freed pages, so that block ranges contained old and new rows, until every search for old
-- outcomes read the whole table. The new index is built concurrently, so that commits continue. An attempt that was
-- interrupted leaves an invalid index, which is dropped first.
DROP INDEX CONCURRENTLY IF EXISTS outcomes_by_time;
CREATE INDEX CONCURRENTLY outcomes_by_time ON outcomes (at);
DROP INDEX CONCURRENTLY IF EXISTS outcomes_by_age;

-- +goose Down
CREATE INDEX outcomes_by_age ON outcomes USING brin (at);
DROP INDEX outcomes_by_time;
