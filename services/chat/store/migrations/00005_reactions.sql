-- +goose Up

-- The reactions to messages that are not deleted, in the order in which each was first added. The lists emojis and counts
-- have the same length.
CREATE TABLE reaction_counts (
    conversation_id text NOT NULL,
    message_id      text NOT NULL,
    -- The version of the message's reactions.
    version         bigint NOT NULL,
    position        bigint NOT NULL,
    emojis          text[] NOT NULL,
    counts          integer[] NOT NULL,
    PRIMARY KEY (conversation_id, message_id)
);

-- One row for each reaction of each user to a message that is not deleted.
CREATE TABLE reactions (
    conversation_id text NOT NULL,
    message_id      text NOT NULL,
    member          text NOT NULL,
    emoji           text NOT NULL,
    -- The version of the message's reactions at which this one was added.
    version         bigint NOT NULL,
    position        bigint NOT NULL,
    reacted_at      timestamptz NOT NULL,
    PRIMARY KEY (conversation_id, message_id, member, emoji)
);
-- The users who have reacted to a message, and those who have added one reaction, are listed in the order of time.
CREATE INDEX reactions_by_version ON reactions (conversation_id, message_id, version);
CREATE INDEX reactions_by_emoji ON reactions (conversation_id, message_id, emoji, version);

-- +goose Down
DROP TABLE reactions, reaction_counts;
