-- +goose Up
CREATE TABLE conversations (
    conversation_id text PRIMARY KEY,
    kind            integer NOT NULL,
    title           text NOT NULL,
    members         text[] NOT NULL,
    history_from_joining boolean NOT NULL,
    version         bigint NOT NULL,
    position        bigint NOT NULL,
    changed_at      timestamptz NOT NULL
);

-- A user's list of conversations is read from this table, the newest conversation first.
CREATE TABLE conversation_members (
    member          text NOT NULL,
    conversation_id text NOT NULL REFERENCES conversations,
    PRIMARY KEY (member, conversation_id)
);

CREATE TABLE messages (
    conversation_id text NOT NULL,
    version         bigint NOT NULL,
    message_id      text NOT NULL,
    author          text NOT NULL,
    body            text NOT NULL,
    sent_at         timestamptz NOT NULL,
    deleted         boolean NOT NULL DEFAULT false,
    PRIMARY KEY (conversation_id, version)
);
-- Not unique: a command that is sent again after its outcome was deleted sends a message with the same id.
CREATE INDEX messages_by_id ON messages (conversation_id, message_id);

-- The edits of messages. Every edit is kept, because a user who has left reads the text as it was when they left.
CREATE TABLE edits (
    conversation_id text NOT NULL,
    message_id      text NOT NULL,
    version         bigint NOT NULL,
    body            text NOT NULL,
    edited_at       timestamptz NOT NULL,
    PRIMARY KEY (conversation_id, message_id, version)
);

-- +goose Down
DROP TABLE edits, messages, conversation_members, conversations;
