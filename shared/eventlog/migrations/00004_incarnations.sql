-- +goose Up

-- Histories of the log. The last row is the current one. A new one begins when the database turns out to have lost
-- commits that were already published (a restored backup, a failover to a replica that was behind): positions then go
-- on above the floor, so that none is ever given to two events.
CREATE TABLE incarnations (
    number integer PRIMARY KEY, -- 1, 2, …
    id     text NOT NULL, -- random
    head   bigint NOT NULL, -- the newest position that survived from before
    floor  bigint NOT NULL, -- positions of this incarnation are above it
    since  timestamptz NOT NULL
);
INSERT INTO incarnations SELECT 1, left(replace(gen_random_uuid()::text, '-', ''), 12), 0, 0, now();

-- The partition count by which the relay hashes each topic, and the epoch of that count.
ALTER TABLE relay ADD COLUMN topics jsonb NOT NULL DEFAULT '{}'; -- {"topic": {"Epoch": 1, "Count": 3, …}, …}

-- +goose Down
ALTER TABLE relay DROP COLUMN topics;
DROP TABLE incarnations;
