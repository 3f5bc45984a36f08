-- +goose Up

-- From when on an event is not shown any more. Null: it stays.
ALTER TABLE events ADD COLUMN expires timestamptz;

-- Commands that are sent at a time: what the events of each stream have set and not cancelled, without those that were
-- sent. The generation is the version of the event that set it.
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
