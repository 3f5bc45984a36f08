-- +goose Up

-- When somebody was in rooms lately: what those who come back ask.
CREATE INDEX memberships_closed ON memberships (member, closed_position) WHERE closed_position IS NOT NULL;

-- +goose Down
DROP INDEX memberships_closed;
