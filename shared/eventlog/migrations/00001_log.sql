-- +goose Up

-- Columns with the collation "C" are compared byte by byte.
CREATE TABLE events (
    position     bigint PRIMARY KEY,
    stream       text COLLATE "C" NOT NULL,
    version      bigint NOT NULL,
    id           uuid NOT NULL,
    type         text NOT NULL,
    topic        text NOT NULL,
    actor        text NOT NULL,
    cause        text NOT NULL, -- id of what caused the event: a command, or another owner's event
    command_type text NOT NULL,
    correlation  text NOT NULL,
    time         timestamptz NOT NULL,
    class        smallint NOT NULL,
    rooms        text[] NOT NULL,
    opens        jsonb, -- [{"Room": …, "Users": […]}, …]
    closes       jsonb,
    subject      text COLLATE "C" NOT NULL, -- the part of the stream that the event is about; empty: the stream itself
    answers      boolean NOT NULL,
    traceparent  text NOT NULL,
    body         bytea NOT NULL,
    personal     bytea, -- the first byte is the encryption of the rest (0: none); null: no personal fields, or redacted
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

-- Membership intervals: from the event that added a user to a room to the event that removed the user, both included.
-- The closed columns are null while the user is in the room.
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

-- The version up to which this owner has applied each stream of another owner. Later releases use checkpoints instead.
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

-- The state of the relay. The broker has confirmed every event up to the position in the column position. The column
-- partitions contains the position of the newest record in each partition.
CREATE TABLE relay (
    single     boolean PRIMARY KEY DEFAULT true CHECK (single), -- there is only one row
    position   bigint NOT NULL,
    partitions jsonb NOT NULL -- {"topic": {"partition": position, …}, …}
);
INSERT INTO relay (position, partitions) VALUES (0, '{}');

-- +goose Down
DROP TABLE events, event_rooms, outcomes, memberships, readings, projections, relay;
