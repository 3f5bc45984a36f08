-- +goose Up

-- This index finds the memberships of a user that were closed above a position. A connection that resumes needs them.
CREATE INDEX memberships_closed ON memberships (member, closed_position) WHERE closed_position IS NOT NULL;

-- +goose Down
DROP INDEX memberships_closed;
