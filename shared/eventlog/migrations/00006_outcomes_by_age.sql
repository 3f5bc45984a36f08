-- +goose NO TRANSACTION
-- +goose Up

-- Old outcomes are found by an ordered index. The block ranges of the index before (BRIN) widened as freed pages took new
-- rows, until every pass over old outcomes read the whole table. Commits go on while the index is built; an attempt that
-- was cut off leaves an invalid index, which is dropped first.
DROP INDEX CONCURRENTLY IF EXISTS outcomes_by_time;
CREATE INDEX CONCURRENTLY outcomes_by_time ON outcomes (at);
DROP INDEX CONCURRENTLY IF EXISTS outcomes_by_age;

-- +goose Down
CREATE INDEX outcomes_by_age ON outcomes USING brin (at);
DROP INDEX outcomes_by_time;
