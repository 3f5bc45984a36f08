-- +goose Up

-- The time from which the event is delivered without its personal fields. Null: the event does not expire.
ALTER TABLE events ADD COLUMN expires timestamptz;

-- Timers: commands to be sent at a later time. The table contains the timers that the events of each stream have set,
-- without those that were canceled or sent. The generation is the version of the event that set the timer.
CREATE TABLE timers (
    stream     text COLLATE "C" NOT NULL,
    key        text COLLATE "C" NOT NULL,
    generation bigint NOT NULL,
    due        timestamptz NOT NULL,
    command    text NOT NULL,
    body       bytea NOT NULL,
    command_id text COLLATE "C" NOT NULL,
    PRIMARY KEY (stream, key)
);
CREATE INDEX timers_by_due ON timers (due);

-- +goose Down
DROP TABLE timers;
ALTER TABLE events DROP COLUMN expires;
