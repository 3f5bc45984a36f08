-- +goose Up

-- What the command was that an outcome stands for: base64 of half a SHA-256. Empty, in rows of earlier releases: unknown.
ALTER TABLE outcomes ADD COLUMN digest text COLLATE "C" NOT NULL DEFAULT '';

-- +goose Down
ALTER TABLE outcomes DROP COLUMN digest;
