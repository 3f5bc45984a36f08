-- +goose Up

-- Events of other owners that could not be taken, and those of the same streams that wait behind them. Of a record only
-- the headers are kept: what people wrote stays in its owner's log, where it can be redacted.
CREATE TABLE parked (
    source  text COLLATE "C" NOT NULL,
    stream  text COLLATE "C" NOT NULL,
    version bigint NOT NULL,
    record  bytea NOT NULL, -- edumatrix.mesh.v1.Record
    error   text NOT NULL, -- empty: it waits behind another
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
