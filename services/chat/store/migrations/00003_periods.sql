-- +goose Up

-- The rows of small conversations move once in 256 positions instead of once in 1,024, as a page of a list reads the
-- whole of the newest period. The column has another name, so that an instance of an earlier release that still runs
-- cannot put rows into periods of the other length.
ALTER TABLE conversation_members RENAME COLUMN bucket TO period;
UPDATE conversation_members m SET period = c.position >> 8
FROM conversations c WHERE c.conversation_id = m.conversation_id AND NOT m.large;

-- +goose Down
UPDATE conversation_members m SET period = c.position >> 10
FROM conversations c WHERE c.conversation_id = m.conversation_id AND NOT m.large;
ALTER TABLE conversation_members RENAME COLUMN period TO bucket;
