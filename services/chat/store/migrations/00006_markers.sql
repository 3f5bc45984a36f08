-- +goose Up

-- The places up to which users have read conversations.
CREATE TABLE markers (
    conversation_id text NOT NULL,
    member          text NOT NULL,
    up_to           bigint NOT NULL,
    -- The highest value that up_to has ever had.
    seen_up_to      bigint NOT NULL,
    PRIMARY KEY (conversation_id, member)
);

-- One row for each user whom the newest text of a message mentions, except its author. If the text mentions all members,
-- there is only one row, whose member is ''.
CREATE TABLE mentions (
    conversation_id text NOT NULL,
    member          text NOT NULL,
    -- The version at which the message was sent.
    version         bigint NOT NULL,
    message_id      text NOT NULL,
    author          text NOT NULL,
    -- Unread mentions are counted by this index alone.
    PRIMARY KEY (conversation_id, member, version) INCLUDE (author)
);
-- The message comes first, so that the server does not choose this index to find the mentions of a conversation.
CREATE INDEX mentions_by_message ON mentions (message_id, conversation_id);

-- The small conversations in which a member has unread messages or mentions. A row is written when the first message after
-- the member's marker is sent, not with each message.
CREATE TABLE unread_conversations (
    conversation_id text NOT NULL,
    member          text NOT NULL,
    messages        boolean NOT NULL,
    mentioned       boolean NOT NULL,
    PRIMARY KEY (conversation_id, member)
);
CREATE INDEX unread_conversations_messages ON unread_conversations (member) WHERE messages;
CREATE INDEX unread_conversations_mentioned ON unread_conversations (member) WHERE mentioned;

-- Unread messages are counted by this index alone.
CREATE INDEX messages_unread ON messages (conversation_id, version) INCLUDE (author) WHERE thread_id = '' AND NOT deleted;

-- Existing members begin with the marker at the version at which they joined, as all members do. (A rebuild runs this
-- migration on empty tables.)
INSERT INTO mentions (conversation_id, member, version, message_id, author)
SELECT m.conversation_id, x.member, m.version, m.message_id, m.author
FROM messages m
LEFT JOIN LATERAL (
    SELECT e.mentioned, e.mentions_all FROM edits e
    WHERE e.conversation_id = m.conversation_id AND e.message_id = m.message_id AND e.version > m.version
    ORDER BY e.version DESC LIMIT 1) e ON true
CROSS JOIN LATERAL unnest(CASE WHEN coalesce(e.mentions_all, m.mentions_all) THEN '{""}'
    ELSE coalesce(e.mentioned, m.mentioned) END) AS x (member)
WHERE NOT m.deleted AND x.member <> m.author
ON CONFLICT DO NOTHING;

INSERT INTO unread_conversations (conversation_id, member, messages, mentioned)
SELECT m.conversation_id, m.member, s.messages, s.mentioned
FROM conversation_members m
CROSS JOIN LATERAL (SELECT
    EXISTS (SELECT FROM (
        SELECT author FROM messages x
        WHERE x.conversation_id = m.conversation_id AND x.thread_id = '' AND NOT x.deleted AND x.version > m.joined_version
        ORDER BY x.version LIMIT 1000) x WHERE x.author <> m.member) AS messages,
    EXISTS (SELECT FROM mentions x
        WHERE x.conversation_id = m.conversation_id AND x.member = m.member AND x.version > m.joined_version)
    OR EXISTS (SELECT FROM (
        SELECT author FROM mentions x
        WHERE x.conversation_id = m.conversation_id AND x.member = '' AND x.version > m.joined_version
        ORDER BY x.version LIMIT 1000) x WHERE x.author <> m.member) AS mentioned) s
WHERE NOT m.large AND (s.messages OR s.mentioned);

-- +goose Down
DROP INDEX messages_unread;
DROP TABLE markers, mentions, unread_conversations;
