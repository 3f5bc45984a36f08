-- +goose Up

-- The digest of the command: the first half of a SHA-256 hash, in base64. Rows of earlier releases have no digest; in
-- them, the column is empty.
ALTER TABLE outcomes ADD COLUMN digest text COLLATE "C" NOT NULL DEFAULT '';

-- +goose Down
ALTER TABLE outcomes DROP COLUMN digest;
