-- +goose Up

-- The cost of one page must not grow with the length of the list. So conversations are listed by an index over their
-- last activity, and members by an index over the order of joining.
ALTER TABLE conversations
    ADD COLUMN member_count integer NOT NULL DEFAULT 0,
    -- The conversation has more than 64 members, and their rows are updated less often.
    ADD COLUMN large boolean NOT NULL DEFAULT false;
ALTER TABLE conversation_members
    ADD COLUMN joined_version bigint NOT NULL DEFAULT 0,
    -- The place among the members who joined at that version, from 0.
    ADD COLUMN joined_index integer NOT NULL DEFAULT 0,
    -- A copy of conversations.large.
    ADD COLUMN large boolean NOT NULL DEFAULT false,
    -- The position of the conversation's newest event, divided by 2^10, or by 2^20 if the conversation is large.
    ADD COLUMN bucket bigint NOT NULL DEFAULT 0;

-- The versions at which members joined are read from the log, if this schema contains one. (A rebuild runs the
-- migrations in a schema without a log.)
-- +goose StatementBegin
DO $$
BEGIN
    IF to_regclass('memberships') IS NULL THEN
        RETURN;
    END IF;
    UPDATE conversation_members m SET joined_version = j.version, joined_index = j.index
    FROM (
        SELECT c.conversation_id, o.member, s.opened_version AS version, coalesce(u.index, 1) - 1 AS index
        FROM conversations c
        CROSS JOIN LATERAL unnest(c.members) AS o (member)
        CROSS JOIN LATERAL (
            SELECT opened_version FROM memberships s
            WHERE s.room = 'conversation:' || c.conversation_id AND s.member = o.member AND s.opened_version <= c.version
            ORDER BY s.opened_position DESC LIMIT 1) s
        LEFT JOIN LATERAL (
            SELECT min(u.index) AS index FROM events e, jsonb_array_elements(e.opens) AS r (opened),
                jsonb_array_elements_text(r.opened -> 'Users') WITH ORDINALITY AS u (member, index)
            WHERE e.stream = 'conversation:' || c.conversation_id AND e.version = s.opened_version
                AND u.member = o.member) u ON true) j
    WHERE m.conversation_id = j.conversation_id AND m.member = j.member;
END $$;
-- +goose StatementEnd

UPDATE conversations SET member_count = cardinality(members), large = cardinality(members) > 64;
UPDATE conversation_members m SET large = c.large, bucket = c.position >> CASE WHEN c.large THEN 20 ELSE 10 END
FROM conversations c WHERE c.conversation_id = m.conversation_id;
ALTER TABLE conversations DROP COLUMN members;

CREATE INDEX conversation_members_by_activity ON conversation_members (member, large, bucket DESC);
CREATE INDEX conversation_members_by_joining ON conversation_members (conversation_id, joined_version, joined_index)
    INCLUDE (member);

-- +goose Down
ALTER TABLE conversations ADD COLUMN members text[] NOT NULL DEFAULT '{}';
UPDATE conversations c SET members = coalesce((
    SELECT array_agg(member ORDER BY joined_version, joined_index) FROM conversation_members m
    WHERE m.conversation_id = c.conversation_id), '{}');
DROP INDEX conversation_members_by_activity, conversation_members_by_joining;
ALTER TABLE conversation_members DROP COLUMN joined_version, DROP COLUMN joined_index, DROP COLUMN large, DROP COLUMN bucket;
ALTER TABLE conversations DROP COLUMN member_count, DROP COLUMN large;
