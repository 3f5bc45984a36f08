-- +goose Up

-- Topics of other owners that this service consumes.
CREATE TABLE consumers (
    source       text COLLATE "C" NOT NULL,
    topic        text COLLATE "C" NOT NULL,
    start        bigint NOT NULL, -- position above which this release consumes events
    since        timestamptz, -- events before this time are ignored; null: no event is ignored
    readings_end bigint NOT NULL DEFAULT 0, -- position up to which an earlier release may have applied events
    epoch        integer NOT NULL, -- the topic's epoch when its consumption began
    partitions   integer NOT NULL, -- number of partitions in that epoch
    revision     bigint NOT NULL DEFAULT 0, -- number of changes of the parked streams
    PRIMARY KEY (source, topic)
);

-- The progress of consuming each partition.
CREATE TABLE checkpoints (
    source      text COLLATE "C" NOT NULL,
    topic       text COLLATE "C" NOT NULL,
    partition   integer NOT NULL,
    position    bigint NOT NULL, -- every event up to this position is applied or belongs to a parked stream
    index       integer NOT NULL, -- number of effects of the next event that are applied already
    incarnation text NOT NULL, -- incarnation of the source's log
    epoch       integer NOT NULL,
    partitions  integer NOT NULL, -- number of partitions in that epoch
    PRIMARY KEY (source, topic, partition)
);

-- Changes of a topic's partition count: the new count determines the partitions of the events above the fence. All
-- partitions use the same row, whichever of them noticed the change first.
CREATE TABLE fences (
    source     text COLLATE "C" NOT NULL,
    topic      text COLLATE "C" NOT NULL,
    from_epoch integer NOT NULL,
    to_epoch   integer NOT NULL,
    fence      bigint NOT NULL, -- position of the fence
    partitions integer NOT NULL, -- number of partitions above the fence
    PRIMARY KEY (source, topic, from_epoch)
);

-- Parked streams of other owners. The event that failed and the later events of the stream are not applied.
CREATE TABLE parked_streams (
    source     text COLLATE "C" NOT NULL,
    topic      text COLLATE "C" NOT NULL,
    stream     text COLLATE "C" NOT NULL,
    position   bigint NOT NULL, -- position of the event that failed
    index      integer NOT NULL, -- number of the failed event's effects that are applied already
    version    bigint NOT NULL, -- version of the event that failed
    waiting    bigint NOT NULL, -- number of later events that were passed over
    record     bytea NOT NULL, -- edumatrix.mesh.v1.Record of the event that failed, without its body
    error      text NOT NULL,
    at         timestamptz NOT NULL,
    -- Until this time, no further event of the stream may be passed over, because an operator's retry is about to catch
    -- up with the checkpoint. Null: the stream is not held.
    held_until timestamptz,
    PRIMARY KEY (source, topic, stream)
);

-- An instance of an earlier release that is still running keeps readings instead of checkpoints. It must not apply
-- events any more: the error 57P03 (cannot_connect_now) makes it wait until it is stopped.
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
