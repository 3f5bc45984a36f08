-- +goose Up

-- An earlier release stored feed.post_created with the post's id as its subject. Loading a stream for a decision skips
-- events with a subject, so the post seemed not to exist.
-- +goose StatementBegin
DO $$
BEGIN
    IF to_regclass('events') IS NOT NULL THEN
        UPDATE events SET subject = '' WHERE type = 'feed.post_created' AND subject <> '';
    END IF;
END $$;
-- +goose StatementEnd

-- +goose Down
