-- +goose Up

-- Names, addresses and ids are compared byte by byte.
CREATE TABLE events (
    position     bigint PRIMARY KEY,
    stream       text COLLATE "C" NOT NULL,
    version      bigint NOT NULL,
    id           uuid NOT NULL,
    type         text NOT NULL,
    topic        text NOT NULL,
    actor        text NOT NULL,
    cause        text NOT NULL, -- command id
    command_type text NOT NULL,
    correlation  text NOT NULL,
    time         timestamptz NOT NULL,
    class        smallint NOT NULL,
    rooms        text[] NOT NULL,
    opens        jsonb, -- [{"Room": …, "Users": […]}, …]
    closes       jsonb,
    subject      text COLLATE "C" NOT NULL, -- what within the stream it is about; empty: the stream itself
    answers      boolean NOT NULL,
    traceparent  text NOT NULL,
    body         bytea NOT NULL,
    personal     bytea, -- the first byte says how the rest is sealed (0: plainly); null: there is none, or redacted
    redacted     boolean NOT NULL DEFAULT false,
    UNIQUE (stream, version) INCLUDE (position)
);
CREATE INDEX events_by_subject ON events (stream, subject, version);

CREATE TABLE event_rooms (
    room     text COLLATE "C" NOT NULL,
    position bigint NOT NULL,
    PRIMARY KEY (room, position)
);

CREATE TABLE outcomes (
    actor      text COLLATE "C" NOT NULL,
    command_id text COLLATE "C" NOT NULL,
    type       text NOT NULL,
    stream     text NOT NULL,
    kind       text NOT NULL,
    version    bigint NOT NULL,
    position   bigint NOT NULL,
    code       text NOT NULL,
    text       text NOT NULL,
    at         timestamptz NOT NULL,
    PRIMARY KEY (actor, command_id)
);
CREATE INDEX outcomes_by_age ON outcomes USING brin (at);

-- Who was in a room from which event to which, both included. Null: still is.
CREATE TABLE memberships (
    room            text COLLATE "C" NOT NULL,
    member          text COLLATE "C" NOT NULL,
    opened_version  bigint NOT NULL,
    opened_position bigint NOT NULL,
    closed_version  bigint,
    closed_position bigint,
    PRIMARY KEY (room, member, opened_position)
);
CREATE UNIQUE INDEX memberships_open ON memberships (member, room) WHERE closed_position IS NULL;

-- How far other owners' streams were read.
CREATE TABLE readings (
    source  text COLLATE "C" NOT NULL,
    stream  text COLLATE "C" NOT NULL,
    version bigint NOT NULL,
    PRIMARY KEY (source, stream)
);

CREATE TABLE projections (
    name     text PRIMARY KEY,
    position bigint NOT NULL
);

-- What is confirmed on the topics: everything up to position, and the last position in each partition.
CREATE TABLE relay (
    single     boolean PRIMARY KEY DEFAULT true CHECK (single), -- row
    position   bigint NOT NULL,
    partitions jsonb NOT NULL -- {"topic": {"partition": position, …}, …}
);
INSERT INTO relay (position, partitions) VALUES (0, '{}');

-- +goose Down
DROP TABLE events, event_rooms, outcomes, memberships, readings, projections, relay;
