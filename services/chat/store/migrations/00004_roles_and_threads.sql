-- +goose Up
ALTER TABLE conversations ADD COLUMN picture text NOT NULL DEFAULT '';
-- The column gets a new name so that an instance of an earlier release that is still running fails instead of ignoring the
-- new fields of events.
ALTER TABLE conversations RENAME COLUMN changed_at TO newest_at;

-- The numbers of roles are those of chat.v1.Role. Before this migration, the owner of a group was the member who had
-- joined first, and no other member had a role.
ALTER TABLE conversation_members ADD COLUMN role integer NOT NULL DEFAULT 3;
UPDATE conversation_members m SET role = 1
FROM conversations c, LATERAL (
    SELECT member FROM conversation_members o WHERE o.conversation_id = c.conversation_id
    ORDER BY joined_version, joined_index LIMIT 1) first
WHERE c.kind = 2 AND m.conversation_id = c.conversation_id AND m.member = first.member;

ALTER TABLE messages
    ADD COLUMN reply_to text NOT NULL DEFAULT '',
    -- The first message of the thread to which the message belongs; '' if it belongs to no thread.
    ADD COLUMN thread_id text NOT NULL DEFAULT '',
    ADD COLUMN mentioned text[] NOT NULL DEFAULT '{}',
    ADD COLUMN mentions_all boolean NOT NULL DEFAULT false,
    -- The messages in the thread of this message.
    ADD COLUMN reply_count integer NOT NULL DEFAULT 0,
    ADD COLUMN last_reply_at timestamptz,
    ADD COLUMN last_reply_by text NOT NULL DEFAULT '';
-- A page of a thread, and a page of the messages that belong to no thread, are ranges of this index.
ALTER TABLE messages DROP CONSTRAINT messages_pkey, ADD PRIMARY KEY (conversation_id, thread_id, version);
ALTER TABLE edits
    ADD COLUMN mentioned text[] NOT NULL DEFAULT '{}',
    ADD COLUMN mentions_all boolean NOT NULL DEFAULT false;

-- A conversation has at most 100 pins, so they need no index by version. With one, the planner would also choose it for the
-- lookup of one message.
CREATE TABLE pins (
    conversation_id text NOT NULL,
    message_id      text NOT NULL,
    -- The version at which the message was pinned.
    version         bigint NOT NULL,
    pinned_by       text NOT NULL,
    pinned_at       timestamptz NOT NULL,
    PRIMARY KEY (conversation_id, message_id)
);

-- +goose Down
DROP TABLE pins;
ALTER TABLE edits DROP COLUMN mentioned, DROP COLUMN mentions_all;
ALTER TABLE messages DROP CONSTRAINT messages_pkey, ADD PRIMARY KEY (conversation_id, version);
ALTER TABLE messages DROP COLUMN reply_to, DROP COLUMN thread_id, DROP COLUMN mentioned, DROP COLUMN mentions_all,
    DROP COLUMN reply_count, DROP COLUMN last_reply_at, DROP COLUMN last_reply_by;
ALTER TABLE conversation_members DROP COLUMN role;
ALTER TABLE conversations RENAME COLUMN newest_at TO changed_at;
ALTER TABLE conversations DROP COLUMN picture;
