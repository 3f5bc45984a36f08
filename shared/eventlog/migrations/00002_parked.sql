-- +goose Up

-- Events of other owners that could not be applied, and later events of the same streams. Records are stored without
-- their bodies: personal texts remain in the owner's log, where they can be redacted.
CREATE TABLE parked (
    source  text COLLATE "C" NOT NULL,
    stream  text COLLATE "C" NOT NULL,
    version bigint NOT NULL,
    record  bytea NOT NULL, -- edumatrix.mesh.v1.Record
    error   text NOT NULL, -- empty: an earlier event of the stream failed
    at      timestamptz NOT NULL,
    PRIMARY KEY (source, stream, version)
);

-- Dead letters that an operator has dealt with.
CREATE TABLE dropped_letters (
    partition integer NOT NULL,
    "offset"  bigint NOT NULL,
    id        text COLLATE "C" NOT NULL,
    at        timestamptz NOT NULL,
    PRIMARY KEY (partition, "offset", id)
);

-- +goose Down
DROP TABLE parked, dropped_letters;
