-- +goose Up

-- The event of a new post was declared to be about the post itself, as a subject, and so was not loaded to decide about it.
-- +goose StatementBegin
DO $$
BEGIN
    IF to_regclass('events') IS NOT NULL THEN
        UPDATE events SET subject = '' WHERE type = 'feed.post_created' AND subject <> '';
    END IF;
END $$;
-- +goose StatementEnd

-- +goose Down
