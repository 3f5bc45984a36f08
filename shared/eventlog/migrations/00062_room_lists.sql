-- +goose Up

-- For users with many rooms: the rooms that a user was in as of a position, sorted and separated by commas (names of
-- rooms contain no commas). Readers write a list when they had to read many memberships, so that the next reader reads
-- only the memberships that have changed since. Without the list, the answer is the same, and takes longer.
CREATE TABLE room_lists (
    member   text COLLATE "C" PRIMARY KEY,
    position bigint NOT NULL,
    rooms    text COLLATE "C" NOT NULL
);
-- Lists are stored uncompressed, because decompressing a list would take longer than reading it.
ALTER TABLE room_lists ALTER COLUMN rooms SET STORAGE EXTERNAL;

-- This index finds the memberships of a user that were opened above a position. It includes the room, so that the query
-- reads only the index.
CREATE INDEX memberships_opened ON memberships (member, opened_position) INCLUDE (room) WHERE closed_position IS NULL;

-- +goose Down
DROP INDEX memberships_opened;
DROP TABLE room_lists;
