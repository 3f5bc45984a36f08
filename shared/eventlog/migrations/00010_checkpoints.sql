-- +goose Up

-- Topics of other owners that this service consumes.
CREATE TABLE consumers (
    source       text COLLATE "C" NOT NULL,
    topic        text COLLATE "C" NOT NULL,
    start        bigint NOT NULL, -- position: what is not above it was never consumed, or by an earlier release
    since        timestamptz, -- events before this time are passed over; null: none
    readings_end bigint NOT NULL DEFAULT 0, -- up to this position an earlier release may have applied events (readings)
    epoch        integer NOT NULL, -- of the topic when its consumption began
    partitions   integer NOT NULL, -- in that epoch
    revision     bigint NOT NULL DEFAULT 0, -- rises with each change of which streams are parked, and from where on
    PRIMARY KEY (source, topic)
);

-- Up to where each partition was consumed.
CREATE TABLE checkpoints (
    source      text COLLATE "C" NOT NULL,
    topic       text COLLATE "C" NOT NULL,
    partition   integer NOT NULL,
    position    bigint NOT NULL, -- everything up to here is applied
    index       integer NOT NULL, -- of the first event above, so many effects are applied
    incarnation text NOT NULL, -- of the source's log
    epoch       integer NOT NULL,
    partitions  integer NOT NULL, -- in that epoch
    PRIMARY KEY (source, topic, partition)
);

-- Where a topic's partition count changed: what is above fence is hashed by the new count. All partitions go by the
-- same row, whichever of them found the change first.
CREATE TABLE fences (
    source     text COLLATE "C" NOT NULL,
    topic      text COLLATE "C" NOT NULL,
    from_epoch integer NOT NULL,
    to_epoch   integer NOT NULL,
    fence      bigint NOT NULL, -- position
    partitions integer NOT NULL, -- from there on
    PRIMARY KEY (source, topic, from_epoch)
);

-- Streams of other owners that are parked: none of their events from a position on is applied.
CREATE TABLE parked_streams (
    source     text COLLATE "C" NOT NULL,
    topic      text COLLATE "C" NOT NULL,
    stream     text COLLATE "C" NOT NULL,
    position   bigint NOT NULL, -- of the event that failed
    index      integer NOT NULL, -- so many of its effects are applied
    version    bigint NOT NULL, -- its version
    waiting    bigint NOT NULL, -- events behind it that were passed over
    record     bytea NOT NULL, -- edumatrix.mesh.v1.Record of the event that failed, without what people wrote
    error      text NOT NULL,
    at         timestamptz NOT NULL,
    held_until timestamptz, -- until then no further event of the stream may be passed over: a retry is about to end
    PRIMARY KEY (source, topic, stream)
);

-- An instance of an earlier release that still runs keeps readings instead of checkpoints. It must not apply anything
-- any more: 57P03 (cannot_connect_now) makes it wait until it is stopped.
-- +goose StatementBegin
CREATE FUNCTION readings_are_closed() RETURNS trigger LANGUAGE plpgsql AS $$
BEGIN
    RAISE EXCEPTION 'a newer release of this service keeps checkpoints instead of readings: stop this instance'
        USING ERRCODE = '57P03';
END $$;
-- +goose StatementEnd
CREATE TRIGGER readings_are_closed BEFORE INSERT OR UPDATE ON readings
    FOR EACH STATEMENT EXECUTE FUNCTION readings_are_closed();

-- +goose Down
DROP TRIGGER readings_are_closed ON readings;
DROP FUNCTION readings_are_closed;
DROP TABLE parked_streams, fences, checkpoints, consumers;
