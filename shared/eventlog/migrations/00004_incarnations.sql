-- +goose Up

-- Incarnations of the log. The last row is the current one. A new incarnation begins when the database has lost commits
-- that were already published, because of a restored backup or a failover to a replica that was behind. Its positions
-- are above the floor, so that no position is ever given to two events.
CREATE TABLE incarnations (
    number integer PRIMARY KEY, -- 1, 2, …
    id     text NOT NULL, -- random
    head   bigint NOT NULL, -- the newest position that was not lost
    floor  bigint NOT NULL, -- positions of this incarnation are above the floor
    since  timestamptz NOT NULL
);
INSERT INTO incarnations SELECT 1, left(replace(gen_random_uuid()::text, '-', ''), 12), 0, 0, now();

-- For each topic, the number of partitions that determines the partition of each stream, and the epoch in which the
-- topic has this number.
ALTER TABLE relay ADD COLUMN topics jsonb NOT NULL DEFAULT '{}'; -- {"topic": {"Epoch": 1, "Count": 3, …}, …}

-- +goose Down
ALTER TABLE relay DROP COLUMN topics;
DROP TABLE incarnations;
