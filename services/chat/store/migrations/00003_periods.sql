-- +goose Up

-- A period of a small conversation becomes 256 positions long instead of 1,024, because a page of a list reads the
-- whole newest period. The column gets a new name so that an instance of an earlier release that is still running fails
-- instead of writing periods of the old length.
ALTER TABLE conversation_members RENAME COLUMN bucket TO period;
UPDATE conversation_members m SET period = c.position >> 8
FROM conversations c WHERE c.conversation_id = m.conversation_id AND NOT m.large;

-- +goose Down
UPDATE conversation_members m SET period = c.position >> 10
FROM conversations c WHERE c.conversation_id = m.conversation_id AND NOT m.large;
ALTER TABLE conversation_members RENAME COLUMN period TO bucket;
